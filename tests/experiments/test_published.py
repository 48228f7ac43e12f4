"""Claims are counted seed by seed, and each sentence says what the numbers say."""

import pandas as pd
import pytest

from maetok_lab.experiments.published import claims_checked, control_verdict, order_by, paper_table


@pytest.fixture
def table():
    """Two seeds of two rows: NLL agrees with the paper in both, the probe in one, the diffusion loss in none."""
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
    checked = claims_checked(table, "all", "ae")
    assert checked["agree"].to_dict() == {
        "nll": 2,
        "probe_top1": 1,
        "diffusion_loss": 0,
        "kid": 2,
        "kid_gap": 1,
    }
    assert set(checked["seeds"]) == {2}
    assert (
        checked["sentence"]["nll"]
        == "mixture NLL per image: all 1, ae 2; as in the paper (2 of 2 seeds)"
    )
    assert "mixed (1 of 2 seeds)" in checked["sentence"]["probe_top1"]
    assert "not the paper's order (0 of 2 seeds)" in checked["sentence"]["diffusion_loss"]
    with pytest.raises(ValueError, match="no seed has both 'all' and 'kl'"):
        claims_checked(table, "all", "kl")


def test_rows_are_ordered_best_first_whichever_way_is_better(table):
    table = table[table["seed"] == 0]
    assert order_by(table, "nll") == ["all", "ae"]
    assert order_by(table, "diffusion_loss") == ["ae", "all"]
    assert order_by(table, "probe_top1") == ["all", "ae"]


def compared(*psnr, **columns):
    """Rows of `all`, `ae` and `control` for each pair of PSNR (all's, the control's); columns hold (all, ae, control)."""
    lines = []
    for seed, (masked, control) in enumerate(psnr):
        for i, (row, on_val) in enumerate({"all": masked, "ae": 21.0, "control": control}.items()):
            lines.append(
                {"row": row, "seed": seed, "val_psnr": on_val}
                | {name: values[i] for name, values in columns.items()}
            )
    return pd.DataFrame(lines)


def test_the_control_decides_what_a_gain_over_the_plain_row_is_worth():
    table = compared(
        (18.0, 18.1),
        (17.5, 17.5),
        nll=(1.0, 2.0, 0.9),
        probe_top1=(0.7, 0.6, 0.6),
        diffusion_loss=(0.5, 0.4, 0.6),
        kid=(1.0, 2.0, 3.0),
        kid_gap=(1.0, 2.0, 3.0),
    )
    table.loc[table["row"].eq("control") & table["seed"].eq(1), "kid"] = 0.5
    said = control_verdict(table, "all", "control")
    assert said[:2] == [
        "seed 0: control has 18.10 dB on val, all 18.00 dB",
        "seed 1: control has 17.50 dB on val, all 17.50 dB",
    ]
    assert said[2] == (
        "mixture NLL per image: better in 2 of 2 seeds against ae, better in 0 of 2 seeds against control; "
        "stopping ae early gains as much or more: the claim does not survive the control"
    )
    assert said[3].endswith("against control; equal blur does not explain it")
    assert said[4].endswith("all does not beat ae in every seed, so there is no gain to explain")
    assert said[5].endswith(
        "better in 1 of 2 seeds against control; seeds disagree about the control: undecided"
    )
    alone = control_verdict(table[table["row"] != "ae"], "all", "control")
    assert alone[3] == "linear probe: better in 2 of 2 seeds against control"


def test_a_control_that_never_reached_its_target_is_said_to_be_none():
    numbers = dict.fromkeys(
        ("nll", "probe_top1", "diffusion_loss", "kid", "kid_gap"), (1.0, 2.0, 3.0)
    )
    said = control_verdict(compared((18.0, 18.1), (19.0, 18.5), **numbers), "all", "control")
    assert said[1] == (
        "seed 1: control has 18.50 dB on val, all 19.00 dB; "
        "control never reached it, so this seed has no control and is not counted"
    )
    assert "better in 1 of 1 seeds against control" in said[2]
    none = control_verdict(compared((19.0, 18.5), **numbers), "all", "control")
    assert (
        none[-1] == "No seed has a control: nothing here tells what all gains from what blur gains."
    )
    assert len(none) == 2


def test_the_papers_numbers_are_marked_as_such():
    table = paper_table()
    assert list(table.columns) == ["rFID (paper)", "gFID (paper)", "from"]
    assert table["gFID (paper)"]["all"] == 5.78
    assert all("Table" in place for place in table["from"])
