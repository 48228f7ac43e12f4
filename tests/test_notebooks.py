"""Every notebook reads well, and runs: in order, every cell twice, into one runs folder."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import papermill
import pytest

from maetok_lab.analysis.masks import HIDE_ORDERS, MASK_KINDS
from maetok_lab.analysis.projection import Method as MapMethod
from maetok_lab.data.splits import SPLITS
from maetok_lab.diffusion.model import DiffusionConfig
from maetok_lab.diffusion.sampling import Method as Sampler
from maetok_lab.experiments.study import STUDIES, study_table
from maetok_lab.runs import Run
from maetok_lab.training.presets import (
    ARCHITECTURES,
    DECODER_TUNING,
    DIFFUSION_TRAINING,
    TOKENIZER_TRAINING,
)
from maetok_lab.training.rungs import RUNGS
from maetok_lab.workflow import run_notebook, sweep
from maetok_lab.workflow.parameters import read_cells, read_parameters
from maetok_lab.workflow.spec import read_spec
from maetok_lab.workflow.summary import collect

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
MAIN = "00_start_here.ipynb"
TRAININGS = {"00_start_here", "02_train_tokenizer", "03_finetune_decoder", "06_train_diffusion"}
VALUES = tomllib.loads(Path(__file__).with_name("notebook_values.toml").read_text())
LONGEST_CELL = (
    15  # lines; the design's 12, and brackets that the formatter sets on lines of their own
)
MOST_PARAMETERS = 20  # a table: one a line, each with its comment
LONGEST_FUNCTION = 5
LONGEST_LINE = 95
MOST_IMPORTS = 4

# What a notebook hands a word to knows these: the choices that its metadata lists.
EVERY_PRESET = TOKENIZER_TRAINING | DIFFUSION_TRAINING
PRESETS = {
    "00_start_here": [name for name in DECODER_TUNING if name in DIFFUSION_TRAINING],
    "01_images": EVERY_PRESET,
    "02_train_tokenizer": TOKENIZER_TRAINING,
    "03_finetune_decoder": DECODER_TUNING,
    "04_mask_studio": DECODER_TUNING,
    "05_latent_space": DIFFUSION_TRAINING,
    "06_train_diffusion": DIFFUSION_TRAINING,
    "07_generation_sweep": EVERY_PRESET,
    "08_evaluate": EVERY_PRESET,
    "09_compare_tokenizers": STUDIES,
    "10_will_it_fit": TOKENIZER_TRAINING,
    "11_study_row": STUDIES,
    "mask_demo": DECODER_TUNING,
}
WORDS = {
    ("01_images", "split"): SPLITS,
    ("02_train_tokenizer", "rung"): [*RUNGS, "preset"],
    ("04_mask_studio", "kind"): MASK_KINDS,
    ("05_latent_space", "map_method"): get_args(MapMethod),
    ("06_train_diffusion", "architecture"): ARCHITECTURES,
    ("06_train_diffusion", "positions"): get_args(get_type_hints(DiffusionConfig)["positions"]),
    ("07_generation_sweep", "samplers"): get_args(Sampler),
    ("08_evaluate", "class_balance"): ["equal", "random", "none"],
    ("09_compare_tokenizers", "results"): get_args(get_type_hints(study_table)["results"]),
    ("10_will_it_fit", "diffusion"): DIFFUSION_TRAINING,
    ("mask_demo", "kind"): HIDE_ORDERS,
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in read_cells(path) if cell["cell_type"] == "code"]


def tags(cell):
    return cell.get("metadata", {}).get("tags", [])


@each_notebook
def test_only_the_first_code_cell_holds_parameters_and_preset_comes_first(path):
    first, *others = code_cells(path)
    assert "parameters" in tags(first)
    assert not [cell for cell in others if {"parameters", "injected-parameters"} & set(tags(cell))]
    parameters = read_parameters(path)
    assert next(iter(parameters)) == "preset"
    lines = first["source"].strip().splitlines()
    assert len(lines) == len(parameters), "one assignment a line"
    for parameter in parameters.values():
        assert parameter.description, f"{parameter.name} needs a comment"
        assert not isinstance(parameter.default, tuple), (
            f"{parameter.name}: papermill turns tuples into strings"
        )


@each_notebook
def test_the_choices_of_a_parameter_are_the_librarys(path):
    words = {name: values for (notebook, name), values in WORDS.items() if notebook == path.stem}
    words["preset"] = PRESETS[path.stem]
    for parameter in read_parameters(path).values():
        assert set(parameter.choices) == set(words.get(parameter.name, ())), parameter.name


@each_notebook
def test_an_unknown_preset_or_device_is_refused_before_any_kernel(path, monkeypatch, tmp_path):
    monkeypatch.setattr("maetok_lab.workflow.run.execute", None)
    with pytest.raises(ValueError, match="unknown preset 'tset'; did you mean 'test'"):
        run_notebook(path, tmp_path / "out", preset="tset")
    if "device" in read_parameters(path):
        with pytest.raises(ValueError, match="unknown device 'gpu'; did you mean 'cpu'"):
            run_notebook(path, tmp_path / "out", device="gpu")
    assert not (tmp_path / "out").exists()


@each_notebook
def test_papermill_sees_the_same_parameters(path):
    # of a line with two equal signs, in its comment too, it sees none
    names = list(papermill.inspect_notebook(str(path)))
    assert names == list(read_parameters(path))


@each_notebook
def test_cells_are_short_and_hold_no_machinery(path):
    for cell in code_cells(path):
        source = cell["source"]
        assert source.strip(), "an empty cell"
        longest = MOST_PARAMETERS if "parameters" in tags(cell) else LONGEST_CELL
        assert len(source.splitlines()) <= longest, source
        assert not re.search(
            r"^\s*[!%]|sys\.path|filterwarnings|pip install", source, re.MULTILINE
        ), source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, (
                    f"{node.name} belongs into the library"
                )


@each_notebook
def test_a_floor_is_of_training_images(path):
    # where none are given it is of two halves: another number under the same name
    cells = [cell["source"] for cell in code_cells(path)]
    scoring = [number for number, cell in enumerate(cells) if "evaluate_generation(" in cell]
    for number in scoring[:1]:  # later ones may take the same options
        assert "second_reference" in cells[number]


@each_notebook
def test_imports_are_few_and_parameters_stay_what_they_are(path):
    parameters = set(read_parameters(path))
    source = "\n".join(cell["source"] for cell in code_cells(path)[1:])
    nodes = list(ast.walk(ast.parse(re.sub(r"^(\s*)await ", r"\1", source, flags=re.MULTILINE))))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imports) <= MOST_IMPORTS
    names = [node for node in nodes if isinstance(node, ast.Name)]
    rebound = {node.id for node in names if isinstance(node.ctx, ast.Store)} & parameters
    assert not rebound, f"parameters are never rebound: {rebound}"
    # the smaller values of a test come from tests/notebook_values.toml
    for node in nodes:
        if isinstance(node, ast.Compare):
            compared = {
                part.id for part in [node.left, *node.comparators] if isinstance(part, ast.Name)
            }
            assert "preset" not in compared, f"a branch on the preset: {ast.unparse(node)}"


@each_notebook
def test_trainings_can_be_named_and_changed_and_tests_know_the_parameters(path):
    parameters = read_parameters(path)
    assert set(VALUES.get(path.stem, {})) <= set(parameters)
    if path.stem in TRAININGS:
        assert (parameters["changes"].default, parameters["name"].default) == ({}, None)


@each_notebook
def test_lines_of_code_fit(path):
    assert not [
        line
        for cell in code_cells(path)
        for line in cell["source"].splitlines()
        if len(line) > LONGEST_LINE
    ]


@each_notebook
def test_outputs_are_stripped(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not {"widgets", "papermill"} & set(notebook["metadata"])
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One runs folder for all notebooks: a later one may read what an earlier one made."""
    return tmp_path_factory.mktemp("runs")


