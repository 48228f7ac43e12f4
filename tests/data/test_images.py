"""Images come in alike from the shipped set, folders and Parquet, whatever the files are like."""

import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data.images import ImageSource, open_images

SPLITS = ("train", "val", "test")


def picture(seed: int, size=(40, 30), mode="RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1, "LA": 2}[mode]
    values = np.random.default_rng(seed).integers(
        0, 256, (size[1], size[0], channels), dtype=np.uint8
    )
    return Image.fromarray(
        values[..., 0] if channels == 1 else values, mode=None if channels == 1 else mode
    )


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path) -> Path:
    """20 pictures of every awkward kind in root/{train,val}/class, one of them cut short."""
    root = tmp_path / "mixed"
    for folder in ("train/a", "train/b", "val/a"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        picture(i).save(root / "train/a" / f"plain{i}.png")
    Image.fromarray(np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)).save(
        root / "train/a/grey16.png"
    )
    picture(9, mode="RGBA").save(root / "train/a/rgba.png")
    picture(10, mode="L").save(root / "train/b/grey.png")
    picture(11, mode="LA").save(root / "train/b/la.png")
    picture(12, mode="CMYK").save(root / "train/b/cmyk.JPG")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(root / "train/b/moves.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), "lime").save(root / "train/b/dot.png")
    palette = picture(13, (64, 64)).convert("P")
    palette.info["transparency"] = 3
    palette.save(root / "train/b/palette.png", transparency=3)
    whole = png(picture(14))
    (root / "train/b/broken.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/b/notes.txt").write_text("no picture")
    for i in range(3):
        picture(20 + i).save(root / "val/a" / f"{i}.webp")
    return root


def classes_of(root: Path, names: list[str], count: int) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(sum(name.encode()) + i, (12, 10)).save(root / name / f"{i:03d}.png")
    return root


# ---- the shipped set ----
def test_the_emoji_have_their_counts_classes_and_range():
    opened = [open_images("emoji", split=split, image_size=16) for split in SPLITS]
    assert [len(source) for source in opened] == [4306, 528, 529]
    for source in opened:
        assert source.num_classes == len(source.class_names) == 9
        assert source.class_names == opened[0].class_names
        images, labels = source.batch(range(32))
        assert images.shape == (32, 3, 16, 16)
        assert images.dtype == torch.float32
        assert images.min() >= -1
        assert images.max() == 1
        assert labels.equal(source.labels[:32])
        assert set(source.records.columns) >= {
            "category",
            "style",
            "subcategory",
            "name",
            "caption",
            "split",
            "path",
        }
        assert source.captions == source.records["caption"].tolist()


def test_the_emoji_splits_share_no_name_and_every_category_is_about_a_tenth_of_val_and_test():
    records = [open_images("emoji", split=split, image_size=8).records for split in SPLITS]
    names = [set(part["name"]) for part in records]
    assert len(set.union(*names)) == sum(map(len, names)) == 1895
    counts = [part["category"].value_counts() for part in records]
    for part in counts[1:]:
        assert (part / sum(counts)).between(0.07, 0.13).all()


@pytest.mark.parametrize("labels", ["category", "category-style", "subcategory", "style", "name"])
def test_the_emoji_have_labels_of_every_kind(labels):
    source = open_images("emoji", split="val", image_size=8, labels=labels)
    row = source.records.iloc[7]
    expected = f"{row.category} / {row.style}" if labels == "category-style" else row[labels]
    assert source.class_names[source[7][1]] == expected
    assert source.num_classes == {"category": 9, "category-style": 26, "style": 3}.get(
        labels, source.num_classes
    )


def test_only_symbols_and_flags_are_not_flipped():
    source = open_images("emoji", split="test", image_size=32)
    assert source.flippable.logical_not().equal(
        torch.tensor(source.records["category"].isin(["Symbols", "Flags"]).tolist())
    )
    plain, _ = source.batch(slice(None))
    flipped, _ = source.batch(slice(None), flip=torch.ones(len(source), dtype=torch.bool))
    assert flipped[source.flippable].equal(plain[source.flippable].flip(-1))
    assert flipped[~source.flippable].equal(plain[~source.flippable])
    assert source.batch([0, 1], flip=torch.tensor([False, False]))[0].equal(plain[:2])


def test_two_opens_are_the_same_and_another_choice_has_another_fingerprint():
    first, second = (open_images("emoji", split="val", image_size=16) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.batch([3, 5])[0].equal(second.batch([3, 5])[0])
    alternatives = [
        open_images("emoji", split="test", image_size=16),
        open_images("emoji", split="val", image_size=32),
        open_images("emoji", split="val", image_size=16, labels="style"),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in alternatives)}) == 4


