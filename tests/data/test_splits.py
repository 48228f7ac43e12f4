"""Splits and classes are what names say, by one rule for folders, Parquet and tars."""

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maetok_lab.data.images import open_images, open_splits
from maetok_lab.data.splits import named_split, place_pictures


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, folders: list[str], count: int = 4) -> Path:
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(png(100 * number + i))
    return root


def write_parquet(path: Path, count: int, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(i), "path": None} for i in range(count)]
    pq.write_table(pa.table({"image": images} | columns), path)


def write_tar(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(png(number))
            tar.addfile(info, io.BytesIO(png(number)))


def sizes(source: Path, **options) -> dict[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = open_splits(source, image_size=8, **options)
    return {opened[name].split if name == "test" else name: len(opened[name]) for name in opened}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("cifar10-train", "train"),
        ("split=test", "test"),
        ("val2017", "val"),
        ("imagenet1k_VALIDATION.0001", "val"),
        ("dev set", "val"),
        ("eval", "test"),
        ("trainer", None),
        ("étrain", None),
        ("testimony", None),
        ("train-and-test", None),
        ("cat", None),
    ],
)
def test_a_keyword_between_what_are_no_letters_names_a_split(name, split):
    assert named_split(name) == split


@pytest.mark.parametrize(
    "folders",
    [
        ["Train/cat", "Train/dog", "Test/cat", "Test/dog", "valid/cat", "valid/dog"],
        ["x/training/cat", "x/training/dog", "x/testing/cat", "x/testing/dog", "x/dev/dog"],
        ["cat/train", "cat/val", "cat/test", "dog/train", "dog/val", "dog/test"],
        ["train2017/a/cat", "train2017/a/dog", "val2017/a/cat", "test2017/a/dog"],
    ],
)
def test_folders_of_splits_may_have_any_case_place_and_number(tmp_path, folders):
    images = open_splits(fill(tmp_path / "root", folders), image_size=8)
    assert {part.split for part in images.values()} == {"train", "val", "test"}
    assert sum(map(len, images.values())) == 4 * len(folders)
    assert images["train"].class_names == ["cat", "dog"]


def test_a_class_called_train_is_one_beside_others_and_a_split_beside_val(tmp_path):
    flat = fill(tmp_path / "flat", ["bus", "car", "train"], 12)
    with pytest.warns(
        UserWarning, match="train is read as a class, since it says no one split, or"
    ):
        images = open_splits(flat, image_size=8)
    assert images["train"].class_names == ["bus", "car", "train"]
    assert sum(map(len, images.values())) == 36
    nested = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("bus", "train")]
    images = open_splits(fill(tmp_path / "nested", nested), image_size=8)
    assert [len(part) for part in images.values()] == [8, 8, 8]
    assert images["val"].class_names == ["bus", "train"]


def test_splits_of_shards_are_in_their_names_or_their_folders(tmp_path):
    for train, test in (("cifar10-train", "cifar10-test"), ("split=train/0", "split=test/0")):
        root = tmp_path / train.replace("/", "_")
        write_parquet(root / f"{train}.parquet", 40)
        write_parquet(root / f"{test}.parquet", 20)
        actual = sizes(root)
        assert actual["test"] == 20
        assert actual["train"] + actual["val"] == 40
    write_tar(tmp_path / "years" / "train2017.tar", [f"cat/{i}.png" for i in range(30)])
    write_tar(tmp_path / "years" / "val2017.tar", [f"cat/{i}.png" for i in range(5)])
    assert sizes(tmp_path / "years") == {"train": 30, "val": 5}
    members = [f"set/{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab"
               for i in range(4)]  # fmt: skip
    write_tar(tmp_path / "one.tar", members)
    assert sizes(tmp_path / "one.tar") == {"train": 8, "val": 8}


