"""What is there is found and used; what is not is trained once, into the main job's runs."""

import json

import pytest

from maetok_lab.experiments import ready
from maetok_lab.experiments.ready import find_tokenizer, ready_tokenizer
from maetok_lab.tokenizer.loading import export_tokenizer, load_tokenizer
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "SHIPPED", tmp_path / "pretrained")
    return tmp_path / "pretrained" / "tokenizer"


def test_a_finished_run_comes_before_shipped_weights_and_those_are_of_one_training(
    shipped, tmp_path
):
    assert find_tokenizer("tiny", root=tmp_path) is None
    export_tokenizer(Tokenizer(TOKENIZERS["tiny"]), shipped)
    assert find_tokenizer("tiny", root=tmp_path) == shipped
    assert load_tokenizer(shipped).config == TOKENIZERS["tiny"]
    for other in ({"preset": "test"}, {"seed": 1}, {"source": tmp_path / "photos"}):
        assert find_tokenizer(**{"preset": "tiny", "root": tmp_path} | other) is None
    run = tmp_path / "tokenizer-tiny-s0-tuned"
    run.mkdir()
    assert find_tokenizer("tiny", root=tmp_path) == shipped, (
        "a run that is not finished is not taken"
    )
    (run / "summary.json").write_text("{}")
    assert find_tokenizer("tiny", root=tmp_path) == run


@pytest.mark.slow
def test_without_either_both_stages_are_trained_as_the_main_notebook_does(
    shipped, tmp_path, repository
):
    told, steps = [], {}
    asked = {
        "root": tmp_path,
        "write": told.append,
        "follow": lambda title: lambda record: steps.update({title: record.step}),
    }
    found = ready_tokenizer("test", **asked)
    assert "trained first" in told[0]
    assert steps == {"tokenizer": 20, "decoder tuning": 10}
    assert load_tokenizer(found).config == TOKENIZERS["test"]
    steps.clear()
    assert ready_tokenizer("test", **asked) == found
    assert steps == {}
    cells = json.loads((repository / "notebooks/00_start_here.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    for line in (
        'Run.open(f"tokenizer-{name}", config, root=runs)',
        'labels = "category-style"',
        "**DECODER_TUNING[preset]",
    ):
        assert line in source, "the main notebook must find these runs and take them for its own"
