"""The toy's figure: a line for each number of modes, a ring at each crossing."""

import pandas as pd
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

from maetok_lab.plots.theory import plot_sample_complexity  # noqa: E402


def test_lines_rings_and_target():
    table = pd.DataFrame(
        {
            "components": [2, 2, 4, 4],
            "samples": [10, 100, 10, 100],
            "error": [1.0, 0.1, 2.0, 0.2],
            "spread": 0.01,
        }
    )
    table.attrs = {"settings": {"target": 0.3}, "needed": {2: 33.0, 4: 67.0}, "exponent": 1.02}
    own_ax = pyplot.figure().add_subplot()
    assert plot_sample_complexity(table, ax=own_ax) is own_ax
    lines = own_ax.get_lines()
    assert lines[2].get_ydata().tolist() == [2.0, 0.2]
    assert lines[3].get_xydata().tolist() == [[67.0, 0.3]]
    assert "power 1.0" in own_ax.get_xlabel()
    pyplot.close("all")