def values_for(path, runs):
    """Preset `test` and the tests' values, into the temporary folder."""
    values = {"preset": "test", **VALUES.get(path.stem, {})}
    if "runs" in read_parameters(path):
        values["runs"] = str(runs)
    return values


@pytest.fixture
def twice(tmp_path):
    """`twice(path)`: the notebook with every cell of code but the parameters twice in a row."""

    def double(path: Path) -> Path:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = []
        for cell in notebook["cells"]:
            cells.append(cell)
            if cell["cell_type"] == "code" and "parameters" not in tags(cell):
                cells.append({**cell, "id": f"{cell['id']}-again"})
        notebook["cells"] = cells
        doubled = tmp_path / path.name
        doubled.write_text(json.dumps(notebook), encoding="utf-8")
        return doubled

    return double


@pytest.mark.notebooks
@each_notebook
def test_it_runs_every_cell_twice_and_leaves_finished_runs(path, runs, twice):
    result = run_notebook(twice(path), runs / "notebooks" / path.stem, **values_for(path, runs))
    assert result.ran_now
    assert result.html.stat().st_size > 1000
    for run in result.runs:
        assert run.is_relative_to(runs), f"{run} is outside of the folder it was asked to use"
    if path.name == MAIN:
        assert result.numbers
        assert result.runs


