"""Tar shards give what folders give, by offset, or it is said which shard or member is wrong."""

import io
import json
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data import tars
from maetok_lab.data.images import open_images
from maetok_lab.data.readers import center_crop
from maetok_lab.data.splits import drawn_split


def picture(seed: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    )


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def expected(seed: int) -> torch.Tensor:
    return (
        torch.from_numpy(np.array(center_crop(picture(seed), 8))).permute(2, 0, 1).float() / 127.5
        - 1
    )


def write_tar(
    path: Path, members: dict[str, bytes | str], *, shuffle: int | None = None, mode: str = "w"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(members)
    if shuffle is not None:
        random.Random(shuffle).shuffle(names)
    with tarfile.open(path, mode) as tar:
        for name in names:
            content = members[name]
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, count: int, folder: str = "") -> dict[str, bytes | str]:
    members: dict[str, bytes | str] = {}
    for i in range(first, first + count):
        members |= {
            f"{folder}{i:06d}.png": png(i),
            f"{folder}{i:06d}.cls": f"{i % 3}\n",
            f"{folder}{i:06d}.txt": f"number {i}",
        }
    return members


@pytest.mark.parametrize("in_memory", [True, False])
def test_shuffled_shards_in_folders_give_every_picture_with_its_label_and_caption(
    tmp_path, monkeypatch, in_memory
):
    if not in_memory:
        monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    write_tar(tmp_path / "data" / "train-000.tar", samples(0, 7, "./deep/er/"), shuffle=1)
    write_tar(tmp_path / "data" / "train-001.tar", samples(7, 5), shuffle=2)
    write_tar(tmp_path / "data" / "val-000.tar", samples(12, 3))
    source = open_images(tmp_path, split="train", image_size=8)
    assert (len(source), source.class_names) == (12, ["0", "1", "2"])
    numbers = [int(caption.removeprefix("number ")) for caption in source.captions]
    assert sorted(numbers) == list(range(12))
    assert numbers != list(range(12))
    assert source.labels.tolist() == [number % 3 for number in numbers]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    actual, _ = pickle.loads(pickle.dumps(source)).batch(order)
    assert actual.equal(torch.stack([expected(numbers[i]) for i in order]))
    assert source.records["path"][0].startswith("data/train-000.tar:deep/er/")
    assert open_images(tmp_path, split="val", image_size=8).captions == [
        "number 12",
        "number 13",
        "number 14",
    ]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "train-000.tar",
        "train-001.tar",
        "val-000.tar",
    }


def test_headers_are_read_once_and_again_only_when_a_shard_changed(tmp_path, monkeypatch):
    write_tar(tmp_path / "val.tar", samples(9, 1))
    path = write_tar(tmp_path / "train.tar", samples(0, 2))
    first = open_images(tmp_path, split="train", image_size=8)
    with monkeypatch.context() as patch:
        patch.setattr(tars, "_members", lambda shard: pytest.fail("headers were read again"))
        assert open_images(tmp_path, split="train", image_size=8).fingerprint == first.fingerprint
    write_tar(path, samples(0, 3))
    assert len(open_images(tmp_path, split="train", image_size=8)) == 3


