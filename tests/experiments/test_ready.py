"""What is there is found and used; what is not is trained once, into the main job's runs."""

import json

import pytest

from maetok_lab.experiments import ready
from maetok_lab.experiments.ready import find_tokenizer, ready_tokenizer
from maetok_lab.runs import Run, list_runs
from maetok_lab.tokenizer.loading import export_tokenizer, load_tokenizer
from maetok_lab.tokenizer.masking import MaskingConfig
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
    Run.open(run.name, MaskingConfig(), root=tmp_path).close()
    assert find_tokenizer("tiny", root=tmp_path) == shipped, (
        "a run that is not finished is not taken"
    )
    Run.open(run.name, MaskingConfig(), root=tmp_path).finish({})
    assert find_tokenizer("tiny", root=tmp_path) == run


@pytest.mark.slow
def test_without_either_both_stages_are_trained_as_the_main_notebook_does(
    shipped, tmp_path, repository, monkeypatch, capsys
):
    folder = ready_tokenizer("test", root=tmp_path)
    assert "trained first" in capsys.readouterr().out
    steps = {run["run"]: run["step"] for _, run in list_runs(tmp_path).iterrows()}
    assert steps == {"tokenizer-test-s0": 20, "tokenizer-test-s0-tuned": 10}
    assert load_tokenizer(folder).config == TOKENIZERS["test"]
    monkeypatch.setattr(ready, "train_both_stages", lambda *_, **__: pytest.fail("trained again"))
    assert ready_tokenizer("test", root=tmp_path) == folder
    cells = json.loads((repository / "notebooks/00_start_here.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    for line in (
        'Run.open(f"tokenizer-{suffix}", config, root=runs)',
        "column = labels or lab.usual_labels(source)",
        "changed = lab.training.DECODER_TUNING[preset]",
    ):
        assert line in source, "the main notebook must find these runs and take them for its own"
