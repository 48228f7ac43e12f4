"""Walking through a folder: what is passed over is counted, and one odd file stops nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maetok_lab.data.images import open_images, open_splits
from maetok_lab.walking import Names, walk


def fill(folder: Path, count: int = 10, suffix: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.{suffix}")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("cat", "dog"):
        fill(tmp_path / "set" / name)
    return tmp_path / "set"


def opened(root: Path) -> int:
    images = open_splits(root, image_size=8)
    return len({path for part in images.values() for path in part.records["path"]})


def test_hidden_folders_are_no_classes(root):
    for name in (".ipynb_checkpoints", "cat/.ipynb_checkpoints", "@eaDir/000.png", "__MACOSX"):
        fill(root / name, 2)
    with pytest.warns(
        UserWarning, match=r"4 hidden folders left out \(\.ipynb_checkpoints, @eaDir"
    ):
        images = open_splits(root, image_size=8, splits=("train", "val"))
    assert sum(map(len, images.values())) == 20
    assert images["train"].class_names == ["cat", "dog"]


def test_links_are_followed_but_not_up_and_not_to_nowhere(root, tmp_path):
    (root / "cat" / "again").symlink_to("..")
    (root / "dog" / "x.png").symlink_to("nowhere")
    (root / "owl").symlink_to(fill(tmp_path / "elsewhere"))
    with pytest.warns(
        UserWarning, match=r"1 links to a folder above left out \(cat/again\)"
    ) as told:
        assert opened(root) == 30
    assert "1 links to nowhere left out (dog/x.png)" in str(told[0].message)
    assert len([warning for warning in told if "left out" in str(warning.message)]) == 1


def test_a_split_may_be_a_link_to_another(tmp_path):
    root = tmp_path / "set"
    for split in ("train", "val"):
        fill(root / split / "a")
    (root / "test").symlink_to("val")
    images = open_splits(root, image_size=8)
    assert [len(part) for part in images.values()] == [10, 10, 10]
    assert images["val"].fingerprint == images["test"].fingerprint


def test_a_folder_that_may_not_be_read_is_named(root):
    code = f"from maetok_lab.walking import walk; print(walk({str(root)!r}).notices())"
    command = [sys.executable, "-c", code]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("the superuser may read everything, and setpriv is not there")
        # the superuser may read everything, unless that is taken away
        powers = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", *command]
    (root / "dog").chmod(0)
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        (root / "dog").chmod(0o755)
    assert told.strip() == "['1 unreadable folders left out (dog)']"


def test_file_names_that_are_no_text_are_read_and_shown(root):
    odd = root / "cat" / os.fsdecode(b"caf\xe9.png")
    (root / "cat" / "000.png").rename(odd)
    images = open_splits(root, image_size=8, splits=("train", "val"))
    paths = [path for part in images.values() for path in part.records["path"]]
    assert r"cat/caf\xe9.png" in paths
    assert len(paths) == 20
    assert all(part.fingerprint for part in images.values())


def test_kinds_of_pictures_that_cannot_be_read_are_counted_and_jfif_can(root):
    fill(root / "cat", 3, "jfif")
    (root / "cat" / "photo.heic").write_bytes(b"")
    (root / "dog" / "drawing.svg").write_text("<svg/>")
    (root / "licence.txt").write_text("free")
    with pytest.warns(
        UserWarning, match=r"1 files of kind \.heic, which is not read, left out"
    ) as told:
        assert opened(root) == 23
    assert ".svg" in str(told[0].message)
    assert "licence" not in str(told[0].message)


def test_an_archive_beside_class_folders_is_left_out_and_pictures_beside_shards_are(root, tmp_path):
    (root / "all.tar").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"1 shards beside folders of pictures left out \(all\.tar\)"
    ):
        assert opened(root) == 20


def test_pictures_in_two_folders_of_one_name_keep_their_order(tmp_path):
    for folder in ("b", "a-z", "a"):
        fill(tmp_path / folder, 2)
    assert walk(tmp_path).paths() == [
        *("a/000.png", "a/001.png", "a-z/000.png", "a-z/001.png", "b/000.png", "b/001.png")
    ]


def test_many_names_are_kept_as_they_are():
    names = ["a/1.png", "", os.fsdecode(b"caf\xe9"), "写真"]
    packed = Names(names)
    assert list(packed) == names
    assert len(packed) == 4


def test_unread_pictures_alone_are_an_error_that_names_them(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no images: .* 1 files of kind \.heic"):
        open_images(tmp_path, image_size=8)


def test_odd_entries_stop_nothing_and_are_counted(root, tmp_path):
    os.mkfifo(root / "cat" / "pipe.png")
    os.mkfifo(root / "pipe.parquet")
    (root / "cat" / "zero.png").symlink_to("/dev/zero")
    (root / "cat" / "self.png").symlink_to("self.png")
    (root / "dog" / "folder.png").mkdir()
    fill(tmp_path / "other", 3)
    (root / "cat" / "up").symlink_to("../..")  # above the root, where other sets lie
    deep = root / "cat"
    for _ in range(230):
        deep /= "d"
    os.makedirs(deep)
    with pytest.warns(UserWarning, match="left out") as told:
        assert opened(root) == 20
    message = str(told[0].message)
    for kind in (
        "3 pipes, sockets and devices",
        "1 links that cannot be followed",
        "1 links to a folder above",
        "1 folders more than 200 deep",
    ):
        assert f"{kind} left out" in message, kind


def test_a_folder_that_goes_away_while_it_is_walked_through_is_left_out(root, monkeypatch):
    scandir = os.scandir

    def vanishing(path):
        if str(path).endswith("dog"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert walk(root).notices() == ["1 unreadable folders left out (dog)"]
