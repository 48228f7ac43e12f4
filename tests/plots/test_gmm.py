"""The NLL figure: lines, labels, and tables that must not share axes."""

import math

import pandas as pd
import pytest
from matplotlib import pyplot

from maetok_lab.plots.gmm import plot_gmm_curve


def table(offset=0.0, dimensions=10, heldout=True):
    return pd.DataFrame(
        {
            "components": [1, 5, 20],
            "dimensions": dimensions,
            "train_nll": [14.0 + offset, 13.0, 12.0],
            "heldout_nll": [14.2, 13.5, 13.4] if heldout else math.nan,
        }
    )


def test_train_and_held_out_are_drawn_for_every_table():
    ax = plot_gmm_curve({"ae": table(), "all": table(1.0)})
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines()}
    assert lines["ae, held-out"] == [14.2, 13.5, 13.4]
    assert lines["all, train"] == [15.0, 13.0, 12.0]
    assert ax.get_xlabel() == "mixture components"
    assert ax.get_ylabel() == "NLL (nats per image, 10 dimensions)"
    assert [line.get_label() for line in plot_gmm_curve(table(heldout=False)).get_lines()] == [
        "train"
    ]


def test_tables_with_other_dimensions_share_no_axes():
    tables = {"ae": table(), "all": table(dimensions=20)}
    with pytest.raises(ValueError, match=r"one number of dimensions, not .*'ae': 10, 'all': 20"):
        plot_gmm_curve(tables)
    own_ax = pyplot.figure().add_subplot()
    assert plot_gmm_curve(table(), ax=own_ax) is own_ax
    with pytest.raises(ValueError, match="no tables"):
        plot_gmm_curve({})
