"""Folders and Parquet shards are listed with splits and labels, or it is said what does not fit."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data import parquet, sources
from maetok_lab.data.images import open_images
from maetok_lab.data.readers import center_crop
from maetok_lab.training.order import epoch_order

SPLITS = ("train", "val", "test")


def picture(seed: int, size=(40, 30)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def classes_of(root: Path, names: list[str], count: int) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(sum(name.encode()) + i, (12, 10)).save(root / name / f"{i:03d}.png")
    return root


def write_parquet(path: Path, count: int, *, first: int = 0, hub: bool = True, **columns) -> Path:
    rows = [
        {"bytes": png(picture(first + i, (12, 10))), "path": f"{first + i}.png"}
        for i in range(count)
    ]
    table = pa.table({"image": rows} | {name: values[:count] for name, values in columns.items()})
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["zebra", "ant"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)} if hub else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


def test_parquet_shards_with_the_hubs_names_keep_their_splits_and_class_numbers(tmp_path):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", 6, label=[0, 1] * 3)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", 5, first=6, label=[1, 1, 0, 0, 1])
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", 3, first=20, label=[1, 1, 1])
    source = open_images(tmp_path, split="train", image_size=10)
    assert (len(source), source.class_names) == (11, ["zebra", "ant"])
    assert source.labels.tolist() == [0, 1] * 3 + [1, 1, 0, 0, 1]
    expected = torch.from_numpy(np.array(center_crop(picture(8, (12, 10)), 10))).permute(2, 0, 1)
    assert source[8][0].equal(expected.float() / 127.5 - 1)
    assert open_images(tmp_path, split="val", image_size=10).labels.tolist() == [1, 1, 1]
    with pytest.warns(UserWarning, match="it has no split test: val stands for it"):
        test = open_images(tmp_path, split="test", image_size=10)
    assert (len(test), test.split) == (3, "val")


def test_one_parquet_file_with_text_labels_and_a_split_column(tmp_path):
    path = write_parquet(
        tmp_path / "set.parquet",
        6,
        hub=False,
        label=list("bababa"),
        split=["train", "valid"] * 3,
        grade=[3, 1, 2] * 2,
    )
    source = open_images(str(path), split="val", image_size=8)
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [0, 0, 0])
    assert open_images(path, split="train", image_size=8, labels="grade").class_names == [
        "1",
        "2",
        "3",
    ]


def test_parquet_without_labels_or_splits_is_split_by_row_name(tmp_path):
    write_parquet(tmp_path / "part.parquet", 60, hub=False)
    opened = [open_images(tmp_path, split=split, image_size=8) for split in SPLITS]
    assert sum(map(len, opened)) == 60
    assert opened[0].class_names == ["all"]


def test_parquet_too_large_for_memory_reads_row_groups(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", 60, hub=False)
    write_parquet(tmp_path / "val.parquet", 1, hub=False)
    whole = open_images(tmp_path, image_size=8).batch(slice(None))[0]
    monkeypatch.setattr(parquet, "_IN_MEMORY", 0)
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    source = open_images(tmp_path, image_size=8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert source.batch(order)[0].equal(whole[order])
    assert source.blocks.number.tolist() == [row // 4 for row in range(60)]
    assert source.blocks.at_once == 16
    monkeypatch.setattr(parquet, "_HELD", 0)
    assert open_images(tmp_path, image_size=8).blocks.at_once == 1


def test_a_training_reads_each_row_group_once_an_epoch(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", 60, hub=False)
    write_parquet(tmp_path / "val.parquet", 1, hub=False)
    monkeypatch.setattr(parquet, "_IN_MEMORY", 0)
    monkeypatch.setattr(parquet, "_AT_ONCE", 3)
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    source = open_images(tmp_path, image_size=8)
    reads = []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda file, rows, **o: reads.append(rows) or read(file, rows, **o),
    )
    order = epoch_order(0, 0, 60, blocks=source.blocks)
    for indices in order.split(7):
        source.read(indices)
    assert len(reads) <= 20  # 15 groups, and some twice where a batch lies across two stretches
    reads.clear()
    for indices in epoch_order(0, 0, 60).split(7):
        source.read(indices)
    assert len(reads) > 40


def test_parquet_shards_have_one_fingerprint_and_changed_ones_another(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "train.parquet", 6, label=[0, 1] * 3)
    # every reading of the footer lies elsewhere in memory, as in another process
    read, readings = pq.read_metadata, []
    monkeypatch.setattr(
        pq, "read_metadata", lambda shard: readings.append(read(shard)) or readings[-1]
    )
    before = open_images(path, image_size=8).fingerprint
    assert open_images(path, image_size=8).fingerprint == before
    (tmp_path / "moved").mkdir()
    path = path.rename(tmp_path / "moved" / "train.parquet")
    assert open_images(path, image_size=8).fingerprint == before
    write_parquet(path, 6, first=1, label=[0, 1] * 3)
    assert open_images(path, image_size=8).fingerprint != before


def test_parquet_with_a_missing_picture_leaves_it_out(tmp_path):
    rows = [{"bytes": png(picture(0)), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "train.parquet")
    write_parquet(tmp_path / "val.parquet", 1, hub=False)
    with pytest.warns(UserWarning, match=r"b\.png: no image bytes"):
        assert len(open_images(tmp_path, image_size=8)) == 1


def test_folders_and_files_that_do_not_fit_are_errors(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"has no images: no \*\.parquet, no \*\.tar .* and none of"
    ):
        open_images(tmp_path, image_size=8)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.parquet or \.tar file"):
        open_images(tmp_path / "file.txt", image_size=8)
    classes_of(tmp_path, ["a"], 2)
    for name in ("x", "y", "z"):
        picture(0).save(tmp_path / f"{name}.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "val" / "a").mkdir(parents=True)
    for file in (tmp_path / "a", *tmp_path.glob("*.png")):
        file.rename(tmp_path / "train" / file.name)
    picture(0).save(tmp_path / "val" / "a" / "0.png")
    with pytest.raises(
        ValueError, match=r"3 of 5 pictures of train lie beside class folders \(train/x\.png\)"
    ):
        open_images(tmp_path, image_size=8)
    monkeypatch.setattr(sources, "EMOJI", tmp_path / "emoji.parquet")
    with pytest.raises(FileNotFoundError, match=r"make it with `python data/build_emoji\.py`"):
        open_images("emoji", image_size=8)


def test_parquet_files_that_do_not_fit_are_errors(tmp_path):
    pq.write_table(pa.table({"label": [1]}), tmp_path / "none.parquet")
    with pytest.raises(
        ValueError,
        match=r"no image column \{bytes, path\} and no binary column; it has \['label'\]",
    ):
        open_images(tmp_path, image_size=8)
    (tmp_path / "none.parquet").unlink()
    path = write_parquet(
        tmp_path / "odd.parquet", 2, hub=False, split=["train", "holdout"], label=["a", None]
    )
    with pytest.warns(UserWarning, match="1 row left out: split holdout is none of train, val"):
        assert len(open_images(path, image_size=8)) == 1
    by_hand = {"train": "train", "val": "holdout"}
    with pytest.raises(ValueError, match=r"no picture of val has a category; name a column"):
        open_images(path, split="val", image_size=8, split_names=by_hand)
    write_parquet(path, 3, hub=False, split=["train", "train", "val"], label=["a", None, "b"])
    with pytest.warns(UserWarning, match=r"1 picture of train without a category left out \(odd"):
        assert len(open_images(path, image_size=8)) == 1


# Odd shards ---------------------------------------------------------------------------------------


def test_one_odd_shard_is_named_and_stops_nothing(tmp_path):
    write_parquet(
        tmp_path / "train-0.parquet", 6, hub=False, id=list(range(6)), label=list("ababab")
    )
    write_parquet(
        tmp_path / "train-1.parquet", 6, hub=False, id=list("abcdef"), label=list("ababab")
    )
    write_parquet(tmp_path / "val.parquet", 3, hub=False, label=list("aba"))
    whole = (tmp_path / "val.parquet").read_bytes()
    odd = {
        "train-2": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "train-3": whole[: len(whole) // 2],
        "train-4": b"",
    }
    for name, content in odd.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    pq.write_table(pa.table({"label": ["a"]}), tmp_path / "metadata.parquet")
    with pytest.warns(UserWarning, match="left out") as told:
        source = open_images(tmp_path, image_size=8)
    assert len(source) == 12
    assert source.class_names == ["a", "b"]
    message = str(told[0].message)
    assert "train-2.parquet is a pointer of Git LFS, not the data" in message
    for name in ("train-3.parquet", "train-4.parquet", "metadata.parquet has no image column"):
        assert name in message
    assert "columns differ in type among the shards" in message


def test_a_damaged_page_costs_the_pictures_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    path = write_parquet(tmp_path / "train.parquet", 12, hub=False)
    write_parquet(tmp_path / "val.parquet", 2, hub=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    source = open_images(tmp_path, image_size=8)
    assert source.fingerprint
    with pytest.warns(UserWarning, match=r"skipped a broken image: train\.parquet:4"):
        source.batch([0, 4])


def test_class_names_come_from_any_shard_and_for_any_column(tmp_path):
    write_parquet(tmp_path / "test.parquet", 2, hub=False)  # the first in order has no label
    write_parquet(tmp_path / "train.parquet", 4, label=[0, 1, 1, 0])
    write_parquet(tmp_path / "val.parquet", 2, label=[1, 0])
    with pytest.warns(UserWarning, match="val stands for it"):
        source = open_images(tmp_path, split="test", image_size=8)
    assert source.class_names == ["zebra", "ant"]
    root = tmp_path / "own"
    root.mkdir()
    names = {"fine": {"names": ["x", "y"]}, "category": {"names": ["cat", "dog"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": names}})}
    for split, numbers in (("train", [0, 1, 1]), ("val", [1, 0, 1]), ("test", [-1, -1, -1])):
        rows = [{"bytes": png(picture(i, (12, 10))), "path": None} for i in range(3)]
        table = pa.table({"image": rows, "category": numbers, "fine": numbers})
        pq.write_table(table.replace_schema_metadata(metadata), root / f"{split}.parquet")
    assert open_images(root, image_size=8).class_names == ["cat", "dog"]
    fine = open_images(root, split="val", image_size=8, labels="fine")
    assert (fine.class_names, fine.labels.tolist()) == (["x", "y"], [1, 0, 1])
    with pytest.warns(UserWarning, match="no labels: val stands for it"):
        assert open_images(root, split="test", image_size=8).split == "val"


@pytest.mark.parametrize(
    "metadata", [b"no json", b'{"info": null}', b'{"info": {"features": null}}', b"[1]"]
)
def test_metadata_that_say_nothing_are_passed_over(tmp_path, metadata):
    rows = [{"bytes": png(picture(i, (12, 10))), "path": None} for i in range(4)]
    table = pa.table({"image": rows, "label": [0.0, 1.0, None, 1.0]})
    for split in ("train", "val"):
        path = tmp_path / f"{split}.parquet"
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    with pytest.warns(UserWarning, match="1 picture of train without a category left out"):
        source = open_images(tmp_path, image_size=8)
    assert source.class_names == ["0", "1"]


def test_shards_in_folders_whose_names_are_no_text_are_read(tmp_path):
    for split in ("train", "val"):
        write_parquet(tmp_path / "cafe" / f"{split}.parquet", 4, hub=False)
    root = (tmp_path / "cafe").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    source = open_images(root, image_size=8)
    assert len(source) == 4
    assert source.fingerprint
    assert len(open_images(tmp_path, image_size=8)) == 4


def test_an_image_too_large_for_memory_is_a_broken_one(tmp_path, monkeypatch):
    classes_of(tmp_path, ["a"], 30)

    def fail(image, size):
        raise MemoryError

    monkeypatch.setattr(images_module, "CROPS", images_module.CROPS | {"center": fail})
    with (
        pytest.warns(UserWarning, match="MemoryError"),
        pytest.raises(ValueError, match="more than max_broken=10 broken images"),
    ):
        open_images(tmp_path, image_size=8)


@pytest.mark.parametrize("source", [None, 5, "~nobody-of-that-name/x", "/nowhere"])
def test_what_is_no_source_is_one_clear_line(source):
    with pytest.raises(FileNotFoundError, match=r"^no source .*; it must be 'emoji', an image"):
        open_images(source, image_size=8)


def test_max_broken_is_a_number(tmp_path):
    classes_of(tmp_path, ["a"], 3)
    for wrong in ("3", -1, True, 2.5):
        with pytest.raises(ValueError, match="max_broken must be None or a number of pictures"):
            open_images(tmp_path, image_size=8, max_broken=wrong)
