"""Dimensions of known clouds, known spectra, statistics against pandas, repeated tokens."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from maetok_lab.analysis.geometry import (
    channel_statistics,
    intrinsic_dimension,
    spectrum_numbers,
    token_correlation,
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
