"""Settings that nobody needs to change every day reach what they are for."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maetok_lab.analysis.card import CardSettings, diffusability_card
from maetok_lab.analysis.projection import project
from maetok_lab.analysis.theory import ToySettings, sample_complexity
from maetok_lab.rng import generator


def normal(*shape, name="x"):
    return torch.randn(*shape, generator=generator(0, name))


def test_a_card_keeps_as_many_dimensions_as_its_share_of_the_variance_takes():
    latents = normal(120, 1, 6) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.3, 0.1])
    labels = torch.arange(120) % 3
    data = (latents, labels, latents[:40] + 0.01, labels[:40])
    dimensions = []
    for variance in (0.5, 0.99):
        settings = CardSettings(components=(1,), variance=variance, restarts=1)
        dimensions.append(diffusability_card(*data, settings=settings).value["gmm_dimensions"])
    assert dimensions[0] < dimensions[1]


def test_umap_gets_its_neighbours_its_distance_and_a_seed(monkeypatch):
    calls = []

    class UMAP:
        def __init__(self, **options):
            calls.append(options)

        def fit_transform(self, scores):
            return np.asarray(scores)[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    project(normal(40, 5), method="umap", neighbours=7, min_dist=0.4, seed=3)
    assert calls[0]["n_neighbors"] == 7
    assert calls[0]["min_dist"] == 0.4
    project(normal(40, 5), method="umap", seed=4)
    assert calls[-1]["random_state"] != calls[0]["random_state"]


@pytest.fixture
def error():
    """`error(**settings)`: of the means that the toy's student learned."""

    def learn(**settings):
        toy = ToySettings(dimensions=2, steps=2, repeats=1, **settings)
        return sample_complexity((2,), (64,), settings=toy).error[0]

    return learn


def test_the_toy_starts_where_it_is_told_and_draws_from_its_seed(error):
    assert error(start=0.0) < error() < error(start=4.0)
    assert error(seed=1) != error()
    assert error(seed=1) == error(seed=1)
