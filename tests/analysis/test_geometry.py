"""Dimensions of known clouds, known spectra, statistics against pandas, repeated tokens."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from maetok_lab.analysis.definitions import MEASURES
from maetok_lab.analysis.geometry import (
    channel_condition,
    channel_effective_rank,
    channel_statistics,
    density_evenness,
    intrinsic_dimension,
    spectrum_numbers,
    token_correlation,
    token_uniformity,
)
from maetok_lab.rng import generator


@pytest.mark.parametrize("method", ["twonn", "mle"])
@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_dimension_of_a_bent_surface_is_found(dimension, method):
    flat = torch.rand(2000, dimension, generator=generator(0, "flat"), dtype=torch.float64)
    mix = torch.randn(dimension, 12, generator=generator(0, "mix"), dtype=torch.float64)
    bent = torch.sin(0.7 * flat @ mix)  # curved, in 12 dimensions
    # rows at its edges have neighbours on one side only, which makes both estimates too low
    assert intrinsic_dimension(bent, method=method) == pytest.approx(dimension, rel=0.08)


@pytest.mark.parametrize("method", ["twonn", "mle"])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_dimension_of_a_torus_without_edges_is_found(dimension, method):
    estimates = []
    for seed in range(4):
        angles = 2 * math.pi * torch.rand(4000, dimension, generator=generator(seed, "torus"))
        torus = torch.cat([angles.cos(), angles.sin()], dim=1)
        estimates.append(intrinsic_dimension(torus, method=method))
    # with k - 2 where k - 1 belongs, the maximum likelihood was 11 % too low (10 neighbours)
    assert np.mean(estimates) == pytest.approx(dimension, rel=0.03)


def test_copies_do_not_count_and_errors_are_clear():
    rows = torch.rand(600, 3, generator=generator(0, "rows"))
    assert intrinsic_dimension(torch.cat([rows, rows])) == pytest.approx(
        intrinsic_dimension(rows), rel=0.02
    )
    with pytest.raises(ValueError, match=r"choose one of \['mle', 'twonn'\]"):
        intrinsic_dimension(rows, method="box")
    with pytest.raises(ValueError, match="distinct latents"):
        intrinsic_dimension(rows[:1].repeat(50, 1))
    with pytest.raises(ValueError, match="NaN"):
        intrinsic_dimension(torch.full((20, 3), math.nan))


def test_spectrum_numbers_of_known_variances():
    corners = torch.cartesian_prod(
        *[torch.tensor([-1.0, 1.0])] * 4
    )  # variance 1 in each of 4 independent directions
    even = spectrum_numbers(corners)
    assert even == pytest.approx(
        {"dimensions_90": 4, "effective_rank": 4, "participation_ratio": 4, "top_share": 0.25}
    )
    scaled = spectrum_numbers(corners * torch.tensor([10.0, 1, 1, 1]))
    assert scaled["top_share"] == pytest.approx(100 / 103)
    assert scaled["dimensions_90"] == 1
    assert scaled["participation_ratio"] == pytest.approx(103**2 / 10003)


def test_channel_statistics_agree_with_pandas():
    x = torch.randn(400, 3, 2, generator=generator(0, "x")).exp() + 5
    got = channel_statistics(x)
    series = [pd.Series(x[..., c].flatten().double().numpy()) for c in range(2)]
    np.testing.assert_allclose(got["mean"], [s.mean() for s in series], rtol=1e-9)
    np.testing.assert_allclose(got["std"], [s.std(ddof=0) for s in series], rtol=1e-9)
    # pandas corrects both for the number of rows; what is shown are the moments themselves
    np.testing.assert_allclose(got["skewness"], [stats.skew(s) for s in series], rtol=1e-8)
    np.testing.assert_allclose(got["kurtosis"], [stats.kurtosis(s) for s in series], rtol=1e-8)


def test_token_correlation_is_one_for_repeated_and_small_for_independent_tokens():
    one = torch.randn(500, 1, 3, generator=generator(0, "one"))
    assert token_correlation(100 + one * torch.tensor([1.0, -2.0, 3.0])[:, None]) == pytest.approx(
        1
    )
    many = torch.randn(500, 40, 3, generator=generator(0, "independent"))
    assert token_correlation(many) == pytest.approx(math.sqrt(2 / (math.pi * 500)), rel=0.03)
    independent = many[:, :6]
    mixed = torch.cat([independent, independent[:, :1] + independent[:, 1:2]], dim=1)
    assert token_correlation(mixed) > token_correlation(independent) + 0.03
    by_hand = np.corrcoef(mixed[:, :, 0].T)
    assert token_correlation(mixed[:, :, :1]) == pytest.approx(
        np.abs(by_hand[~np.eye(7, dtype=bool)]).mean(), rel=1e-5
    )
    with pytest.raises(ValueError, match="N > 1"):
        token_correlation(one)


# Channels against each other ----------------------------------------------------------------------


def corners(scales):
    """Latents of one token whose channels are independent, of these standard deviations."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * len(scales))
    return (100 + signs * torch.tensor(scales))[:, None]


