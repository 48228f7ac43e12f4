"""Runs side by side: only what differs, only what was logged."""

import dataclasses
import json

import pytest

from maetok_lab.runs import Run, list_runs
from maetok_lab.runs.tables import (
    config_differences,
    logged_columns,
    loss_lines,
    notebooks_of,
    sample_pictures,
)
from maetok_lab.widgets.run_browser import RunBrowser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    targets: tuple[str, ...] = ("hog",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    seed: int = 0
    inner: Inner = Inner()


@pytest.fixture
def runs(tmp_path):
    configs = {"a": Outer(), "b": Outer(seed=1, inner=Inner(targets=("hog", "semantic")))}
    runs = [Run.open(name, config, root=tmp_path) for name, config in configs.items()]
    for step in (1, 2):
        runs[0].log(
            {"step": step, "images": 4 * step, "split": "train", "pixel": 1 / step, "skipped": 0}
        )
        runs[1].log({"step": step, "split": "train", "pixel": 2 / step, "auxiliary/hog": 3.0})
    runs[1].log({"step": 2, "split": "val", "psnr": 20.0})
    return runs


def test_only_fields_that_differ_are_in_the_table(runs):
    table = config_differences(runs)
    assert table.to_dict("index") == {
        "seed": {"a": "0", "b": "1"},
        "inner.targets.1": {"a": "", "b": "semantic"},
    }
    assert config_differences(runs[:1]).empty


def test_columns_that_most_runs_have_come_first(runs):
    assert logged_columns(runs) == ["pixel", "auxiliary/hog"]
    assert logged_columns(runs, split="val") == ["psnr"]


def test_lines_are_of_the_runs_that_have_the_column(runs):
    lines = loss_lines(runs, "pixel")
    assert lines["a"].to_dict("list") == {"step": [1, 2], "images": [4, 8], "pixel": [1.0, 0.5]}
    assert lines["b"].columns.tolist() == ["step", "pixel"]
    assert list(loss_lines(runs, "auxiliary/hog")) == ["b"]


def test_pictures_come_by_step(runs):
    assert sample_pictures(runs[0]) == {}
    paths = {step: runs[0].sample_path(step) for step in (200, 10)}
    for path in paths.values():
        path.write_bytes(b"")
    assert list(sample_pictures(runs[0]).items()) == [(10, paths[10]), (200, paths[200])]


def test_a_notebook_belongs_to_the_runs_it_reported(runs, tmp_path):
    folder = tmp_path / "notebooks" / "demo"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"runs": ["../../a"]}))
    (folder / "notebook.ipynb").write_text("{}")
    assert notebooks_of(runs[0], tmp_path) == [folder / "notebook.ipynb"]
    (folder / "notebook.html").write_text("")
    assert notebooks_of(runs[0], tmp_path) == [folder / "notebook.html"]
    assert notebooks_of(runs[1], tmp_path) == []


@pytest.mark.parametrize("name", ["config", "provenance", "summary"])
@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_one_damaged_run_stops_neither_the_list_nor_the_browser(tmp_path, name, content):
    for run_name in ("a", "b", "c"):
        with Run.open(run_name, Outer(), root=tmp_path) as run:
            run.log({"step": 1, "images": 4, "split": "train", "pixel": 1.0})
            run.finish({"pixel": 1.0})
    (tmp_path / "b" / f"{name}.json").write_text(content)
    table = list_runs(tmp_path).set_index("run")
    assert table.index.tolist() == ["a", "b", "c"]
    assert table["finished"].tolist() == [True, name == "provenance", True]
    is_fine = (name, content) == ("provenance", "{}")  # nothing in it is needed for the list
    if not is_fine:
        assert f"{name}.json" in table.loc["b", "problem"]
        assert table["problem"].isna().tolist() == [True, False, True]
    pytest.importorskip("ipywidgets")
    browser = RunBrowser(tmp_path)
    assert browser.names == (["a", "c"] if name == "config" else ["a", "b", "c"])


def test_a_damaged_notebook_summary_hides_no_other(tmp_path):
    run = Run.open("a", Outer(), root=tmp_path)
    for name, content in (("bad", ""), ("good", json.dumps({"runs": ["../../a"]}))):
        folder = tmp_path / "notebooks" / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(content)
        (folder / "notebook.ipynb").write_text("{}")
    assert notebooks_of(run, tmp_path) == [tmp_path / "notebooks" / "good" / "notebook.ipynb"]


def test_pictures_of_a_persons_own_are_no_steps(tmp_path):
    run = Run.open("a", Outer(), root=tmp_path)
    for name in ("step-0000010.png", "step-0000010-best.png", "step-x.png"):
        (run.sample_path(0).parent / name).write_bytes(b"")
    assert list(sample_pictures(run)) == [10]