def test_batch_takes_every_kind_of_index():
    source = open_images("emoji", split="val", image_size=8)
    last = len(source) - 1
    for indices in ([0, -1], torch.tensor([0, last]), np.array([0, last]), slice(0, None, last)):
        assert source.batch(indices)[0].equal(torch.stack([source[0][0], source[last][0]]))
    assert source.batch([])[0].shape == (0, 3, 8, 8)
    with pytest.raises(IndexError, match=f"not inside 0..{last}"):
        source.batch([last + 1])
    with pytest.raises(TypeError, match="bool mask"):
        source.batch(torch.ones(len(source), dtype=torch.bool))
    with pytest.raises(ValueError, match=r"flip must be bool \(2,\)"):
        source.batch([0, 1], flip=torch.ones(3, dtype=torch.bool))


def test_a_source_iterates_and_works_in_a_data_loader_and_survives_pickling():
    source = open_images("emoji", split="val", image_size=8)
    images, labels = next(iter(torch.utils.data.DataLoader(source, batch_size=4)))
    assert images.equal(source.batch(range(4))[0])
    assert labels.equal(source.labels[:4])
    assert pickle.loads(pickle.dumps(source)).batch([1])[0].equal(images[1:2])
    assert sum(1 for _ in source) == len(source)


# ---- folders ----
def test_a_folder_of_mixed_files_is_read_and_the_broken_one_is_named_and_left_out(mixed):
    with pytest.warns(UserWarning, match=r"skipped a broken image: train/b/broken.png"):
        source = open_images(mixed, split="train", image_size=16)
    assert (len(source), len(source.broken)) == (16, 1)
    assert source.class_names == ["a", "b"]
    images, _ = source.batch(slice(None))
    assert images.isfinite().all()
    assert (images.amin(), images.amax()) >= (-1, -1)
    assert images.amax() <= 1
    by_name = dict(zip(source.records["path"], images))
    assert by_name["train/b/moves.gif"][:, 8, 8].tolist() == [1, -1, -1]  # the first frame
    assert by_name["train/b/dot.png"].mean(dim=(1, 2)).tolist() == [-1, 1, -1]
    ramp = by_name["train/a/grey16.png"][0].mean(dim=1)
    assert ramp.diff().min() > 0.05  # scaled: clipping would make nearly all of it white
    assert source.captions[0] == "a/grey16"
    assert source.flippable.all()
    assert open_images(mixed, split="val", image_size=16).class_names == ["a", "b"]


def test_a_folder_without_split_folders_is_split_by_name_without_leaks(tmp_path):
    root = classes_of(tmp_path / "root", ["cat", "dog"], 50)
    opened = [open_images(root, split=split, image_size=8) for split in SPLITS]
    paths = [set(source.records["path"]) for source in opened]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 100
    assert len(paths[0]) > 70
    assert min(map(len, paths)) >= 3
    picture(1).save(root / "cat" / "new.png")  # one more file moves no other
    assert paths[0] <= set(open_images(root, split="train", image_size=8).records["path"])


def test_a_flat_folder_has_one_class(tmp_path):
    classes_of(tmp_path, ["flat"], 12)
    source = open_images(tmp_path / "flat", split="train", image_size=8)
    assert source.class_names == ["all"]
    assert source.captions[0] == Path(source.records["path"][0]).stem


def test_a_folder_too_large_for_memory_is_decoded_when_asked_and_gives_the_same(mixed, monkeypatch):
    with pytest.warns(UserWarning, match=r"broken.png"):
        small = open_images(mixed, split="train", image_size=16)
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    large = open_images(mixed, split="train", image_size=16)
    assert len(large) == 17
    by_name = dict(zip(small.records["path"], small.batch(slice(None))[0]))
    broken = large.records["path"].tolist().index("train/b/broken.png")
    with pytest.warns(UserWarning, match=r"broken.png"):
        images, _ = large.batch(slice(None))
    for i, path in enumerate(large.records["path"]):
        next_path = large.records["path"][i + 1] if i == broken else path
        assert images[i].equal(by_name[next_path])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # named once
        assert large.batch([broken])[0].equal(images[broken][None])


