"""Several tokenizers on one figure: each keeps its colour, and values are drawn as they came."""

import pandas as pd
import pytest

from maetok_lab.plots.compare import (
    plot_against,
    plot_convergence,
    plot_loss_curves,
    plot_mean_norms,
)
from maetok_lab.plots.curves import colours_for

pytest.importorskip("matplotlib")


def test_loss_curves_are_smoothed_and_named():
    table = pd.DataFrame({"step": [1, 2, 3], "loss": [4.0, 2.0, 0.0]})
    ax = plot_loss_curves({"ae": table, "hog": table + 1}, smooth=2)
    assert [line.get_label() for line in ax.lines] == ["ae", "hog"]
    assert list(ax.lines[0].get_ydata()) == [4, 3, 1]
    assert ax.lines[1].get_color() == colours_for(["hog"])["hog"]
    with pytest.raises(ValueError, match=r"no column 'loss/t0\.5' in the metrics of \['ae'\]"):
        plot_loss_curves({"ae": table}, column="loss/t0.5")


def test_one_point_a_row_with_the_words_of_the_axes():
    table = pd.DataFrame({"probe": [0.3, 0.6], "kid": [2.0, 1.0]}, index=["ae", "hog"])
    ax = plot_against(table, "probe", "kid", labels={"probe": "linear probe, top-1"})
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [
        (0.3, 2.0),
        (0.6, 1.0),
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("linear probe, top-1", "kid")
    with pytest.raises(ValueError, match=r"no column \['fid'\]"):
        plot_against(table, "probe", "fid")


def test_convergence_is_a_curve_a_tokenizer_with_its_intervals():
    values = {
        "images": [100, 200],
        "kid": [0.4, 0.2],
        "kid_low": [0.3, 0.1],
        "kid_high": [0.5, 0.3],
    }
    ax = plot_convergence({"ae": pd.DataFrame(values), "hog": pd.DataFrame(values)})
    assert [line.get_label() for line in ax.lines] == ["ae", "hog"]
    assert list(ax.lines[0].get_xdata()) == [100, 200]
    assert list(ax.lines[0].get_ydata()) == [0.4, 0.2]
    bars = ax.collections[0].get_segments()
    assert [tuple(bar[:, 1]) for bar in bars] == [(0.3, 0.5), (0.1, 0.3)]
    assert ax.get_xlabel() == "training images seen"
    with pytest.raises(ValueError, match=r"no column \['kid_gap', 'kid_gap_low'"):
        plot_convergence({"ae": pd.DataFrame(values)}, column="kid_gap")


def test_norms_stand_side_by_side_at_their_number_of_modes():
    tables = {
        "ae": pd.DataFrame({"components": [5, 10], "max_mean_norm": [3.0, 4.0]}),
        "hog": pd.DataFrame({"components": [10], "max_mean_norm": [2.0]}),
    }
    ax = plot_mean_norms(tables)
    assert [round(bar.get_height(), 6) for bar in ax.patches] == [3, 4, 2]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["5", "10"]
    assert ax.patches[1].get_x() < ax.patches[2].get_x() < 1.1
    with pytest.raises(ValueError, match="no tables"):
        plot_mean_norms({})
