"""The card's table: grouped by question, each number with what it is on hover."""

import math

import pandas as pd
import pytest

from maetok_lab.plots.table import card_table


def card(probe=0.5, **more):
    lines = {"probe_top1": ("probe", probe, 0.02, "", "higher")}
    lines |= {"viv": ("denoiser", 0.8, math.nan, "", "lower")} | more
    columns = ["group", "value", "error", "unit", "better"]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("entry")
    table.attrs["definitions"] = {
        name: {"formula": f"how {name} is made", "source": "a paper", "settings": {"seed": 3}}
        for name in lines
    }
    return table


def test_numbers_stand_under_their_question_with_error_and_direction():
    html = card_table({"mine": card(), "pixels": card(0.25)}).to_html().split("<tbody>")[1]
    assert html.index("what it knows") < html.index("probe_top1")
    assert html.index("what a model can learn") < html.index("viv")
    for part in ("0.5 ± 0.02", "0.25 ± 0.02", "↑", "↓"):
        assert part in html


def test_hovering_tells_formula_source_and_settings():
    html = card_table(card()).to_html()
    assert "how viv is made — a paper — seed 3" in html
    # and nothing is told before
    assert "visibility: hidden" in html


def test_what_a_card_lacks_is_empty_and_what_has_no_value_a_dash():
    sec = {"sec": ("grid", math.nan, math.nan, "", "lower")}
    data = card_table({"mine": card(), "grid": card(**sec)}).data
    assert data["mine"]["what shape it has", "sec"] == ""
    assert data["grid"]["what shape it has", "sec"] == "-"


def test_no_cards_are_refused():
    with pytest.raises(ValueError, match="no cards"):
        card_table({})
