"""Extrapolation over the number of samples, and the search for copies."""

import pytest
import torch

from maetok_lab.evaluation.metrics import feature_statistics, frechet_distance
from maetok_lab.evaluation.scaling import copied_share, frechet_against_count
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator


def features(count, width=12, name="features"):
    return torch.randn(count, width, generator=generator(0, name), dtype=torch.float64)


def test_infinity_is_near_the_true_distance_where_finite_counts_are_biased():
    truth = (
        torch.full((12,), 0.2, dtype=torch.float64),
        torch.eye(12, dtype=torch.float64),
    )  # distance 12 * 0.04
    table = frechet_against_count(features(600), truth)
    assert table.value.is_monotonic_decreasing
    assert table.value.iloc[-1] == pytest.approx(frechet_distance(features(600), truth))
    biased, extrapolated = table.value.iloc[0] - 0.48, table.attrs["infinity"] - 0.48
    assert abs(extrapolated) < 0.5 * biased
    assert table.attrs["low"] < 0.48 < table.attrs["high"]


def test_a_line_in_one_over_n_is_met_exactly(monkeypatch):
    monkeypatch.setattr(
        "maetok_lab.evaluation.scaling.frechet_distance", lambda x, y: 3 + 7 / len(x)
    )
    table = frechet_against_count(
        features(100), feature_statistics(features(50)), counts=[20, 50, 100]
    )
    assert table.attrs["infinity"] == pytest.approx(3)
    assert table.attrs["high"] - table.attrs["low"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"in 2 .. 100"):
        frechet_against_count(features(100), feature_statistics(features(50)), counts=[50, 200])


def test_copies_of_training_images_are_found():
    train, heldout = features(200), features(100, name="heldout")
    nearest = nearest_neighbours(train[[7, 3]] + 1e-3, train, neighbours=2)
    assert nearest.indices[:, 0].tolist() == [7, 3]
    assert (nearest.distances[:, 0] < nearest.distances[:, 1]).all()
    assert copied_share(train[:50] + 1e-3, train, heldout) == 1
    assert copied_share(features(100, name="new"), train, heldout) == pytest.approx(0.5, abs=0.1)
    assert copied_share(5 * features(100, name="new"), train, heldout) < 0.05
    with pytest.raises(ValueError, match="need 1 to 200 neighbours"):
        nearest_neighbours(train, train, neighbours=201)
