"""The NLL figure: lines, labels, and tables that must not share axes."""

import math

import pandas as pd
import pytest
import torch
from matplotlib import pyplot

from maetok_lab.analysis.mixture import Mixture
from maetok_lab.analysis.modes import PlaneMixtures
from maetok_lab.plots.gmm import plot_gmm_curve, plot_modes


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


def test_ellipses_are_the_mixtures_at_one_and_two_standard_deviations():
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    single = Mixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]])
    pair = Mixture(torch.tensor([0.8, 0.2]), means, torch.tensor([[0.25, 1.0], [0.04, 0.09]]))
    modes = PlaneMixtures(points, {1: single, 2: pair}, {1: 2.9, 2: 2.5}, 0.31)
    figure = plot_modes(modes, {"ae": table(), "all": table(1.0)})
    first, second, curve = figure.axes
    assert [ax.get_title() for ax in figure.axes] == [
        *("1 Gaussian: 2.900 nats", "2 Gaussians: 2.500 nats", "the same in 10 dimensions")
    ]
    assert first.get_xlabel() == "2 axes, 31% of the variance"
    assert first.collections[0].get_offsets().tolist() == pytest.approx(points.numpy())
    drawn = [(*patch.center, patch.width, patch.height) for patch in second.patches]
    assert drawn == [
        pytest.approx(box)
        for box in [(-1, 0.5, 1, 2), (-1, 0.5, 2, 4), (1, 0, 0.4, 0.6), (1, 0, 0.8, 1.2)]
    ]
    assert second.patches[0].get_alpha() > second.patches[2].get_alpha()
    assert len(curve.get_lines()) == 4