def test_the_headers_of_large_shards_are_kept_for_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("MAETOK_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tars, "_WORTH_KEEPING", 0)
    write_tar(tmp_path / "set" / "val.tar", samples(9, 1))
    members = samples(0, 3) | {"000001.seg.png": b""}
    path = write_tar(tmp_path / "set" / "train.tar", members)
    first = tars.index_shard(path)
    tars._index_shard.cache_clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(tars, "_members", lambda shard: pytest.fail("headers were read again"))
        again = tars.index_shard(path)
    pd.testing.assert_frame_equal(again.pictures, first.pictures)
    assert again.skipped == first.skipped == ["000001.seg.png"]
    write_tar(path, samples(0, 4))
    assert len(open_images(tmp_path / "set", split="train", image_size=8)) == 4
    for kept in (tmp_path / "cache").glob("tar-*"):
        kept.write_bytes(b"damaged")
    tars._index_shard.cache_clear()
    assert len(open_images(tmp_path / "set", split="train", image_size=8)) == 4


def test_json_tells_label_and_caption_where_there_is_no_text_and_the_folder_is_the_last_resort(
    tmp_path,
):
    fields = {
        "a.jpg": png(0),
        "a.json": json.dumps({"label": "cat", "caption": "a cat"}),
        "b.webp": png(1),
        "b.cls": "dog",
        "b.json": json.dumps({"label": "cow", "text": "not read"}),
        "b.txt": "a dog",
        "a.seg.png": b"",
        "._a.jpg": b"",
    }
    write_tar(tmp_path / "a" / "train.tar", fields)
    write_tar(tmp_path / "a" / "val.tar", samples(0, 1))
    with pytest.warns(
        UserWarning, match=r"2 members of tars left out \(train\.tar:\._a\.jpg, train"
    ):
        source = open_images(tmp_path / "a", split="train", image_size=8)
    assert source.records["category"].tolist() == ["cat", "dog"]
    assert source.captions == ["a cat", "a dog"]
    folders = {"x/cow/1.png": png(0), "x/ant/2.png": png(1), "3.png": png(2)}
    write_tar(tmp_path / "b" / "train.tar", folders)
    write_tar(tmp_path / "b" / "val.tar", folders)
    with pytest.warns(UserWarning, match=r"beside the class folders of train left out \(3\.png\)"):
        source = open_images(tmp_path / "b", split="train", image_size=8)
    assert source.records["category"].tolist() == source.captions == ["cow", "ant"]


def test_the_split_is_in_the_shards_name_else_drawn_from_the_key(tmp_path):
    write_tar(tmp_path / "imagenet1k-validation-00.tar", samples(0, 2))
    write_tar(tmp_path / "imagenet1k-train-00.tar", samples(2, 3))
    assert len(open_images(tmp_path, split="val", image_size=8)) == 2
    assert len(open_images(tmp_path, split="train", image_size=8)) == 3
    other = write_tar(tmp_path / "other" / "shard.tar", samples(0, 40))
    actual = {
        split: open_images(other, split=split, image_size=8) for split in ("train", "val", "test")
    }
    for split, source in actual.items():
        assert source.captions == [
            f"number {i}" for i in range(40) if drawn_split(f"{i:06d}.png") == split
        ]


def test_a_broken_member_is_named_and_left_out(tmp_path):
    members = samples(0, 3) | {"000001.png": png(1)[:60]}
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "val.tar", samples(9, 1))
    with pytest.warns(UserWarning, match=r"skipped a broken image: train\.tar:000001\.png: "):
        source = open_images(tmp_path, split="train", image_size=8)
    assert source.captions == ["number 0", "number 2"]


def test_shards_that_cannot_be_read_are_errors_that_name_them(tmp_path):
    for mode, name in (("w:gz", "a.tar.gz"), ("w:bz2", "b.tar")):
        path = write_tar(tmp_path / name, samples(0, 2), mode=mode)
        with pytest.raises(ValueError, match=rf"{name} is compressed.* unpack it to a plain \.tar"):
            open_images(path, image_size=8)
    with pytest.raises(ValueError, match=r"b\.tar is compressed \(bzip2\)"):
        open_images(tmp_path, image_size=8)
    path = write_tar(tmp_path / "train.tar", samples(0, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 // 512 * 512 + 100])
    with pytest.raises(ValueError, match=r"train\.tar is no whole tar file"):
        open_images(path, image_size=8)
    damaged = bytearray(whole)
    damaged[1024 + 148] ^= 0xFF  # the checksum of the second header
    path.write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"train\.tar is no whole tar file: damaged header at byte \d+"
    ):
        open_images(path, image_size=8)
    write_tar(path, {"a.txt": "no picture"})
    with pytest.raises(ValueError, match=r"train\.tar holds no images"):
        open_images(path, image_size=8)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="holds both Parquet and tar shards"):
        open_images(tmp_path, image_size=8)


# What an attack on it found -----------------------------------------------------------------------


def test_names_with_dots_are_pictures_and_a_second_kind_of_one_picture_is_left_out(tmp_path):
    members = {f"cat.{i}.png": png(i) for i in range(4)} | {"a.png": png(5), "a.jpg": png(6)}
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "val.tar", {"/b.png": png(7), "././/c.png": png(8)})
    with pytest.warns(UserWarning, match=r"1 member of tars left out \(train\.tar:a\.jpg\)"):
        source = open_images(tmp_path, split="train", image_size=8)
    assert [path.split(":")[1] for path in source.records["path"]] == [
        *("a.png", "cat.0.png", "cat.1.png", "cat.2.png", "cat.3.png")
    ]
    assert len(open_images(tmp_path, split="val", image_size=8)) == 2


