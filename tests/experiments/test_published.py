"""Claims are counted seed by seed, and other people's numbers are marked as such."""

import pandas as pd
import pytest
from scipy import stats

import maetok_lab as lab
from maetok_lab.experiments.published import claims_checked, paper_table


@pytest.fixture
def table():
    """Two seeds: NLL agrees with the paper in both, the probe in one, the loss in none."""
    columns = ["row", "seed", "nll", "probe_top1", "diffusion_loss", "kid", "kid_gap"]
    lines = [
        ("all", 0, 1.0, 0.7, 0.5, 1.0, 2.0),
        ("all", 1, 1.0, 0.5, 0.5, 1.0, 2.0),
        ("ae", 0, 2.0, 0.6, 0.4, 3.0, 1.0),
        ("ae", 1, 2.0, 0.6, 0.4, 3.0, 3.0),
        ("ae", 7, 0.0, 0.9, 0.1, 0.1, 0.1),
    ]
    return pd.DataFrame(lines, columns=columns)


def test_agreement_is_counted_over_the_seeds_that_both_rows_have(table):
    checked = claims_checked(table, "all", "ae", nll="nll")
    assert checked["agree"].to_dict() == {
        "nll": 2,
        "probe_top1": 1,
        "diffusion_loss": 0,
        "kid": 2,
        "kid_gap": 1,
    }
    assert set(checked["seeds"]) == {2}
    assert checked.loc["nll", ["all", "ae"]].tolist() == [1.0, 2.0]
    assert checked.loc["probe_top1", ["all", "ae"]].tolist() == [0.6, 0.6]
    assert list(checked.columns) == ["all", "ae", "seeds", "agree"]
    with pytest.raises(ValueError, match="no seed has both 'all' and 'kl'"):
        claims_checked(table, "all", "kl", nll="nll")


def test_the_papers_numbers_are_marked_as_such():
    table = paper_table()
    assert list(table.columns) == ["rFID (paper)", "gFID (paper)", "from"]
    assert table["gFID (paper)"]["all"] == 5.78
    assert all("Table" in place for place in table["from"])


def test_published_ifid_ranks_gfid_and_rfid_does_not():
    table = lab.experiments.published_correlation("SiT-XL")
    assert table.tokenizers["ifid"] == 14
    assert table.rho["ifid"] == pytest.approx(0.881, abs=0.001)
    assert table.low["ifid"] > 0.5
    assert table.low["rfid"] < 0 < table.high["rfid"]
    pairs = lab.tokenizer.study_results("SiT-B")[["ifid", "gfid"]].dropna()
    expected = stats.spearmanr(pairs.ifid, pairs.gfid).statistic
    assert lab.experiments.published_correlation("SiT-B").rho["ifid"] == pytest.approx(expected)
    # the study's own "about .85" is Pearson's
    assert stats.pearsonr(pairs.ifid, pairs.gfid).statistic == pytest.approx(0.856, abs=0.001)


def test_what_each_measure_predicts_is_there_for_two_models():
    table = lab.experiments.published_predictors()
    strongest = table.sort_values("abs_r").groupby("model").measure.last()
    assert strongest.to_dict() == {"SiT-B": "viv", "LightningDiT-XL": "srss"}
    assert set(table.tokenizers) == {43}


def test_published_results_are_reached_from_the_studies_too():
    assert lab.experiments.published_results("gfid").equals(lab.tokenizer.published_results("gfid"))
