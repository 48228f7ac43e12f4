"""The identity of images is that of their bytes: in any process, after a move, of any container."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maetok_lab.data import digests, sources
from maetok_lab.data.images import open_images


def encoded(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(first: int, broken: bool) -> list[bytes]:
    data = [encoded(first + i, "BMP") for i in range(6)]
    return [b"<html>404", *data[1:]] if broken else data


def as_folder(root: Path, data: list[bytes], split: str) -> None:
    (root / split / "a").mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(data):
        (root / split / "a" / f"{i}.bmp").write_bytes(content)


def as_parquet(root: Path, data: list[bytes], split: str) -> None:
    root.mkdir(exist_ok=True)
    rows = [{"bytes": content, "path": f"{i}.bmp"} for i, content in enumerate(data)]
    pq.write_table(pa.table({"image": rows}), root / f"{split}.parquet")


def as_tar(root: Path, data: list[bytes], split: str) -> None:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / f"{split}.tar", "w") as tar:
        for i, content in enumerate(data):
            info = tarfile.TarInfo(f"a/{i}.bmp")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


FORMS = [as_folder, as_parquet, as_tar]


def fingerprint(root: Path, split: str = "train") -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_images(root, split=split, image_size=8).fingerprint


def fingerprint_elsewhere(root: Path, cache: Path) -> str:
    """As another process, which has nothing of what this one kept, sees it."""
    code = (
        "import sys; from maetok_lab.data.images import open_images;"
        "print(open_images(sys.argv[1], image_size=8).fingerprint)"
    )
    environment = os.environ | {"MAETOK_LAB_CACHE": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", code, str(root)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("write", FORMS)
def test_identity_is_that_of_the_bytes_in_two_processes_and_after_a_move(tmp_path, write, broken):
    here = tmp_path / "here"
    write(here, pictures(0, broken), "train")
    write(here, pictures(10, False), "val")
    before = fingerprint(here)
    assert fingerprint_elsewhere(here, tmp_path / "cache") == before
    shutil.move(here, tmp_path / "there")
    assert fingerprint(tmp_path / "there") == before
    shutil.copytree(tmp_path / "there", tmp_path / "copy")  # with other times
    assert fingerprint(tmp_path / "copy") == before


@pytest.mark.parametrize("write", FORMS)
def test_another_split_changes_nothing_and_other_pixels_of_one_size_do(tmp_path, write):
    root = tmp_path / "set"
    write(root, pictures(0, False), "train")
    write(root, pictures(10, False), "val")
    before = fingerprint(root)
    write(root, pictures(20, False), "test")
    assert fingerprint(root) == before
    write(root, [*pictures(0, False)[:5], encoded(99, "BMP")], "train")
    assert fingerprint(root) != before
    write(root, pictures(0, False), "train")
    assert fingerprint(root) == before


def test_classes_and_their_order_are_part_of_it(tmp_path):
    as_folder(tmp_path, pictures(0, False), "train")
    as_folder(tmp_path, pictures(10, False), "val")
    before = fingerprint(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "a").rename(tmp_path / split / "b")
    assert fingerprint(tmp_path) != before


def test_only_new_and_changed_files_are_read_again(tmp_path, monkeypatch):
    as_folder(tmp_path, pictures(0, False), "train")
    as_folder(tmp_path, pictures(10, False), "val")
    before = fingerprint(tmp_path)
    hashed = []
    read = digests.file_digest
    monkeypatch.setattr(
        "maetok_lab.data.folders.file_digest", lambda path: hashed.append(path) or read(path)
    )
    assert fingerprint(tmp_path) == before
    assert hashed == []
    (tmp_path / "train" / "a" / "new.bmp").write_bytes(encoded(50, "BMP"))
    (tmp_path / "train" / "a" / "3.bmp").write_bytes(encoded(51, "BMP"))
    assert fingerprint(tmp_path) != before
    assert [Path(path).name for path in hashed] == ["3.bmp", "new.bmp"]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_was_kept_may_be_lost_damaged_or_impossible_to_write(tmp_path, monkeypatch, content):
    as_folder(tmp_path / "set", pictures(0, False), "train")
    as_folder(tmp_path / "set", pictures(10, False), "val")
    monkeypatch.setenv("MAETOK_LAB_CACHE", str(tmp_path / "cache"))
    before = fingerprint(tmp_path / "set")
    (kept,) = (tmp_path / "cache").glob("digests-*.npz")
    kept.write_bytes(content)
    assert fingerprint(tmp_path / "set") == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAETOK_LAB_CACHE", str(tmp_path / "file"))
    assert fingerprint(tmp_path / "set") == before
    source = open_images(tmp_path / "set", image_size=8)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*file \(.*MAETOK_LAB_CACHE names"):
        assert source.fingerprint == before


def test_pictures_that_a_parquet_only_names_are_read_and_hashed_where_they_lie(tmp_path):
    for i, data in enumerate(pictures(0, False)):
        (tmp_path / f"{i}.bmp").write_bytes(data)
    rows = [{"bytes": None, "path": f"{i}.bmp"} for i in range(6)]
    for split in ("train", "val"):
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{split}.parquet")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "3.bmp").write_bytes(encoded(99, "BMP"))
    assert fingerprint(tmp_path) != before


def test_a_broken_picture_is_part_of_the_content_whatever_is_held_in_memory(tmp_path, monkeypatch):
    as_folder(tmp_path, pictures(0, True), "train")
    as_folder(tmp_path, pictures(10, False), "val")
    before = fingerprint(tmp_path)
    monkeypatch.setattr("maetok_lab.data.images._IN_MEMORY", 0)
    assert fingerprint(tmp_path) == before


def test_a_file_made_of_the_shipped_one_has_its_own_identity(tmp_path):
    table = pq.read_table(sources.EMOJI).slice(0, 40)
    pq.write_table(table, tmp_path / "own.parquet")
    before = fingerprint(tmp_path)
    pq.write_table(table.slice(0, 39), tmp_path / "own.parquet")
    assert fingerprint(tmp_path) != before


def test_without_a_home_there_is_a_place_for_digests(monkeypatch):
    monkeypatch.delenv("MAETOK_LAB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert digests.kept_folder().name == "maetok_lab"


def test_another_persons_lock_stops_nobody(tmp_path, monkeypatch):
    as_folder(tmp_path / "set", pictures(0, False), "train")
    as_folder(tmp_path / "set", pictures(10, False), "val")
    before = fingerprint(tmp_path / "set")

    def refuse(lock):
        raise PermissionError("another's")

    monkeypatch.setattr(digests.FileLock, "acquire", refuse)
    assert fingerprint(tmp_path / "set") == before
