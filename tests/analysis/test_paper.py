"""Claims are counted seed by seed, and each sentence says what the numbers say."""

import pandas as pd
import pytest

from maetok_lab.analysis.paper import claims_checked, order_by, paper_table


@pytest.fixture
def table():
    """Two seeds of two rows: NLL agrees with the paper in both, the probe in one, the diffusion loss in none."""
    columns = ["row", "seed", "nll", "probe_top1", "diffusion_loss", "kid"]
    lines = [("all", 0, 1.0, 0.7, 0.5, 1.0), ("all", 1, 1.0, 0.5, 0.5, 1.0),
             ("ae", 0, 2.0, 0.6, 0.4, 3.0), ("ae", 1, 2.0, 0.6, 0.4, 3.0), ("ae", 7, 0.0, 0.9, 0.1, 0.1)]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


def test_agreement_is_counted_over_the_seeds_that_both_rows_have(table):
    checked = claims_checked(table, "all", "ae")
    assert checked["agree"].to_dict() == {"nll": 2, "probe_top1": 1, "diffusion_loss": 0, "kid": 2}
    assert set(checked["seeds"]) == {2}
    assert checked["sentence"]["nll"] == "mixture NLL per image: all 1, ae 2; as in the paper (2 of 2 seeds)"
    assert "mixed (1 of 2 seeds)" in checked["sentence"]["probe_top1"]
    assert "not the paper's order (0 of 2 seeds)" in checked["sentence"]["diffusion_loss"]
    with pytest.raises(ValueError, match="no seed has both 'all' and 'kl'"):
        claims_checked(table, "all", "kl")


def test_rows_are_ordered_best_first_whichever_way_is_better(table):
    table = table[table["seed"] < 2]
    assert order_by(table, "nll") == ["all", "ae"]
    assert order_by(table, "diffusion_loss") == ["ae", "all"]
    assert order_by(table, "probe_top1") == ["all", "ae"] or table.groupby("row")["probe_top1"].mean().nunique() == 1


def test_the_papers_numbers_are_marked_as_such():
    table = paper_table()
    assert list(table.columns) == ["rFID (paper)", "gFID (paper)", "from"]
    assert table["gFID (paper)"]["all"] == 5.78
    assert all("Table" in place for place in table["from"])