def test_a_shard_that_names_no_split_among_others_that_do_is_left_out(tmp_path):
    write_parquet(tmp_path / "train.parquet", 10)
    write_parquet(tmp_path / "val.parquet", 10)
    write_parquet(tmp_path / "extra.parquet", 10)
    with pytest.warns(UserWarning, match=r"1 shard left out \(extra\.parquet\): the names of"):
        assert len(open_images(tmp_path, split="train", image_size=8)) == 10
    by_hand = {"train": ["train*", "extra*"], "val": "VAL"}
    assert sizes(tmp_path, split_names=by_hand) == {"train": 20, "val": 10}


def test_forms_of_one_set_have_the_same_images_splits_labels_and_identity(tmp_path):
    root, hub, tars = tmp_path / "folder", tmp_path / "hub", tmp_path / "tars"
    for split, count in (("train", 6), ("val", 4), ("test", 2)):
        names = [f"{label}/{i}" for label in ("ant", "bee") for i in range(count)]
        encoded = [png(hash((split, number)) % 1000) for number in range(len(names))]
        rows = [{"bytes": data, "path": None} for data in encoded]
        labels = [name.split("/")[0] for name in names]
        hub.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": rows, "label": labels}), hub / f"{split}.parquet")
        tars.mkdir(exist_ok=True)
        with tarfile.open(tars / f"{split}-0.tar", "w") as tar:
            for name, data in reversed(list(zip(names, encoded))):
                info = tarfile.TarInfo(f"{name}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        for name, data in zip(names, encoded):
            path = root / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    forms = [open_splits(source, image_size=8) for source in (root, hub, tars)]
    for split in ("train", "val", "test"):
        folder, parquet, tar = (form[split] for form in forms)
        assert folder.fingerprint == parquet.fingerprint != tar.fingerprint  # of another order
        assert folder.content == parquet.content == tar.content
        assert folder.class_names == parquet.class_names == tar.class_names == ["ant", "bee"]
        assert folder.labels.equal(parquet.labels)
        assert folder.batch(slice(None))[0].equal(parquet.batch(slice(None))[0])
        assert tar.batch(slice(None))[0].flip(0).equal(folder.batch(slice(None))[0])


# Splits that are not there ------------------------------------------------------------------------


def test_a_set_without_val_gives_a_tenth_of_train_and_one_without_test_gives_val(tmp_path):
    cifar = fill(tmp_path / "cifar", ["train/a", "train/b", "test/a", "test/b"], 50)
    with pytest.warns(UserWarning, match=r"no split val: \d+ pictures of train, drawn by name"):
        images = open_splits(cifar, image_size=8)
    assert 3 <= len(images["val"]) <= 20
    assert len(images["train"]) + len(images["val"]) == 100
    assert not set(images["train"].records["path"]) & set(images["val"].records["path"])
    assert set(images["val"].records["split"]) == {"val"}
    imagenet = fill(tmp_path / "imagenet", ["train/a", "train/b", "val/a", "val/b"])
    with pytest.warns(UserWarning, match="it has no split test: val stands for it"):
        images = open_splits(imagenet, image_size=8)
    assert images["test"].split == "val"
    assert images["test"].fingerprint == images["val"].fingerprint


def test_a_test_split_without_labels_is_stood_for_by_val(tmp_path):
    for split, label in (("train", [0, 1, 1]), ("validation", [1, 0, 1]), ("test", [-1, -1, -1])):
        write_parquet(tmp_path / f"{split}.parquet", 3, label=label)
    with pytest.warns(UserWarning, match="its test pictures have no labels: val stands for it"):
        images = open_splits(tmp_path, image_size=8)
    assert images["train"].class_names == ["0", "1"]
    assert images["test"].labels.tolist() == [1, 0, 1]
    folders = fill(tmp_path / "folders", ["train/a", "train/b", "val/a", "val/b", "test"])
    assert open_splits(folders, image_size=8)["test"].split == "val"


def test_a_val_without_classes_as_imagenet_has_it_is_cut_from_train(tmp_path):
    folders = fill(tmp_path / "folders", ["train/n01", "train/n02", "val"], count=10)
    with pytest.warns(
        UserWarning, match="10 pictures of val left out: those of train have classes"
    ):
        images = open_splits(folders, image_size=8)
    assert images["test"].split == "val"
    assert images["val"].class_names == ["n01", "n02"]
    assert len(images["train"]) + len(images["val"]) == 20
    # without classes anywhere nothing is left out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = fill(tmp_path / "flat", ["train", "val", "test"])
        assert len(open_splits(flat, image_size=8)["val"]) == 4


def test_a_split_that_is_a_link_to_another_is_said(tmp_path):
    root = fill(tmp_path, ["train/a", "train/b", "test/a", "test/b"])
    (root / "val").symlink_to("train")
    with pytest.warns(UserWarning, match="same pictures are in two splits .*val/a is train/a"):
        open_splits(root, image_size=8)


def test_what_is_in_no_split_is_left_out_with_its_number(tmp_path):
    root = fill(tmp_path, ["train/a", "val/a", "masks"])
    with pytest.warns(UserWarning, match=r"4 pictures in no split left out \(masks/0\.png\)"):
        assert len(open_images(root, image_size=8)) == 4


def test_a_source_that_is_a_split_itself_is_not_dealt_out_without_a_word(tmp_path):
    root = fill(tmp_path / "train", ["a", "b"], 20)
    with pytest.warns(
        UserWarning, match='called train, but names inside it say no split: .*"train'
    ):
        open_images(root, image_size=8)
    with pytest.warns(UserWarning, match="it has no split val"):
        images = open_splits(root, image_size=8, split_names={"train": "*"})
    assert len(images["train"]) + len(images["val"]) == 40


def test_names_by_hand_that_fit_nothing_are_an_error(tmp_path):
    root = fill(tmp_path, ["a", "b"])
    with pytest.raises(
        ValueError, match=r"8 of 8 pictures are in no split \(a/0\.png\): name them by hand"
    ):
        open_images(root, image_size=8, split_names={"train": "nowhere"})
    with pytest.raises(ValueError, match="unknown key of split_names 'trian'; did you mean"):
        open_images(root, image_size=8, split_names={"trian": "a"})


def test_values_of_a_split_column_can_be_named_by_hand(tmp_path):
    path = tmp_path / "fer.parquet"
    write_parquet(path, 6, split=["Training", "PublicTest", "PrivateTest"] * 2)
    by_hand = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
    assert sizes(path, split_names=by_hand) == {"train": 2, "val": 2, "test": 2}


def test_folders_around_all_classes_are_no_class():
    placed = place_pictures(["set/v2/cat", "set/v2/dog"], ["1.png", "2.png"], {})
    assert placed.classes == ["cat", "dog"]
    assert place_pictures(["cat", "cat"], ["1.png", "2.png"], {}).classes == ["cat", "cat"]


def test_file_names_say_a_split_when_all_of_them_do():
    names = ["train_1.png", "val_1.png", "test_1.png"]
    assert place_pictures([""] * 3, names, {}).splits == ["train", "val", "test"]
    placed = place_pictures([""] * 3, ["train_1.png", "b.png", "c.png"], {})
    assert placed.drawn
    assert placed.notices[0].startswith("some file names say a split (train_1.png), others do not")


# What an attack on it found -----------------------------------------------------------------------


def test_splits_are_drawn_by_the_same_names_in_every_form(tmp_path):
    names = [f"{label}/{i:03}.png" for label in ("cat", "dog") for i in range(40)]
    for number, name in enumerate(names):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    write_tar(tmp_path / "all.tar", names)
    rows = [{"bytes": png(number), "path": name} for number, name in enumerate(names)]
    labels = [name.split("/")[0] for name in names]
    pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "data.parquet")
    pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "renamed.parquet")
    sources = ("folder", "all.tar", "data.parquet", "renamed.parquet")
    forms = [open_splits(tmp_path / source, image_size=8) for source in sources]
    for split in ("train", "val", "test"):
        assert len({form[split].content for form in forms}) == 1
        assert len({form[split].fingerprint for form in forms}) == 1


