"""The figure of guidance shows the velocities and samples that were computed."""

import numpy as np
import pytest

from maetok_lab.analysis.guidance import SPOT, guidance_toy
from maetok_lab.plots.guidance import MOVE, plot_guidance


@pytest.fixture(scope="module")
def toy():
    return guidance_toy((1.0, 3.0), num_samples=400, seed=1)


def test_arrows_go_where_the_velocities_lead(toy):
    ax = plot_guidance(toy).axes[0]
    ends = {}
    for annotation in ax.texts:
        if annotation.get_text():
            ends[annotation.get_text()] = annotation.xy
    time, place = SPOT
    velocities = [toy.unconditional, toy.conditional, toy.guided]
    assert list(ends) == ["without label", "with label", "guided, scale 3"]
    for end, velocity in zip(ends.values(), velocities):
        assert end == pytest.approx((time - MOVE, place - MOVE * velocity))
    assert ax.get_xlim() == (1, 0), "noise is at the left"
    assert np.allclose(ax.lines[0].get_ydata(), toy.ways[:, 0])


def test_there_is_a_histogram_of_every_scale_over_both_densities(toy):
    panels = plot_guidance(toy).axes[1:]
    assert [ax.get_title(loc="left") for ax in panels] == [
        "samples at scale 1",
        "samples at scale 3",
    ]
    for ax, values in zip(panels, toy.samples.values()):
        bars = ax.patches
        edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
        heights, _ = np.histogram(values.numpy(), edges, density=True)
        assert np.allclose([bar.get_height() for bar in bars], heights, atol=1e-2)
        x, density = ax.lines[0].get_data()
        area = np.trapezoid(density, x)
        assert area == pytest.approx(1, abs=0.02)
