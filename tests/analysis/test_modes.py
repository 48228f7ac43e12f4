"""Mixtures on the plane of two principal axes."""

import pytest
import torch

from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.analysis.modes import plane_mixtures


def clusters(count, seed):
    """Two well separated clusters in 12 numbers, mostly along the first two axes."""
    random = torch.Generator().manual_seed(seed)
    rows = 0.3 * torch.randn(count, 3, 4, generator=random)
    rows[:, 0, 1] += torch.randn(count, generator=random)
    rows[:, 0, 0] += torch.where(torch.arange(count) % 2 == 0, 4.0, -4.0)
    return rows


def test_two_clusters_are_two_gaussians_and_held_out_likelihood_says_so():
    modes = plane_mixtures(clusters(600, 0), clusters(200, 1), [1, 2, 8])
    assert modes.points.shape == (600, 2)
    assert modes.points.std(dim=0).tolist() == pytest.approx([1, 1], abs=0.01)
    means = modes.mixtures[2].means[:, 0].sort().values
    assert means.tolist() == pytest.approx([-1, 1], abs=0.05)
    assert modes.heldout_nll[2] < modes.heldout_nll[1] - 0.5
    assert modes.heldout_nll[8] == pytest.approx(modes.heldout_nll[2], abs=0.05)
    assert 0.8 < modes.explained < 1


def test_it_is_the_curve_in_two_dimensions():
    train, heldout = clusters(600, 0), clusters(200, 1)
    modes = plane_mixtures(train, heldout, [1, 2], restarts=2, seed=3)
    options = {"dimensions": 2, "restarts": 2, "seed": 3}
    curve = gmm_curve(train, [1, 2], heldout_latents=heldout, **options)
    expected = dict(zip(curve["components"], curve["heldout_nll"]))
    assert modes.heldout_nll == pytest.approx(expected)
