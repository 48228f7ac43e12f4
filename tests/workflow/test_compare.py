"""The comparison: every row has every number, the control meets its PSNR, and nothing is done twice."""

import pytest

from maetok_lab.analysis.paper import CLAIMS, claims_checked
from maetok_lab.runs import Run
from maetok_lab.training.early import validation_psnr
from maetok_lab.training.objective import Objective
from maetok_lab.workflow.compare import CONTROL, compare_rows, comparison_of, gather
from maetok_lab.workflow.ladder import Ladder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two rungs of the ladder at preset test, compared."""
    ladder, comparison = Ladder("test", runs=tmp_path_factory.mktemp("runs"), device="cpu"), comparison_of("test")
    rows = gather([ladder], ["ae"], comparison)
    return ladder, comparison, rows, compare_rows(rows, comparison)


def test_every_row_has_every_number_at_one_number_of_dimensions(compared):
    _, comparison, rows, table = compared
    assert table["row"].tolist() == ["ae", "all", "all, tuned", CONTROL]
    assert table.notna().all().all()
    assert table["dimensions"].nunique() == 1
    assert (table["nll_per_dim"] * table["dimensions"] - table["nll"]).abs().max() < 1e-9
    steps = {Run(row.ladder.root / name).summary["steps"] for row, name in zip(rows, table["flow"])}
    assert steps == {comparison.diffusion_steps}
    assert set(CLAIMS) <= set(table.columns)
    assert len(claims_checked(table, "all", CONTROL)) == len(CLAIMS)


def test_the_control_is_an_autoencoder_stopped_at_the_masked_models_psnr(compared):
    ladder, comparison, rows, _ = compared
    masked, control = rows[1].run, rows[3].run
    assert control.config["targets"] == []
    target = validation_psnr(masked, ladder.images["val"])
    if "target_psnr" in control.summary:
        assert control.summary["target_psnr"] == target
        assert control.summary["val_psnr"] >= target
        assert control.summary["steps"] % comparison.check_every == 0
    else:
        assert control.summary["steps"] == masked.summary["steps"]


def test_a_second_comparison_computes_nothing(compared, monkeypatch):
    ladder, comparison, _, table = compared
    monkeypatch.setattr(Objective, "forward", lambda *_: pytest.fail("it trained again"))
    monkeypatch.setattr("maetok_lab.workflow.compare.generate", lambda *_, **__: pytest.fail("it sampled again"))
    assert compare_rows(gather([ladder], ["ae"], comparison), comparison).equals(table)
