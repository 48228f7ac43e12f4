"""What is read ahead is what would have been read here, for any number of workers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data import loading
from maetok_lab.data.images import open_images
from maetok_lab.data.loading import Request, batches_in_order, read_ahead
from maetok_lab.processes import Subset
from maetok_lab.rng import generator


@pytest.fixture
def folder(tmp_path) -> Path:
    """15 pictures of 20 x 16 px in two classes, and one for val."""
    for i in range(16):
        split = "train" if i < 15 else "val"
        path = tmp_path / "images" / split / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


@pytest.fixture
def large(folder, monkeypatch):
    """The folder, as if it did not fit into memory."""
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    return open_images(folder, split="train", image_size=8, max_broken=2)


def draw(count: int = 6, *, cropped: bool = False):
    """Requests of four pictures each, in a random order, half of them mirrored."""
    for step in range(count):
        draws = generator(0, "requests", step)
        indices = torch.randint(15, (4,), generator=draws)
        flip = torch.rand(4, generator=draws) < 0.5
        crops = torch.rand(4, 3, generator=draws) * 0.2 + 0.8
        yield Request(indices, flip, crops if cropped else None)


def pixels_of(images, requests, **options) -> torch.Tensor:
    return torch.stack([pictures.pixels for pictures in read_ahead(images, requests, **options)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cropped", [False, True])
def test_pictures_come_in_order_as_the_source_itself_reads_them(large, workers, cropped):
    requests = list(draw(cropped=cropped))
    batches = list(read_ahead(large, iter(requests), workers=workers))
    assert len(batches) == len(requests)
    for pictures, request in zip(batches, requests):
        expected = large.read(request.indices, flip=request.flip, scale_crops=request.scale_crops)
        assert torch.equal(pictures.pixels, expected.pixels)
        assert torch.equal(pictures.indices, request.indices)
        assert pictures.images.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("cropped", [False, True])
def test_a_source_in_memory_gives_what_a_decoded_one_gives(folder, large, monkeypatch, cropped):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 1 << 30)
    small = open_images(folder, split="train", image_size=8)
    assert (small.in_memory, large.in_memory) == (True, False)
    requests = list(draw(cropped=cropped))
    expected = pixels_of(large, requests, workers=2)
    assert torch.equal(pixels_of(small, requests, workers=2), expected)


def test_indices_alone_are_a_request_and_no_request_is_no_picture(large):
    (pictures,) = read_ahead(large, [Request(torch.tensor([3, 1]))], workers=0)
    assert torch.equal(pictures.pixels, large.read([3, 1]).pixels)
    assert list(read_ahead(large, [], workers=2)) == []


def test_a_share_of_a_batch_is_the_same_rows_of_it(large):
    requests = list(draw(2, cropped=True))
    whole = pixels_of(large, requests, workers=0)
    for rank in (0, 1):
        share = (Request(*(part[rank::2] for part in request)) for request in requests)
        assert torch.equal(pixels_of(large, share, workers=0), whole[:, rank::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_torchs_own_generator(large, workers):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    next(read_ahead(large, draw(), workers=workers))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_pictures_are_named_and_counted_up_to_the_limit(folder, large, workers):
    paths = [folder / path for path in large.records["path"]]
    for i in (1, 7):
        paths[i].write_bytes(paths[i].read_bytes()[:100])
    twice = [Request(torch.arange(first, first + 5)) for first in (0, 5, 10, 0, 5, 10)]
    with pytest.warns(UserWarning, match="skipped a broken image") as caught:
        batches = list(read_ahead(large, twice, workers=workers))
    messages = [str(warning.message) for warning in caught if "skipped" in str(warning.message)]
    assert len(messages) == len(large.broken) == 2  # each once, though they came twice
    assert all(large.records["path"][i] in " ".join(messages) for i in (1, 7))
    indices = torch.cat([pictures.indices for pictures in batches])
    assert not {1, 7} & set(indices.tolist())  # the next readable picture stands in
    paths[3].write_bytes(b"")
    message = r"more than max_broken=2 broken images; the last one: train/"
    with pytest.warns(UserWarning, match="broken"), pytest.raises(ValueError, match=message):
        list(read_ahead(large, twice, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_all_images_come_in_order_whole_or_in_part(large, workers):
    whole = list(batches_in_order(large, 4, workers=workers))
    assert [len(images) for images, _ in whole] == [4, 4, 4, 3]
    expected, labels = large.batch(slice(None))
    assert torch.cat([images for images, _ in whole]).equal(expected)
    assert torch.cat([numbers for _, numbers in whole]).equal(labels)
    rows = torch.tensor([7, 3, 11])
    (part,) = batches_in_order(large.select(rows), 4, workers=workers)
    assert part[0].equal(expected[rows])
    assert part[1].equal(labels[rows])
    inner = Subset(large.select(rows), torch.tensor([2, 0]))
    (part,) = batches_in_order(inner, 4, workers=workers)
    assert part[0].equal(expected[[11, 7]])


def test_as_many_processes_decode_as_there_are_cores_where_nobody_says(large, monkeypatch):
    counts = []
    loader = loading.DataLoader
    monkeypatch.setattr(loading, "usable_cores", lambda: 2)
    monkeypatch.setattr(
        loading, "DataLoader", lambda *a, **o: counts.append(o["num_workers"]) or loader(*a, **o)
    )
    list(batches_in_order(large, 8))
    monkeypatch.setattr(loading, "usable_cores", lambda: 100)
    next(read_ahead(large, draw(1)))
    assert counts == [2, loading.MOST_WORKERS]


def test_a_request_in_pieces_is_the_request(large, monkeypatch):
    requests = list(draw(cropped=True))
    whole = pixels_of(large, requests, workers=0)
    monkeypatch.setattr(loading, "PIECE", 3)
    assert [len(part.indices) for part in requests[0].split(3)] == [3, 1]
    assert pixels_of(large, requests, workers=2).equal(whole)
    (empty,) = Request(torch.arange(0)).split(3)
    assert len(empty.indices) == 0


@pytest.mark.filterwarnings("ignore:skipped a broken image")
def test_an_error_in_a_worker_is_the_same_one_line(folder, large):
    for path in sorted((folder / "train").rglob("*.png"))[:6]:
        path.write_bytes(b"")
    messages = []
    for workers in (0, 2):
        large.broken.clear()
        with pytest.raises(ValueError, match="broken images") as caught:
            list(read_ahead(large, draw(), workers=workers))
        messages.append(str(caught.value))
    assert all("\n" not in message for message in messages)
    assert "more than max_broken=2 broken images" in messages[1]


UNFINISHED = """
import sys
import torch
from maetok_lab.data import images
from maetok_lab.data.loading import Request, read_ahead

images._IN_MEMORY = 0
source = images.open_images(sys.argv[1], image_size=8)
pictures = read_ahead(source, (Request(torch.arange(4)) for _ in range(100)), workers=1)
next(pictures)
"""


def test_a_process_ends_though_its_workers_still_had_to_read(folder):
    """Workers hear neither ^C nor SIGTERM: whoever waited for them would wait for ever."""
    command = [sys.executable, "-c", UNFINISHED, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