def test_channel_rank_and_condition_of_known_variances():
    even = corners([3.0, 3.0, 3.0, 3.0])
    assert channel_effective_rank(even) == pytest.approx(1)
    assert channel_condition(even) == pytest.approx(1)
    # shares of the singular values 2, 1, 1 are 1/2, 1/4, 1/4: their entropy is 1.5 log 2
    uneven = corners([2.0, 1.0, 1.0])
    assert channel_effective_rank(uneven) == pytest.approx(2**1.5 / 3)
    assert channel_condition(uneven) == pytest.approx(4)
    # turning the channels changes neither
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator(0, "turn")))
    assert channel_effective_rank(uneven @ turned) == pytest.approx(2**1.5 / 3, rel=1e-5)
    assert channel_condition(uneven @ turned) == pytest.approx(4, rel=1e-4)


def test_channels_that_repeat_each_other_are_one():
    one = torch.randn(300, 2, 1, generator=generator(0, "one"))
    repeated = one * torch.tensor([1.0, -2.0, 3.0, 0.5])
    assert channel_effective_rank(repeated) == pytest.approx(1 / 4, rel=1e-4)
    assert channel_condition(repeated) == math.inf


def test_channel_rank_agrees_with_singular_values():
    x = torch.randn(200, 5, 4, generator=generator(0, "x")) * torch.tensor([1.0, 2, 3, 9]) + 7
    for pool, rows in ((True, x.mean(dim=1)), (False, x.flatten(0, 1))):
        values = np.linalg.svd((rows - rows.mean(0)).double().numpy(), compute_uv=False)
        share = values / values.sum()
        expected = np.exp(-(share * np.log(share)).sum()) / 4
        assert channel_effective_rank(x, pool=pool) == pytest.approx(expected)
    condition = np.linalg.cond(np.cov(x.flatten(0, 1).double().numpy().T))
    assert channel_condition(x) == pytest.approx(condition)
    for measure in (channel_condition, channel_effective_rank):
        with pytest.raises(ValueError, match=r"latents \(n, N, C\)"):
            measure(x.flatten(1))
        with pytest.raises(ValueError, match="constant"):
            measure(torch.full((20, 3, 4), 0.1))
        with pytest.raises(ValueError, match="NaN"):
            measure(x * math.nan)


def test_density_on_a_circle_is_even_and_in_clusters_it_is_not():
    angles = np.arange(200) * 2 * math.pi / 200
    circle = density_evenness(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert set(circle) <= set(MEASURES)
    assert list(circle.values()) == pytest.approx([0, 0, 1], abs=1e-6)
    # three heaps, at the corners of a triangle: by their points, densities are 2 to 1 to 1
    corners_of_triangle = [[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]]
    uneven = density_evenness(np.repeat(corners_of_triangle, [100, 50, 50], axis=0))
    density = np.repeat([2.0, 1.0], 100)
    cv = density.std() / density.mean()
    assert uneven["uniformity_density_cv"] == pytest.approx(cv, rel=1e-3)
    share = density / density.sum()
    entropy = -(share * np.log2(share)).sum() / np.log2(200)
    assert uneven["uniformity_entropy"] == pytest.approx(entropy, abs=1e-4)
    apart = np.abs(density[:, None] - density).mean()
    assert uneven["uniformity_gini"] == pytest.approx(apart / (2 * density.mean()), rel=1e-3)


def test_uniformity_is_that_of_random_normalised_tokens():
    latents = torch.randn(60, 5, 2, generator=generator(0, "even"))
    score = token_uniformity(latents, tokens=250)
    assert set(score) <= set(MEASURES)
    assert 0 < score["uniformity_gini"] < score["uniformity_density_cv"] < 1
    assert 0.9 < score["uniformity_entropy"] < 1
    # of channels only the shape counts, not their scale; other tokens give other numbers
    assert token_uniformity(latents * torch.tensor([4.0, 0.5]), tokens=250) == score
    assert token_uniformity(latents, tokens=250, seed=1) != score
    with pytest.raises(ValueError, match=r"more than 90 tokens, not 50; take more images"):
        token_uniformity(latents[:10])
