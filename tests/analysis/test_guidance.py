"""Guidance on a line: exact velocities, and samples that go where the formula says."""

import pytest
import torch

from maetok_lab.analysis.guidance import CLASSES, SPOT, LineModel, guidance_toy
from maetok_lab.diffusion.sampling import Guidance, GuidedVelocity
from maetok_lab.rng import generator


def draws(modes, count):
    """Samples of a class, by its definition."""
    random = generator(0, "class")
    weights, means, deviations = torch.tensor(modes).T
    rows = torch.multinomial(weights, count, replacement=True, generator=random)
    return means[rows] + deviations[rows] * torch.randn(count, generator=random)


def test_the_velocity_is_the_mean_of_noise_minus_data_among_what_lies_there():
    model = LineModel()
    noise = torch.randn(400_000, generator=generator(0, "noise"))
    both = torch.cat([draws(modes, 200_000) for modes in CLASSES])
    for label, data in {0: both[:200_000], 1: both[200_000:], 2: both}.items():
        part = noise[: len(data)]
        x_t = 0.5 * data + 0.5 * part
        near = (x_t - 0.1).abs() < 0.02
        expected = (part - data)[near].mean()
        velocity = model(torch.full((1, 1, 1), 0.1), torch.tensor([0.5]), torch.tensor([label]))
        assert float(velocity) == pytest.approx(float(expected), abs=0.05)


def test_without_guidance_samples_are_the_classs_own():
    toy = guidance_toy((1.0, 2.0, 4.0), num_samples=4000)
    table = toy.table
    ours = draws(CLASSES[0], 200_000)
    assert table.loc["the class", "mean"] == pytest.approx(float(ours.mean()), abs=0.01)
    assert table.loc["the class", "std"] == pytest.approx(float(ours.std()), abs=0.01)
    assert table.loc["scale 1", "mean"] == pytest.approx(table.loc["the class", "mean"], abs=0.04)
    assert table.loc["scale 1", "std"] == pytest.approx(table.loc["the class", "std"], abs=0.04)
    assert table.loc["scale 1", "nearer mode"] == pytest.approx(0.5, abs=0.03)


def test_more_guidance_leaves_the_mode_near_the_other_class_and_overshoots():
    table = guidance_toy((1.0, 2.0, 4.0), num_samples=1000).table.loc["scale 1":]
    assert table["mean"].is_monotonic_decreasing
    assert table["std"].is_monotonic_decreasing
    assert table["nearer mode"].is_monotonic_decreasing
    far_mode = CLASSES[0][0][1]
    assert table.loc["scale 4", "mean"] < far_mode - 0.1


def test_the_three_velocities_are_those_that_the_sampler_follows():
    toy = guidance_toy((1.0, 3.0), num_samples=60)
    time, place = SPOT
    label = torch.zeros(1, dtype=torch.long)
    velocity = GuidedVelocity(toy.model, label, Guidance(3.0), None)
    guided = velocity(torch.full((1, 1, 1), place), time)
    assert toy.guided == pytest.approx(float(guided), abs=1e-5)
    expected = toy.unconditional + 3 * (toy.conditional - toy.unconditional)
    assert toy.guided == pytest.approx(expected)


def test_ways_go_from_the_noise_to_the_unguided_samples():
    toy = guidance_toy((1.0,), num_samples=100, seed=2)
    assert (toy.times[0], toy.times[-1]) == (1, 0)
    ends = toy.samples[1.0][: toy.ways.shape[1]].double()
    assert torch.allclose(toy.ways[-1], ends, atol=1e-5)
    again = guidance_toy((1.0,), num_samples=100, seed=2)
    assert torch.equal(again.samples[1.0], toy.samples[1.0])