def test_a_tenth_of_train_is_the_same_in_every_form(tmp_path):
    names = [f"cat/{i:03}.png" for i in range(40)]
    for number, name in enumerate(names):
        path = tmp_path / "folder" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    write_tar(tmp_path / "tars" / "train-0.tar", names)
    with pytest.warns(UserWarning, match="no split val"):
        folder, tars = (open_splits(tmp_path / form, image_size=8) for form in ("folder", "tars"))
    assert folder["val"].content == tars["val"].content


@pytest.mark.parametrize("test_folder", ["set/Data/test", "set/Data/test/n01"])
def test_a_wrapped_set_with_a_flat_test_keeps_its_classes(tmp_path, test_folder):
    folders = [f"set/Data/{split}/n0{i}" for split in ("train", "val") for i in (1, 2)]
    images = open_splits(fill(tmp_path, [*folders, test_folder]), image_size=8)
    assert images["train"].class_names == ["n01", "n02"]
    assert images["test"].split == ("val" if test_folder.endswith("test") else "test")


def test_a_picture_beside_wrapped_class_folders_is_left_out(tmp_path):
    fill(tmp_path, ["set/cat", "set/dog"], 20)
    (tmp_path / "set" / "logo.png").write_bytes(png(0))
    with pytest.warns(UserWarning, match=r"1 picture beside .* left out \(set/logo\.png\)"):
        images = open_splits(tmp_path, image_size=8)
    assert images["val"].class_names == ["cat", "dog"]
    assert sum(map(len, images.values())) == 40


