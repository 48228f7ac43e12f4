"""Runs on one pair of axes."""

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