def test_too_many_broken_images_are_an_error(tmp_path):
    root = classes_of(tmp_path / "root", ["a"], 6)
    for i in range(4):
        (root / "a" / f"{i:03d}.png").write_bytes(b"not a picture")
    options = {"split": "train", "image_size": 8}
    (root / "train").mkdir()
    (root / "a").rename(root / "train" / "a")
    classes_of(root / "val", ["a"], 1)
    with pytest.warns(UserWarning, match="broken image"):
        assert len(open_images(root, **options)) == 2
    message = "more than max_broken=1 broken images; the last"
    with pytest.warns(UserWarning, match="broken image"), pytest.raises(ValueError, match=message):
        open_images(root, max_broken=1, **options)
    for i in (4, 5):
        (root / "train" / "a" / f"{i:03d}.png").write_bytes(b"")
    message = "not one image of split 'train' can be read"
    with pytest.warns(UserWarning, match="broken image"), pytest.raises(ValueError, match=message):
        open_images(root, **options)


def test_scale_crops_come_from_the_file_even_of_a_source_in_memory(tmp_path, monkeypatch):
    root = classes_of(tmp_path / "root", ["a"], 12)
    (root / "train").mkdir()
    (root / "a").rename(root / "train" / "a")
    crops = torch.tensor([[0.8, 0.0, 0.0], [0.8, 1.0, 1.0], [1.0, 0.0, 0.5]])
    small = open_images(root, split="train", image_size=8)
    pictures = small.read([3, 3, 5], scale_crops=crops)
    assert small.in_memory
    assert pictures.indices.tolist() == [3, 3, 5]
    assert pictures.broken == ()
    file = Image.open(root / "train" / "a" / "003.png")  # 12 x 10: the short side becomes 10
    assert pictures.pixels[0].equal(
        torch.from_numpy(np.array(file.crop((0, 0, 8, 8)))).permute(2, 0, 1)
    )
    assert pictures.pixels[1].equal(
        torch.from_numpy(np.array(file.crop((4, 2, 12, 10)))).permute(2, 0, 1)
    )
    flip = torch.tensor([True, False, False])
    assert small.batch([3, 3, 5], scale_crops=crops, flip=flip)[0][0].equal(
        pictures.pixels[0].flip(-1) / 127.5 - 1
    )
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    large = open_images(root, split="train", image_size=8)
    assert not large.in_memory
    assert large.read([3, 3, 5], scale_crops=crops).pixels.equal(pictures.pixels)
    with pytest.raises(ValueError, match=r"scale_crops must be \(2, 3\), got \(3, 3\)"):
        small.batch([0, 1], scale_crops=crops)


def test_what_a_large_source_could_not_read_is_told_and_counted_but_changes_no_fingerprint(
    mixed, monkeypatch
):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    source = open_images(mixed, split="train", image_size=16, max_broken=1)
    before, broken = source.fingerprint, source.records["path"].tolist().index("train/b/broken.png")
    pictures = source.read([broken, 0])
    assert pictures.indices.tolist() == [broken + 1, 0]
    assert len(pictures.broken) == 1
    assert pictures.broken[0].startswith("train/b/broken.png")
    assert source.broken == []  # reading counts nothing: it may happen in another process
    with pytest.warns(UserWarning, match=r"broken\.png"):
        source.count_broken([*pictures.broken, *pictures.broken])
    assert source.fingerprint == before
    with (
        pytest.warns(UserWarning, match="second"),
        pytest.raises(ValueError, match="more than max_broken=1"),
    ):
        source.count_broken(["second: bad"])


# ---- messages ----
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "emojis"},
            "no source 'emojis'; it must be 'emoji', an image folder, or Parquet",
        ),
        ({"split": "tran"}, "unknown split 'tran'; did you mean 'train'"),
        ({"labels": "catgory"}, "unknown labels for emoji 'catgory'; did you mean 'category'"),
        ({"split": "xyz"}, r"unknown split 'xyz'; choose one of \['test', 'train', 'val'\]"),
        ({"crop": "centre"}, "unknown crop 'centre'; did you mean 'center'"),
        ({"image_size": 65}, "emoji has images of 64 px, so image_size=65 is too large"),
        ({"image_size": 0}, "image_size must be a whole number of pixels >= 1, got 0"),
        ({"image_size": 32.0}, r"image_size must be a whole number of pixels >= 1, got 32\.0"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(options, message):
    kind = FileNotFoundError if "source" in options else ValueError
    with pytest.raises(kind, match=message) as caught:
        open_images(**({"source": "emoji", "image_size": 32} | options))
    assert "\n" not in str(caught.value)


def test_records_are_a_frame_of_their_own():
    source = open_images("emoji", split="val", image_size=8)
    assert isinstance(source, ImageSource)
    assert isinstance(source.records, pd.DataFrame)
    records = source.records
    records["category"] = "changed"
    assert source.records["category"].nunique() == 9
