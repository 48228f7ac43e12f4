"""Interpolants are their equations, and the loss of the perfect velocity is zero."""

import math

import pytest
import torch

from maetok_lab.diffusion.path import (
    LEAST_SIGMA,
    PATHS,
    dimension_shift,
    draw_times,
    shift_for,
    velocity_loss,
)
from maetok_lab.rng import generator

each_path = pytest.mark.parametrize("name", PATHS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_path
def test_a_path_leads_from_data_at_zero_to_noise_at_one(name):
    x, n = noise(2, 3, 4), noise(2, 3, 4, seed=1)
    for t, end in ((0.0, x), (1.0, n)):
        t = torch.full((2,), t, dtype=torch.float64)
        assert torch.allclose(PATHS[name].interpolate(x, n, t)[0], end, atol=1e-12)


@each_path
def test_the_velocity_is_the_paths_derivative(name):
    x, n, t = (
        noise(5, 3, 4),
        noise(5, 3, 4, seed=1),
        torch.linspace(0.05, 0.95, 5, dtype=torch.float64),
    )
    path, h = PATHS[name], 1e-6
    slope = (path.interpolate(x, n, t + h)[0] - path.interpolate(x, n, t - h)[0]) / (2 * h)
    assert torch.allclose(path.interpolate(x, n, t)[1], slope, atol=1e-7)


@each_path
def test_data_and_noise_are_found_again_from_the_velocity(name):
    x, n, path = noise(4, 3, 4), noise(4, 3, 4, seed=1), PATHS[name]
    for t in (0.0, 0.3, 0.75, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        x_t, v = path.interpolate(x, n, t.expand(4))
        assert torch.allclose(path.data(x_t, v, t), x, atol=1e-12)
        assert torch.allclose(path.noise(x_t, v, t), n, atol=1e-12)


@each_path
def test_the_score_is_the_gradient_of_a_gaussians_log_density_even_at_pure_noise(name):
    path, mean, std = PATHS[name], 0.7, 0.5
    for time in (0.04, 0.5, 0.9, 1.0):
        t = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = (alpha * std) ** 2 + sigma**2
        x_t = noise(50)
        centred = x_t - alpha * mean
        data, n = mean + alpha * std**2 / variance * centred, sigma / variance * centred
        v = path.d_alpha(t) * data + path.d_sigma(t) * n
        assert torch.allclose(path.score(x_t, v, t), -centred / variance, atol=1e-9)


def test_the_paths_are_the_papers():
    t = torch.tensor([0.0, 0.25, 1.0])
    assert PATHS["linear"].alpha(t).tolist() == [1, 0.75, 0]
    assert torch.allclose(
        PATHS["cosine"].alpha(t), torch.tensor([1, math.cos(math.pi / 8), 0]), atol=1e-6
    )
    assert torch.allclose(
        PATHS["cosine"].sigma(t), torch.tensor([0, math.sin(math.pi / 8), 1]), atol=1e-6
    )


@each_path
def test_logit_normal_times_make_the_noise_ratio_log_normal(name):
    t = draw_times(20_000, "logit-normal", path=name, generator=generator(0, "t"))
    assert ((t > 0) & (t < 1)).all()
    log_ratio = (PATHS[name].sigma(t) / PATHS[name].alpha(t)).log()
    assert log_ratio.mean().item() == pytest.approx(0, abs=0.03)
    assert log_ratio.std().item() == pytest.approx(1, abs=0.03)


def test_uniform_times_are_uniform():
    t = draw_times(20_000, "uniform", path="linear", generator=generator(0, "t"))
    steps = torch.arange(20_000) / 20_000
    assert (t.sort().values - steps).abs().max() < 1.63 / 20_000**0.5


@each_path
def test_the_loss_of_the_perfect_velocity_is_zero(name):
    x, n, t = noise(3, 4, 2).float(), noise(3, 4, 2, seed=1).float(), torch.tensor([0.1, 0.5, 0.9])
    y = torch.zeros(3, dtype=torch.long)
    expected = PATHS[name].interpolate(x, n, t)[1]
    loss = velocity_loss(lambda x_t, t, labels: expected, x, y, t=t, noise=n, path=name)
    assert loss.tolist() == [0, 0, 0]


def test_the_loss_is_each_samples_own_mean_square():
    x, n, t = noise(3, 4, 2).float(), noise(3, 4, 2, seed=1).float(), torch.tensor([0.1, 0.5, 0.9])
    labels = torch.tensor([5, 6, 7])
    calls = []

    def model(x_t, time, y):
        calls.append((x_t, time, y))
        return torch.zeros_like(x_t)

    loss = velocity_loss(model, x, labels, t=t, noise=n)
    assert torch.allclose(loss, (n - x).square().mean((1, 2)))
    assert torch.allclose(calls[0][0], (1 - t)[:, None, None] * x + t[:, None, None] * n)
    assert torch.equal(calls[0][1], t)
    assert torch.equal(calls[0][2], labels)


def test_the_direction_loss_is_zero_along_the_velocity_and_two_against_it():
    x, n, t, y = (
        noise(3, 4, 2).float(),
        noise(3, 4, 2, seed=1).float(),
        torch.full((3,), 0.4),
        torch.zeros(3),
    )
    v = n - x

    def extra(prediction: torch.Tensor) -> list[float]:
        plain, more = (
            velocity_loss(lambda *_: prediction, x, y, t=t, noise=n, direction_weight=w)
            for w in (0.0, 0.5)
        )
        return (more - plain).tolist()

    assert extra(3 * v) == pytest.approx([0, 0, 0], abs=1e-6)
    assert extra(-v) == pytest.approx([1, 1, 1], abs=1e-6)  # half of 1 - cos = 2
    turned = torch.stack([-v[..., 1], v[..., 0]], dim=-1)  # a right angle in every token's plane
    assert extra(turned) == pytest.approx([0.5] * 3, abs=1e-6)
    one = torch.where(
        torch.arange(4)[None, :, None] == 2, -v, v
    )  # one token of four goes the wrong way
    assert extra(one) == pytest.approx([0.25] * 3, abs=1e-6)


def test_the_generator_decides_times_and_noise():
    x, y = noise(8, 4, 2).float(), torch.zeros(8, dtype=torch.long)

    def model(x_t, t, labels):
        return x_t * t[:, None, None]

    first, again, other = (
        velocity_loss(model, x, y, generator=generator(s, "loss")) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_bf16_velocity_is_compared_in_float32():
    x, n, t = noise(3, 4, 2).float(), noise(3, 4, 2, seed=1).float(), torch.full((3,), 0.5)
    loss = velocity_loss(
        lambda x_t, t, y: x_t.bfloat16(), x, torch.zeros(3, dtype=torch.long), t=t, noise=n
    )
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, (((x + n) / 2).bfloat16().float() - (n - x)).square().mean((1, 2)))


# Data prediction ----------------------------------------------------------------------------------


@each_path
def test_a_velocity_made_of_data_is_the_inverse_of_the_data_estimate(name):
    x_t, data, path = noise(4, 3, 4), noise(4, 3, 4, seed=1), PATHS[name]
    for time in (0.05, 0.3, 0.75, 1.0):
        t = torch.tensor(time, dtype=torch.float64)
        assert torch.allclose(path.data(x_t, path.velocity(x_t, data, t), t), data, atol=1e-12)
    near = torch.tensor(0.01, dtype=torch.float64)
    clipped = path.velocity(x_t, data, near) * LEAST_SIGMA / path.sigma(near)
    assert torch.allclose(path.data(x_t, clipped, near), data, atol=1e-12)


def test_the_loss_of_a_data_prediction_is_its_error_over_the_clipped_time():
    x, n, guess = (noise(3, 4, 2, seed=seed).float() for seed in range(3))
    t = torch.tensor([0.02, 0.5, 0.9])

    def model(x_t, time, labels):
        return PATHS["linear"].velocity(x_t, guess, time[:, None, None])

    for weight in (0.0, 1.0):
        options = {"t": t, "noise": n, "prediction": "data", "direction_weight": weight}
        losses = velocity_loss(model, x, torch.zeros(3), **options)
        expected = (guess - x).square().mean((1, 2)) / torch.tensor([0.05, 0.5, 0.9]).square()
        if weight == 0:
            assert torch.allclose(losses, expected, rtol=1e-4)
        else:
            assert (losses > expected).all()
    # both are clipped: the perfect estimate has no loss at any time
    guess = x
    losses = velocity_loss(model, x, torch.zeros(3), t=t, noise=n, prediction="data")
    assert losses.max() < 1e-10


# Time shift ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "logit-normal"])
@pytest.mark.parametrize("shift", [0.25, 6.0])
def test_a_shift_multiplies_the_odds_of_noise(sampling, shift):
    drawn = {}
    for value in (None, 1.0, shift):
        random = generator(0, "t")
        drawn[value] = draw_times(500, sampling, path="linear", generator=random, time_shift=value)
    assert torch.equal(drawn[None], drawn[1.0])
    difference = drawn[shift].double().logit() - drawn[None].double().logit()
    assert torch.allclose(difference, torch.full_like(difference, math.log(shift)), atol=1e-3)


def test_the_shift_by_dimension_is_that_of_the_papers():
    assert dimension_shift(128, 32) == 1  # MAETok-B
    assert dimension_shift(256, 32) == pytest.approx(1.414, abs=1e-3)  # VA-VAE
    assert dimension_shift(256, 768) == pytest.approx(6.93, abs=0.01)  # RAE
    assert shift_for("dimension", 16, 16) == 0.25
    assert shift_for(2.0, 16, 16) == 2.0
    assert shift_for("dimension", 128, 32) is None
    assert shift_for(1.0, 16, 16) is None
    for bad in (0, -1.0, math.inf, math.nan, "dim"):
        with pytest.raises(ValueError, match=rf"time_shift must be above 0 .*, not {bad}"):
            shift_for(bad, 16, 16)
