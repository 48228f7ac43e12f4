"""Runs on one pair of axes."""

import io

import pandas as pd

from maetok_lab.plots.runs import plot_run_lines


def test_each_run_has_its_line_and_name():
    lines = {
        name: pd.DataFrame({"step": [1, 2], "pixel": [top, 1.0]})
        for name, top in (("a", 3.0), ("b", 5.0))
    }
    ax = plot_run_lines(lines, "pixel", log=True)
    assert {line.get_label(): line.get_ydata().tolist() for line in ax.lines} == {
        "a": [3.0, 1.0],
        "b": [5.0, 1.0],
    }
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "pixel")
    assert len({line.get_color() for line in ax.lines}) == 2


def test_names_that_are_no_formula_are_drawn_as_they_stand():
    # matplotlib would refuse the whole figure: "Unknown symbol: \\owned"
    odd = r"price $\owned$"
    ax = plot_run_lines({odd: pd.DataFrame({"step": [1, 2], odd: [1.0, 2.0]})}, odd)
    ax.figure.savefig(io.BytesIO())
    assert ax.get_legend().get_texts()[0].get_text() == odd
