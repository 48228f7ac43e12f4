"""Latents that are noised and sampled back are those that the exact flow gives."""

import pytest
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.path import PATHS
from maetok_lab.diffusion.sampling import sample
from maetok_lab.generation.regeneration import regenerate

SPACE = LatentSpace("weights", torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5]))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Gaussian:
    """The exact velocity for data that are N(0, 1), and how often it was asked."""

    trained_path = "linear"
    num_classes = 0

    def __init__(self):
        self.times = []

    def __call__(self, x_t, t, labels):
        self.times.append(t[0].item())
        t = t[:, None, None]
        return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x_t


def anew(model, latents, noise, *, start, num_steps, labels=None):
    labels = torch.zeros(len(latents), dtype=torch.long) if labels is None else labels
    return regenerate(model, SPACE, latents, labels, noise, start=start, num_steps=num_steps)


def batch(count: int = 512):
    return SPACE.denormalise(normal(count, 3, 2)), normal(count, 3, 2, seed=1)


def exact(latents, noise, start):
    """The flow of N(0, 1) only scales: x_t / sqrt((1 - t)^2 + t^2) is the same at all times."""
    x_t = (1 - start) * SPACE.normalise(latents) + start * noise
    return SPACE.denormalise(x_t / ((1 - start) ** 2 + start**2) ** 0.5)


@pytest.mark.parametrize("start", [0.02, 0.3, 0.7])
def test_more_steps_are_nearer_to_the_exact_flow(start):
    latents, noise = batch()
    errors = []
    for num_steps in (100, 400, 1600):
        new = anew(Gaussian(), latents, noise, start=start, num_steps=num_steps)
        errors.append((new - exact(latents, noise, start)).square().mean().sqrt().item())
    # Euler's error is of the order of a step
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)
    assert errors[2] == pytest.approx(errors[1] / 4, rel=0.1)
    assert errors[2] < 0.01


def test_from_an_early_start_latents_nearly_stay_and_from_a_late_one_noise_decides():
    latents, noise = batch()
    away = []
    for start in (0.001, 0.01, 0.1, 0.5, 0.9):
        new = anew(Gaussian(), latents, noise, start=start, num_steps=2000)
        away.append(((new - latents) / SPACE.std).square().mean().sqrt().item())
    assert away == sorted(away)
    assert away[0] == pytest.approx(0.001, rel=0.1)
    assert away[-1] > 1


def test_new_latents_are_distributed_like_the_old_ones():
    latents, noise = batch(4000)
    new = anew(Gaussian(), latents, noise, start=0.6, num_steps=200)
    torch.testing.assert_close(new.mean((0, 1)), SPACE.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(new.std((0, 1)), SPACE.std, rtol=0.03, atol=0)


@pytest.mark.parametrize(("start", "num_steps", "steps"), [(0.3, 20, 6), (0.5, 7, 4), (0.01, 5, 1)])
def test_it_takes_its_share_of_the_steps_from_its_start_down(start, num_steps, steps):
    model = Gaussian()
    anew(model, *batch(2), start=start, num_steps=num_steps)
    assert len(model.times) == steps
    assert model.times[0] == pytest.approx(start)
    assert model.times == sorted(model.times, reverse=True)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_noise_is_put_on_by_the_models_own_path(model, path):
    model.trained_path = path
    latents, noise = batch(4)
    labels = torch.arange(4)
    new = anew(model, latents, noise, start=0.4, num_steps=10, labels=labels)
    t = torch.full((4,), 0.4)
    x_t, _ = PATHS[path].interpolate(SPACE.normalise(latents), noise, t)
    expected = SPACE.denormalise(sample(model, x_t, labels, num_steps=4, start=0.4))
    assert torch.equal(new, expected)
    assert new.dtype == torch.float32


def test_labels_count_for_a_model_of_classes_and_for_an_unconditional_one_they_do_not(model):
    latents, noise = batch(4)
    options = {"start": 0.5, "num_steps": 4}
    zeros, labels = torch.zeros(4, dtype=torch.long), torch.arange(4)
    apart = [anew(model, latents, noise, labels=these, **options) for these in (zeros, labels)]
    assert torch.equal(apart[0][0], apart[1][0])
    assert (apart[0][1:] != apart[1][1:]).any()
    # it knows 0 alone: labels of the images' own would be refused
    same = [anew(Gaussian(), latents, noise, labels=these, **options) for these in (zeros, labels)]
    assert torch.equal(*same)


def test_no_gradient_is_kept(model):
    latents, noise = batch(2)
    new = anew(model, latents.requires_grad_(), noise, start=0.5, num_steps=2)
    assert not new.requires_grad
