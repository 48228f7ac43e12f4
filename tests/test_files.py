"""A file is written whole or not at all."""

import json

import pytest

from maetok_lab.files import atomic_path, finite, read_json, write_bytes, write_json


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