@pytest.mark.notebooks
@pytest.mark.skipif(
    MAIN not in [path.name for path in NOTEBOOKS], reason="there is no main notebook"
)
def test_the_main_notebook_runs_under_plain_papermill_and_finds_its_finished_runs(
    runs, tmp_path, repository
):
    path = repository / "notebooks" / MAIN
    words = []
    for name, value in values_for(path, runs).items():
        words += ["-p", name, str(value)]
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar"]
    subprocess.run(
        [*command, str(path), str(tmp_path / "out.ipynb"), *words],
        check=True,
        cwd=tmp_path,
        timeout=500,
    )
    numbers, made = collect(read_cells(tmp_path / "out.ipynb"))
    assert numbers
    assert all((Path(run) / "summary.json").exists() for run in made)


@pytest.mark.notebooks
def test_the_shipped_sweep_scores_one_setting_an_entry_of_the_model_that_is_there(runs, repository):
    path = repository / "notebooks" / "07_generation_sweep.toml"
    changes = {"preset": "test"}
    # the lists of settings are the sweep's own
    for name, value in VALUES["07_generation_sweep"].items():
        if name not in read_spec(path).swept:
            changes[name] = value
    spec = read_spec(path, changes)
    assert len(spec.entries) == 32
    result = sweep(dataclasses.replace(spec, entries=spec.entries[-1:]), runs=runs)
    assert result.table["state"].tolist() == ["done"]
    assert (result.best["settings"], result.best["best_scale"], result.best["best_sampler"]) == (
        1,
        4.5,
        "heun",
    )
    assert result.best["kid_floor"] != result.best["best_kid"]
    assert {"pareto.png", "gallery.png"} <= {path.name for path in result.folder.iterdir()}


@pytest.mark.notebooks
def test_an_entry_of_the_studys_sweep_is_a_row_that_notebook_09_reads(runs, repository):
    spec = read_spec(repository / "notebooks" / "11_study_row.toml", {"preset": "test"})
    result = sweep(dataclasses.replace(spec, entries=spec.entries[:1]), runs=runs)
    assert result.table["state"].tolist() == ["done"]
    row = Run(runs / "study-ae-test-s0")
    assert row.config["row"] == spec.entries[0]["row"] == "ae"
    assert result.best["kid"] == row.summary["kid"]
