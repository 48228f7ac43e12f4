"""What a notebook read is found again by path, and known by its content."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from maetok_lab.files import write_json
from maetok_lab.runs import Run
from maetok_lab.workflow import inputs
from maetok_lab.workflow.inputs import changed_inputs, content_of_inputs
from maetok_lab.workflow.run import prepare_call, stored_result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    width: int = 1


def changed_names(contents, folder):
    return [path.name for path in changed_inputs(contents, folder)]


def test_a_parent_that_changed_runs_again(tmp_path, make_notebook):
    path = make_notebook(tmp_path / "reads.ipynb", "pass")
    with Run.open("parent", Toy(), root=tmp_path) as parent:
        parent.finish({})
    with Run.open("child", Toy(), root=tmp_path, parents=[parent]) as child:
        child.finish({})
    call = prepare_call(path, None, {"runs": tmp_path})
    contents = content_of_inputs(call.values, [child.folder], call.folder)
    assert list(contents) == [os.path.relpath(parent.folder, call.folder)]
    stored = {"numbers": {}, "runs": [], "seconds": 1.0, "ended": "now", "inputs": contents}
    write_json(call.folder / "summary.json", {**stored, **call.identity})
    for name in ("notebook.ipynb", "notebook.html"):
        (call.folder / name).touch()
    assert stored_result(call) is not None
    parent.save_checkpoint(1, {"model": {"w": torch.zeros(1)}}, {})
    assert stored_result(call) is None


@pytest.mark.parametrize("change", ["new", "other bytes", "removed", "renamed"])
def test_images_that_changed_count_and_others_do_not(tmp_path, change):
    images = tmp_path / "photos" / "cats"
    images.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (images / name).write_bytes(b"1234")
    folder = tmp_path / "runs" / "notebooks" / "n"
    contents = content_of_inputs({"source": str(tmp_path / "photos"), "seed": 0}, [], folder)
    (tmp_path / "beside.png").touch()
    assert changed_inputs(contents, folder) == []
    if change == "new":
        (images / "c.png").touch()
    elif change == "other bytes":
        (images / "b.png").write_bytes(b"4321")
        os.utime(images / "b.png", (1, 1))
    elif change == "removed":
        (images / "b.png").unlink()
    else:
        (images / "b.png").rename(images / "z.png")
    assert changed_names(contents, folder) == ["photos"]


def test_a_source_that_is_gone_cannot_have_changed(tmp_path):
    (tmp_path / "shards.tar").write_bytes(b"1")
    contents = content_of_inputs({"source": str(tmp_path / "shards.tar")}, [], tmp_path / "n")
    assert list(contents) == ["../shards.tar"]
    (tmp_path / "shards.tar").unlink()
    assert changed_inputs(contents, tmp_path / "n") == []


def test_parameters_name_runs_shipped_things_and_lists_of_them(tmp_path, monkeypatch):
    for name in ("one", "two"):
        Run.open(name, Toy(), root=tmp_path / "runs").close()
    shipped = tmp_path / "data" / "pretrained" / "tokenizer"
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")  # a folder of weights is no run
    (tmp_path / "data" / "emoji.parquet").touch()
    monkeypatch.setattr(
        inputs, "runs_root", lambda path=None: Path(path) if path else tmp_path / "runs"
    )
    values = {"runs": None, "tokenizers": ["one", "shipped/tokenizer"], "source": "emoji"}
    values |= {"diffusion": "two", "preset": "tiny", "labels": "", "steps": [1, 2], "why": "\0" * 3}
    contents = content_of_inputs(values, [tmp_path / "runs" / "two"], tmp_path / "runs")
    expected = ["../data/emoji.parquet", "../data/pretrained/tokenizer", "one"]
    assert sorted(contents) == expected
