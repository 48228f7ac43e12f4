"""The toy's score, its loss, and samples that more modes need."""

import math

import pytest
import torch

from maetok_lab.analysis.theory import (
    ToySettings,
    denoising_loss,
    mixture_score,
    sample_complexity,
    separated_means,
)
from maetok_lab.rng import generator


def normal(*shape, name="x"):
    return torch.randn(*shape, generator=generator(0, name), dtype=torch.float64)


def test_score_is_the_gradient_of_the_log_density():
    means, points = 2 * normal(3, 4, name="means"), normal(10, 4).requires_grad_()
    density = torch.logsumexp(-0.5 * torch.cdist(points, means).square(), dim=1)
    torch.testing.assert_close(
        mixture_score(points, means), torch.autograd.grad(density.sum(), points)[0]
    )


def test_true_means_minimise_the_denoising_loss():
    means = separated_means(3, ToySettings(dimensions=2))
    clean, noise = (
        means[torch.arange(30_000) % 3] + normal(30_000, 2),
        normal(30_000, 2, name="noise"),
    )
    at_truth = denoising_loss(means, clean, noise, 0.3)
    for direction in torch.eye(6, dtype=torch.float64).view(6, 3, 2):
        assert denoising_loss(means + 0.3 * direction, clean, noise, 0.3) > at_truth
        assert denoising_loss(means - 0.3 * direction, clean, noise, 0.3) > at_truth


def test_nearest_means_have_the_distance_asked_for():
    for count in (2, 7):
        means = separated_means(count, ToySettings(distance=5.0))
        assert float(torch.pdist(means).min()) == pytest.approx(5)
        assert means.norm(dim=1).std() < 1e-9


def test_more_components_need_more_samples():
    settings = ToySettings(dimensions=4, steps=30, repeats=3, target=0.35)
    table = sample_complexity((2, 8), (32, 128, 512, 2048), settings=settings)
    assert list(table.columns) == ["components", "samples", "error", "spread"]
    for _, part in table.groupby("components"):
        assert part.error.is_monotonic_decreasing
    needed = table.attrs["needed"]
    assert needed[8] > 2 * needed[2]
    assert table.attrs["exponent"] == pytest.approx(math.log(needed[8] / needed[2]) / math.log(4))
    assert table.equals(sample_complexity((2, 8), (32, 128, 512, 2048), settings=settings))


def test_an_error_that_is_never_reached_is_not_a_number():
    settings = ToySettings(dimensions=2, steps=4, repeats=1, target=1e-6)
    table = sample_complexity((2,), (32, 64), settings=settings)
    assert math.isnan(table.attrs["needed"][2])
    assert math.isnan(table.attrs["exponent"])
    with pytest.raises(ValueError, match="at least K samples"):
        sample_complexity((2, 64), (32,), settings=settings)
    with pytest.raises(ValueError, match="time > 0"):
        ToySettings(time=0.0)
