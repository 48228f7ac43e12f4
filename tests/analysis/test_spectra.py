"""Frequencies of grids whose spectrum is known: single waves, noise, the images' own."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.ndimage import correlate
from torch.nn import functional

from maetok_lab.analysis.spectra import (
    NoValue,
    dct,
    high_frequency_share,
    mean_ratio,
    small_images,
    spectrum_divergence,
)
from maetok_lab.rng import generator


def randn(*shape, name="x"):
    return torch.randn(*shape, generator=generator(0, name), dtype=torch.float64)


def wave(u, v, grid, images=3, channels=2):
    """Latents (n, h w, C) of the one wave (u, v), of other strength in each image and channel."""
    rows = (math.pi * u * (torch.arange(grid[0]) + 0.5) / grid[0]).cos()
    columns = (math.pi * v * (torch.arange(grid[1]) + 0.5) / grid[1]).cos()
    return (rows[:, None] * columns).flatten()[:, None] * randn(images, 1, channels)


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (1, 5), (7, 1)])
def test_the_transform_is_scipys(grid):
    values = randn(3, 2, *grid)
    expected = dctn(values.numpy(), type=2, norm="ortho", axes=(2, 3))
    np.testing.assert_allclose(dct(values), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("u", "v", "quarter", "half"),
    [(0, 0, 0, 0), (1, 2, 0, 0), (3, 0, 0, 0), (2, 2, 1, 0), (0, 6, 1, 0), (4, 4, 1, 1)],
)
def test_one_wave_is_above_or_below_a_frequency(u, v, quarter, half):
    # of an 8 x 8 grid u + v goes to 14: the limits are 3.5 and 7
    latents = wave(u, v, (8, 8))
    for share, expected in ((0.25, quarter), (0.5, half)):
        measured = high_frequency_share(latents, (8, 8), share)
        assert measured.value == pytest.approx(expected, abs=1e-12)
        assert measured.error == pytest.approx(0, abs=1e-12)


def test_energies_of_two_waves_add_up():
    latents = 3 * wave(1, 0, (8, 8)) + 1 * wave(5, 5, (8, 8))
    # a wave (u > 0, v = 0) has twice the energy of one with both over 0 and the same strength
    expected = 1 / (1 + 9 * 2)
    assert high_frequency_share(latents, (8, 8), 0.5).value == pytest.approx(expected)


@pytest.mark.parametrize("grid", [(8, 8), (4, 6)])
def test_white_noise_has_the_share_of_the_frequencies(grid):
    latents = randn(400, grid[0] * grid[1], 3)
    u, v = np.indices(grid)
    for share in (0.25, 0.5):
        expected = (u + v > share * (sum(grid) - 2)).mean()
        measured = high_frequency_share(latents, grid, share)
        assert abs(measured.value - expected) < 4 * measured.error
        assert 0 < measured.error < 0.01


def test_the_error_of_a_ratio_is_what_samples_differ_by():
    ratios, errors = [], []
    for seed in range(300):
        bottoms = torch.rand(100, generator=generator(seed, "bottoms"), dtype=torch.float64) + 0.1
        tops = bottoms * torch.rand(100, generator=generator(seed, "tops"), dtype=torch.float64)
        measured = mean_ratio(tops, bottoms)
        ratios.append(measured.value)
        errors.append(measured.error)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)
    values = torch.arange(10.0)
    assert mean_ratio(values).error == pytest.approx(float(values.std()) / 10**0.5)
    assert math.isnan(mean_ratio(values[:1]).error)


def test_images_are_blurred_as_by_a_gaussian_with_zeros_around():
    images = randn(2, 3, 8, 8)
    axis = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 1.2**2))
    kernel = np.outer(axis, axis) / axis.sum() ** 2
    expected = correlate(images.numpy(), kernel[None, None], mode="constant")
    np.testing.assert_allclose(small_images(images, (8, 8)), expected, atol=1e-6)


def by_hand(latents, images, grid, delta):
    """The divergence as SpectrumMatching's code has it, ring by ring."""
    small = small_images(images, grid).numpy()
    own = latents.transpose(1, 2).unflatten(2, grid).numpy()
    shares = []
    for values, power in ((small, delta), (own, 0)):
        energy = (dctn(values, norm="ortho", axes=(2, 3)) ** 2).mean(axis=1)
        energy[:, 0, 0] = 0
        radius = np.hypot(*np.indices(grid))
        rings = np.minimum((radius / radius.max() * 16).astype(int), 15)
        means = np.zeros((len(energy), 16))
        for ring in set(rings.flatten().tolist()):
            means[:, ring] = energy[:, rings == ring].mean(axis=1)
        logs = np.log1p(means * np.arange(1, 17) ** power)
        shares.append(logs / logs.sum(axis=1, keepdims=True))
    target, share = shares
    ratio = np.log((target + 1e-8) / (share + 1e-8))
    return (target * ratio).sum(axis=1).mean()


@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (4, 6)])
def test_divergence_agrees_with_the_formula_by_hand(grid, delta):
    images = randn(5, 3, 32, 32).clamp(-1, 1)
    latents = randn(5, grid[0] * grid[1], 4, name="latents")
    measured = spectrum_divergence(latents, images, grid, delta=delta)
    assert measured.value == pytest.approx(by_hand(latents, images, grid, delta), abs=1e-6)
    assert measured.value > 0


def test_the_images_themselves_diverge_by_nothing():
    images = randn(5, 3, 32, 32).clamp(-1, 1)
    latents = small_images(images, (8, 8)).flatten(2).transpose(1, 2)
    assert spectrum_divergence(latents, images, (8, 8), delta=0).value == pytest.approx(0, abs=1e-9)
    noise = randn(5, 64, 3, name="noise")
    smooth = functional.interpolate(randn(5, 3, 2, 2), size=(32, 32), mode="bilinear")
    far = spectrum_divergence(noise, smooth, (8, 8), delta=0)
    assert far.value > spectrum_divergence(latents, images, (8, 8)).value


def test_errors_say_what_is_missing():
    with pytest.raises(NoValue, match="constant"):
        high_frequency_share(torch.zeros(3, 16, 2), (4, 4), 0.5)
    with pytest.raises(ValueError, match=r"grid of 4 x 4 needs latents \(n, 16, C\)"):
        high_frequency_share(randn(3, 15, 2), (4, 4), 0.5)
    with pytest.raises(ValueError, match="3 latents need as many images, not 2"):
        spectrum_divergence(randn(3, 16, 2), randn(2, 3, 8, 8), (4, 4))