def test_the_folders_that_tell_splits_apart_are_the_splits(tmp_path):
    folders = [f"training/{split}/{name}" for split in ("train", "test") for name in ("cat", "dog")]
    assert sizes(fill(tmp_path / "a", folders, 10))["test"] == 20
    names = [f"{split}/cat/{i}.png" for split in ("train", "val", "test") for i in range(4)]
    write_tar(tmp_path / "pets-eval.tar", names)
    assert sizes(tmp_path / "pets-eval.tar") == {"train": 4, "val": 4, "test": 4}
    rows = [{"bytes": png(number), "path": name} for number, name in enumerate(names)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "data.parquet")
    assert sizes(tmp_path / "data.parquet") == {"train": 4, "val": 4, "test": 4}


@pytest.mark.parametrize("name", ["mnist-train", "Train"])
def test_sources_that_name_a_split_are_not_dealt_out_silently(tmp_path, monkeypatch, name):
    monkeypatch.chdir(fill(tmp_path / name, ["a", "b"], 20))
    with pytest.warns(UserWarning, match=f"the source is called {name}, but names inside it"):
        open_images(".", image_size=8)
    fill(tmp_path / "other", ["train_val/a", "train_val/b"], 20)
    with pytest.warns(
        UserWarning, match="train_val is read as a class, since it says no one split"
    ):
        open_images(tmp_path / "other", image_size=8)


def test_left_out_pictures_do_not_make_classes(tmp_path):
    fill(tmp_path, ["Training_imgs", "PublicTest", "extra"], 4)
    by_hand = {"train": "Training_imgs", "val": "PublicTest"}
    with pytest.warns(UserWarning, match=r"4 pictures in no split left out \(extra/0\.png\)"):
        images = open_splits(tmp_path, image_size=8, split_names=by_hand)
    assert images["train"].class_names == ["all"]
    assert len(images["val"]) == 4
    names = [f"{name}/{i}.png" for name in ("Training_imgs", "PublicTest", "extra") for i in (1, 2)]
    write_tar(tmp_path / "all.tar", names)
    tar = open_splits(tmp_path / "all.tar", image_size=8, split_names=by_hand)
    assert tar["train"].class_names == ["all"]


@pytest.mark.parametrize("wrong", ["val", ["val"], {"val": 5}, {"val": None}])
def test_split_names_of_the_wrong_kind_are_one_clear_line(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"split_names.* must be .*, not"):
        open_images(fill(tmp_path, ["a"]), image_size=8, split_names=wrong)