def test_hard_links_are_pictures_too_and_an_updated_member_counts_once(tmp_path):
    path = write_tar(tmp_path / "train.tar", {"a/1.png": png(1), "a/2.png": png(2)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b/3.png")
        link.type = tarfile.LNKTYPE
        link.linkname = "a/1.png"
        tar.addfile(link)
        updated = tarfile.TarInfo("a/2.png")
        updated.size = len(png(9))
        tar.addfile(updated, io.BytesIO(png(9)))
    write_tar(tmp_path / "val.tar", {"a/1.png": png(3), "b/1.png": png(4)})
    source = open_images(tmp_path, split="train", image_size=8)
    assert source.records["category"].tolist() == ["a", "a", "b"]
    images = source.batch(slice(None))[0]
    assert images[2].equal(images[0])
    assert images[1].equal(expected(9))


def test_a_split_without_labels_and_odd_labels_stop_nothing(tmp_path):
    write_tar(tmp_path / "train.tar", samples(0, 12))
    write_tar(tmp_path / "val.tar", samples(12, 3) | {"000012.cls": "", "000013.json": "{"})
    secret = {f"{i:06}.{kind}": content for i in (20, 21) for kind, content in
              (("png", png(i)), ("cls", "-1"))}  # fmt: skip
    write_tar(tmp_path / "test.tar", secret | {"000022.png": png(22)})
    with pytest.warns(UserWarning, match="no labels: val stands for it"):
        images = {split: open_images(tmp_path, split=split, image_size=8) for split in
                  ("train", "val", "test")}  # fmt: skip
    assert images["train"].class_names == ["0", "1", "2"]
    assert images["train"].labels.tolist() == [i % 3 for i in range(12)]
    assert len(images["val"]) == 2
    huge = write_tar(tmp_path / "huge" / "a.tar", {"1.png": png(1), "1.cls": "9" * 30})
    assert open_images(huge, image_size=8, split_names={"train": "*"}).class_names == ["9" * 30]


def test_a_damaged_shard_among_others_is_left_out(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(0, 4))
    write_tar(tmp_path / "val.tar", samples(4, 4))
    (tmp_path / "train-1.tar").write_bytes(b"")
    (tmp_path / "train-2.tar.gz").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out: .*train-1\.tar is no whole tar file") as told:
        assert len(open_images(tmp_path, image_size=8)) == 4
    assert ".gz" in str(told[0].message)


def test_half_a_character_in_a_caption_is_replaced(tmp_path):
    caption = '{"label": "a", "caption": "hi \\ud83d"}'
    path = write_tar(tmp_path / "x.tar", {"1.png": png(1), "1.json": caption})
    source = open_images(path, image_size=8, split_names={"train": "*"})
    assert source.captions == ["hi ?"]


def changed(path: Path, place: int, *changes: tuple[int, bytes]) -> Path:
    """The same tar; the header at a place says something else, with its right sum."""
    data = bytearray(path.read_bytes())
    for offset, content in (*changes, (148, b" " * 8)):
        data[place + offset : place + offset + len(content)] = content
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    path.write_bytes(data)
    return path


def number(value: int) -> bytes:
    """A size as headers hold one that is below zero or over 8 GB."""
    return (b"\x80" if value >= 0 else b"\xff") + (value % 2**88).to_bytes(11, "big")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [-1, -512, -1536, 2**40, 2**62, 2**80])
@pytest.mark.parametrize("place", [0, 1024])
def test_a_size_that_cannot_be_is_a_damaged_tar_with_a_name(tmp_path, size, place):
    path = write_tar(tmp_path / "train.tar", {"a.png": png(0), "b.png": png(1)})
    changed(path, place, (124, number(size)))
    with pytest.raises(ValueError, match=r"train\.tar is no whole tar file: .+; copy or download"):
        open_images(path, image_size=8)


def test_a_long_name_that_would_fill_the_memory_is_a_damaged_tar(tmp_path):
    path = write_tar(tmp_path / "train.tar", {"a.png": png(0), "b.png": png(1)})
    changed(path, 0, (156, b"L"), (124, number(2**62)))
    with pytest.raises(
        ValueError, match=r"train\.tar is no whole tar file: a header that needs more"
    ):
        open_images(path, image_size=8)


def test_a_sparse_file_in_a_tar_is_left_out(tmp_path):
    path = write_tar(tmp_path / "train.tar", {"a.png": png(0), "b.png": png(1)})
    # a kind of its own, an older form of header, and the length of the whole
    changed(path, 0, (156, b"S"), (257, b"ustar  \0"), (483, number(2**40)))
    index = tars.index_shard(path)
    assert index.skipped == ["a.png"]


def test_a_member_longer_than_any_picture_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MOST_BYTES", 1000)
    write_tar(tmp_path / "val.tar", samples(9, 1))
    write_tar(tmp_path / "train.tar", samples(0, 2) | {"long.png": bytes(1001)})
    with pytest.warns(UserWarning, match=r"1 member of tars left out \(train\.tar:long\.png\)"):
        assert len(open_images(tmp_path, image_size=8)) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, '{"label": ' + "9" * 9000 + "}", "{", "\ud83d"])
def test_json_that_cannot_be_read_costs_no_shard(tmp_path, text):
    members = samples(0, 3)
    members["000001.json"] = text.encode("utf-8", "surrogatepass")
    path = write_tar(tmp_path / "train.tar", members)
    assert len(tars.index_shard(path).pictures) == 3
