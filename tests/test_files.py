"""A file is written whole or not at all."""

import errno
import json
from types import SimpleNamespace

import pytest

from maetok_lab.files import atomic_path, finite, read_json, read_record, write_bytes, write_json


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    write_bytes(path, b"old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the ne")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_sees_the_old_content_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_json_comes_back_and_what_it_cannot_hold_is_null(tmp_path):
    path = tmp_path / "x.json"
    infinities = (float("inf"), -float("inf"))
    data = {"a": [1, float("nan"), infinities], 3: {"b": 0.5, "c": None, "d": "ü"}}
    write_json(path, data)
    assert read_json(path) == {"a": [1, None, [None, None]], "3": {"b": 0.5, "c": None, "d": "ü"}}
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert finite(1.5) == 1.5


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"broken.json is not valid JSON: Expecting value"):
        read_json(path)


# Without room -------------------------------------------------------------------------------------

ADVICE = r"; free some \(python -m maetok_lab prune lists what can go\) and run the same again$"
STATUS = {"f_files": 100, "f_favail": 10}


def fails(problem):
    """A write that fails with `problem`, half-way."""

    def write(path):
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise problem

    return write


@pytest.mark.parametrize(
    ("problem", "free", "favail", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            5e6,
            10,
            "the disk is full: 5.0 MB are f",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            5e9,
            0,
            "this disk can hold no more fil",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            5e9,
            10,
            "your quota of this disk is used up",
        ),
        # numpy's words, and Pillow's: the system's number is lost
        (OSError("2560 requested and 1984 written"), 1e5, 10, "the disk is full: 0.1 MB are free"),
        (OSError("encoder error -2 when writing image file"), 0, 10, "the disk is full: 0.0 MB ar"),
    ],
)
def test_too_little_room_is_one_line_of_what_is_free_and_what_helps(
    tmp_path, monkeypatch, problem, free, favail, words
):
    status = SimpleNamespace(**STATUS | {"f_favail": favail})
    monkeypatch.setattr("maetok_lab.files.os.statvfs", lambda path: status)
    monkeypatch.setattr(
        "maetok_lab.files.shutil.disk_usage", lambda path: SimpleNamespace(free=free)
    )
    path = tmp_path / "new" / "file"
    with pytest.raises(OSError, match=f"{path} was not written: {words}.*{ADVICE}") as caught:
        fails(problem)(path)
    assert caught.value.errno == problem.errno or errno.ENOSPC
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    "problem", [OSError(errno.EACCES, "Permission denied"), OSError("odd"), ValueError("mine")]
)
def test_what_has_nothing_to_do_with_room_stays_what_it_is(tmp_path, problem):
    with pytest.raises(type(problem)) as caught:
        fails(problem)(tmp_path / "file")
    assert caught.value is problem


def test_json_that_is_no_text_or_nested_without_end_is_named(tmp_path):
    path = tmp_path / "odd.json"
    for content in (b"\xff\xfe\xfa", b"[" * 100_000, b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"odd.json is not valid JSON"):
            read_json(path)
    for content, words in ((b"[]", "holds no JSON object, but a list"), (b"{}", "it has no step")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"odd.json.*{words}"):
            read_record(path, needs=["step"])
