"""The batches of a training are the same for any number of workers, any start and any share; broken
files are counted.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data.batches import Blocks
from maetok_lab.data.images import open_images
from maetok_lab.identity import fingerprint
from maetok_lab.rng import generator
from maetok_lab.training.order import batch_indices, draw_scale_crops, epoch_order, image_batches
from maetok_lab.training.presets import TOKENIZER_TRAINING


@dataclasses.dataclass
class Config:
    seed: int = 3
    batch_size: int = 4
    num_steps: int = 6
    crop: str = "center"
    workers: int = 0


@pytest.fixture
def folder(tmp_path) -> Path:
    """15 pictures of 20 x 16 px in two classes, and one for val."""
    for i in range(16):
        split = "train" if i < 15 else "val"
        path = tmp_path / "images" / split / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        ).save(path)
    return tmp_path / "images"


@pytest.fixture
def large(folder, monkeypatch):
    """The folder, as if it did not fit into memory."""
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    return open_images(folder, split="train", image_size=8, max_broken=2)


def same(mine, theirs) -> bool:
    return mine.step == theirs.step and all(torch.equal(a, b) for a, b in zip(mine[1:], theirs[1:]))


@pytest.mark.parametrize("crop", ["center", "scale"])
def test_workers_change_nothing(large, crop):
    alone, helped = (
        list(image_batches(large, Config(crop=crop, workers=workers))) for workers in (0, 2)
    )
    assert [batch.step for batch in helped] == list(range(6))
    assert all(map(same, alone, helped))
    assert not torch.equal(alone[0].pixels, alone[1].pixels)
    for batch in alone:
        assert batch.pixels.shape == (4, 3, 8, 8)
        assert torch.equal(batch.indices, batch_indices(3, batch.step, 4, 15))
        assert torch.equal(batch.labels, large.labels[batch.indices])


def test_a_source_in_memory_gives_what_a_decoded_one_gives(folder, large, monkeypatch):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 1 << 30)
    small = open_images(folder, split="train", image_size=8)
    assert (small.in_memory, large.in_memory) == (True, False)
    for crop in ("center", "scale"):
        config = Config(crop=crop)
        assert all(map(same, image_batches(small, config), image_batches(large, config)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_at_step_k_gives_the_batches_from_k_on(large, workers):
    whole = list(image_batches(large, Config(crop="scale")))
    again = list(image_batches(large, Config(crop="scale", workers=workers), start_step=4))
    assert [batch.step for batch in again] == [4, 5]
    assert all(map(same, whole[4:], again))
    assert list(image_batches(large, Config(workers=workers), start_step=6)) == []


def test_every_process_gets_its_rows_of_the_same_batch(large):
    whole = image_batches(large, Config(crop="scale"))
    shares = [
        image_batches(large, Config(crop="scale"), rows=slice(rank, None, 2)) for rank in (0, 1)
    ]
    for batch, *parts in itertools.islice(zip(whole, *shares), 2):
        for rank, part in enumerate(parts):
            assert torch.equal(part.pixels, batch.pixels[rank::2])
            assert torch.equal(part.indices, batch.indices[rank::2])


def test_flips_and_crops_are_drawn_anew_at_every_visit_of_a_picture(large):
    batches = list(image_batches(large, Config(crop="scale", num_steps=16)))  # over four epochs
    of_first = [
        batch.pixels[batch.indices == 0][0] for batch in batches if (batch.indices == 0).any()
    ]
    assert len(of_first) >= 4
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(of_first, 2))


def test_nothing_is_drawn_from_torchs_own_generator(large):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    next(image_batches(large, Config()))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_pictures_are_named_and_counted_up_to_the_limit(folder, large, workers):
    paths = [folder / path for path in large.records["path"]]
    for i in (1, 7):
        paths[i].write_bytes(paths[i].read_bytes()[:100])
    with pytest.warns(UserWarning, match="skipped a broken image") as caught:
        batches = list(image_batches(large, Config(workers=workers)))
    named = [str(warning.message) for warning in caught if "skipped" in str(warning.message)]
    assert (
        len(named) == len(large.broken) == 2
    )  # each once, though they come again in the second epoch
    assert all(large.records["path"][i] in " ".join(named) for i in (1, 7))
    met = torch.cat([batch.indices for batch in batches])
    assert not {1, 7} & set(met.tolist())
    for batch in batches:  # the picture that stands in brings its own label
        assert torch.equal(batch.labels, large.labels[batch.indices])
    paths[3].write_bytes(b"")
    message = r"more than max_broken=2 broken images; the last one: train/"
    with pytest.warns(UserWarning, match="broken"), pytest.raises(ValueError, match=message):
        list(image_batches(large, Config(workers=workers)))


def test_a_scale_crop_is_80_to_100_percent_of_the_short_side():
    crops = draw_scale_crops(4000, generator=generator(0, "crop"))
    assert crops.shape == (4000, 3)
    assert 0.8 <= crops[:, 0].min() < 0.801
    assert 0.999 < crops[:, 0].max() <= 1
    assert (
        (1 / crops[:, 0]).mean() - 1.125
    ).abs() < 0.005  # the short side is uniform, not the scale
    assert (crops[:, 1:].mean(0) - 0.5).abs().max() < 0.02


def test_the_crop_is_part_of_the_fingerprint_and_the_workers_are_not():
    config = TOKENIZER_TRAINING["test"]
    assert fingerprint(dataclasses.replace(config, workers=0)) == fingerprint(
        dataclasses.replace(config, workers=7)
    )
    assert fingerprint(dataclasses.replace(config, crop="scale")) != fingerprint(config)
    with pytest.raises(
        ValueError, match=r"workers must be 0 \(decode in this process\) or more, not -1"
    ):
        dataclasses.replace(config, workers=-1)


def test_every_epoch_visits_every_item_once_in_an_order_of_its_own():
    visited = torch.cat([batch_indices(0, step, 4, 10) for step in range(5)])  # two epochs of ten
    assert (
        visited[:10].sort().values.tolist()
        == visited[10:].sort().values.tolist()
        == list(range(10))
    )
    assert not torch.equal(visited[:10], visited[10:])
    assert not torch.equal(visited[:4], batch_indices(1, 0, 4, 10))
    assert torch.equal(batch_indices(0, 3, 4, 10), visited[12:16])


def test_a_batch_may_be_larger_than_the_set():
    counts = torch.bincount(batch_indices(0, 1, 25, 4), minlength=4)
    assert counts.sum() == 25
    assert counts.min() >= 5


def test_blocks_are_read_some_at_a_time_in_an_order_of_their_own():
    blocks = Blocks(torch.arange(100) // 5, at_once=4)
    epochs = [
        epoch_order(seed, epoch, 100, blocks=blocks) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for order in epochs:
        assert order.sort().values.equal(torch.arange(100))
        # five stretches of twenty: four blocks each, their items mixed
        groups = [set(stretch.tolist()) for stretch in blocks.number[order].split(20)]
        assert [len(group) for group in groups] == [4] * 5
        assert len(set.union(*groups)) == 20
        assert not order[:20].sort().values.equal(order[:20])
    assert not epochs[0].equal(epochs[1])
    assert not epochs[0].equal(epochs[2])
    # a batch is a piece of it, so that a resumed training goes on with the same images
    indices = [batch_indices(0, step, 30, 100, blocks=blocks) for step in range(4)]
    assert torch.cat(indices).equal(torch.cat([epochs[0], epochs[1][:20]]))
