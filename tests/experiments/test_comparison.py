"""The comparison: every row has every number, the control meets its PSNR, nothing is done twice."""

import pytest

from maetok_lab.analysis.card import cards_of
from maetok_lab.evaluation.protocol import EvalResult
from maetok_lab.experiments.cards import SAMPLES_FILE
from maetok_lab.experiments.comparison import (
    CONTROL,
    GAP_FILE,
    compare_rows,
    comparison_of,
    equal_psnr_control,
    gather,
)
from maetok_lab.experiments.ladder import Ladder
from maetok_lab.experiments.published import CLAIMS, claims_checked, equal_psnr
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.objective import Objective
from maetok_lab.training.tokenizer import validation_psnr

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two rungs of the ladder at preset test, compared."""
    ladder = Ladder("test", seed=3, root=tmp_path_factory.mktemp("runs"), device="cpu")
    comparison = comparison_of("test")
    rows = gather([ladder], ["ae"], comparison)
    return ladder, comparison, rows, compare_rows(rows, comparison)


def test_every_row_has_every_number_at_one_number_of_dimensions(compared):
    ladder, comparison, rows, table = compared
    assert table["row"].tolist() == ["ae", "all", "all, tuned", CONTROL]
    # what `climb` trains, if it was there
    names = [ladder.name("ae"), ladder.name("all"), ladder.name("all", tuned=True)]
    assert table["run"].tolist()[:3] == names
    assert table.notna().all().all()
    assert table["dimensions"].nunique() == 1
    assert (table["nll_per_dim"] * table["dimensions"] - table["nll"]).abs().max() < 1e-9
    steps = {Run(row.ladder.root / name).summary["steps"] for row, name in zip(rows, table["flow"])}
    assert steps == {comparison.diffusion_steps}
    assert set(CLAIMS) <= set(table.columns)
    assert len(claims_checked(table, "all", CONTROL)) == len(CLAIMS)


def test_a_rows_linear_probe_is_one_number(compared):
    ladder, _, _, table = compared
    for _, line in table.iterrows():
        score = ladder.score(Run(ladder.root / line["run"]))
        assert line["probe_top1"] == score.metrics["probe_top1"]
        stated = cards_of([ladder.root / line["card"]])[line["card"]].attrs["definitions"]
        count = len(ladder.images["val"])
        assert stated["probe_top1"]["settings"]["chosen_on"] == f"{count} validation rows"


def test_the_generation_gap_is_to_the_rows_own_reconstructions(compared):
    ladder, _, rows, table = compared
    folders = [ladder.root / f"{row.run.name}-evaluation" for row in rows]
    files = [
        [EvalResult.load(folder / name) for name in (SAMPLES_FILE, GAP_FILE)] for folder in folders
    ]
    assert [gap.metrics["kid_efflite2"] for _, gap in files] == table["kid_gap"].tolist()
    references = [
        {result.protocol.reference_sha256 for result in results} for results in zip(*files)
    ]
    assert len(references[0]) == 1  # the test images
    # in so few steps the control may never be as good as it should, and end as `ae` itself does
    weights = {load_tokenizer(row.run.folder).fingerprint for row in rows}
    assert len(references[1]) == len(weights) >= len(rows) - 1


@pytest.mark.parametrize(("target", "met"), [(0.0, True), (99.0, False)])
def test_the_control_is_an_autoencoder_stopped_at_the_masked_models_psnr(
    compared, tmp_path, monkeypatch, target, met
):
    _, comparison, rows, _ = compared
    ladder = Ladder("test", seed=3, root=tmp_path, device="cpu")
    monkeypatch.setattr(
        "maetok_lab.experiments.comparison.validation_psnr", lambda run, images: target
    )
    masked = rows[1].run
    control = equal_psnr_control(ladder, masked, comparison)
    assert control.config["targets"] == []
    assert control.name == masked.name.replace("ladder-", "ladder-control-")
    if met:  # at the first look
        assert control.summary["target_psnr"] == target
        assert control.summary["val_psnr"] >= target
        assert control.summary["steps"] == comparison.check_every
    else:  # the whole training, and no claim to have met anything
        assert "target_psnr" not in control.summary
        assert control.summary["steps"] == masked.summary["steps"]


def test_the_table_tells_whether_the_control_met_its_target(compared):
    ladder, _, rows, table = compared
    psnr = table.set_index("row")["val_psnr"]
    assert psnr["all"] == validation_psnr(rows[1].run, ladder.images["val"])
    assert ("target_psnr" in rows[3].run.summary) == (psnr[CONTROL] >= psnr["all"])
    matched = equal_psnr(table, "all", CONTROL)["matched"]
    assert matched.tolist() == [psnr[CONTROL] >= psnr["all"]]


def test_cards_and_flows_have_the_seed_of_their_ladder(compared):
    ladder, _, _, table = compared
    cards = cards_of(ladder.root / name for name in table["card"])
    assert {card.attrs["settings"]["seed"] for card in cards.values()} == {ladder.seed}
    assert {Run(ladder.root / name).config["seed"] for name in table["flow"]} == {ladder.seed}


def test_a_second_comparison_computes_nothing(compared, monkeypatch):
    ladder, comparison, _, table = compared
    monkeypatch.setattr(Objective, "forward", lambda *_: pytest.fail("it trained again"))
    monkeypatch.setattr(
        "maetok_lab.experiments.comparison.generate",
        lambda *_, **__: pytest.fail("it sampled again"),
    )
    assert compare_rows(gather([ladder], ["ae"], comparison), comparison).equals(table)
