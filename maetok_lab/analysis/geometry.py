"""The shape of a cloud of latents: intrinsic dimension, spectrum, channels, repeated tokens.

All sums and distances are float64: moments and distances of near neighbours are small differences.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import (
    as_rows,
    flat_chunks,
    needed_dimensions,
    spectrum_of,
    take_rows,
    width_of,
)
from maetok_lab.hints import choose
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

MAX_ROWS = 5000  # distances of all pairs of so many rows are taken, at random
NEIGHBOURS = {"twonn": 2, "mle": 10}  # distances to so many go into each estimate of the dimension
TINY = 1e-300  # least variance: the smallest power of ten that float64 holds well


def intrinsic_dimension(latents: Any, *, method: str = "twonn", seed: int = 0) -> float:
    """How many numbers latents (n, ...) need locally, by distances to near neighbours; > 0.

    "twonn" (Facco et al. 2017) or "mle" (Levina and Bickel 2005), on at most 5,000 random rows.
    Raises ValueError for an unknown method, NaN, or too few distinct rows.
    """
    # Both estimates are too low where dimensions are many and rows few.
    neighbours = choose(method, NEIGHBOURS, "method")
    rows = _sample(latents, seed).unique(dim=0)  # a copy has distance 0 and no dimension
    if len(rows) <= neighbours + 1:
        raise ValueError(
            f"{method} needs more distinct latents than {len(rows)} for {neighbours} neighbours"
        )
    distances = nearest_neighbours(rows, neighbours=neighbours).distances  # (n, k)
    logs = (distances[:, -1:] / distances[:, :-1]).log()  # (n, k - 1)
    if method == "twonn":
        # the ratio of both distances is Pareto-distributed, with the dimension as exponent
        return float((len(rows) - 1) / logs.sum())
    # The sum of k - 1 logs is Gamma-distributed with mean (k - 1) / dimension. Inverses of the
    # estimates are averaged (MacKay and Ghahramani 2005), which k - 2 instead would make too low.
    return float((neighbours - 1) / logs.sum(dim=1).mean())


def _sample(latents: Any, seed: int) -> Tensor:
    """At most `MAX_ROWS` random rows, flattened, float64 on the CPU."""
    latents = as_rows(latents)
    width_of(latents)
    order = torch.randperm(latents.shape[0], generator=generator(seed, "geometry"))
    rows = take_rows(latents, order[:MAX_ROWS].sort().values)
    if not rows.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    return rows.detach().flatten(1).double().cpu()


def spectrum_numbers(latents: Any) -> dict[str, float]:
    """The PCA spectrum of latents (n, ...) in four numbers.

    Dimensions for 90 % of the variance, effective rank (exp of the entropy of the variance shares),
    participation ratio (1 / sum of their squares), and the share of the first.
    """
    spectrum = spectrum_of(latents)
    share = spectrum / spectrum.sum()
    entropy = -(share * share.clamp(min=TINY).log()).sum()
    return {
        "dimensions_90": float(needed_dimensions(spectrum, 0.9)),
        "effective_rank": float(entropy.exp()),
        "participation_ratio": float(1 / share.square().sum()),
        "top_share": float(share[0]),
    }


def channel_statistics(latents: Any) -> pd.DataFrame:
    """Mean, std, skewness and excess kurtosis of each channel: (n, N, C) -> one row a channel."""
    latents = as_rows(latents)
    channels = latents.shape[-1]
    count = latents.shape[0] * width_of(latents) / channels  # numbers in a channel

    # Raw moments E[x^p] in one pass, then central ones by the binomial formula.
    sums = torch.zeros(4, channels, dtype=torch.float64)
    for _, rows in flat_chunks(latents, "cpu"):
        x = rows.view(-1, channels)
        for power in (1, 2, 3, 4):
            sums[power - 1] += (x**power).sum(dim=0)
    m1, m2, m3, m4 = sums / count
    variance = (m2 - m1**2).clamp(min=TINY)
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    columns = {
        "mean": m1.numpy(),
        "std": variance.sqrt().numpy(),
        "skewness": (third / variance**1.5).numpy(),
        "kurtosis": (fourth / variance**2 - 3).numpy(),
    }
    return pd.DataFrame(columns).rename_axis("channel")


def token_correlation(latents: Any) -> float:
    """Mean absolute correlation over images between one channel of two different tokens.

    (n, N, C) -> [0, 1]: 0 for independent tokens, 1 for tokens that repeat each other. Raises
    ValueError unless there are two tokens or more.
    """
    # Of n images, independent tokens too have about sqrt(2 / (pi n)), by chance.
    latents = as_rows(latents)
    if len(latents.shape) != 3 or latents.shape[1] < 2:
        raise ValueError(
            f"tokens are compared in latents (n, N, C) with N > 1, not {tuple(latents.shape)}"
        )
    count, tokens, channels = latents.shape

    # Covariances of tokens in one pass; less an offset near the mean, so that little cancels.
    first = 0.0
    second = torch.zeros(channels, tokens, tokens, dtype=torch.float64)
    offset = None
    for _, rows in flat_chunks(latents, "cpu"):
        x = rows.view(len(rows), tokens, channels).permute(2, 0, 1)  # (C, b, N)
        if offset is None:
            offset = x.mean(dim=1, keepdim=True)
        x = x - offset
        first = first + x.sum(dim=1)
        second = second + x.transpose(1, 2) @ x
    mean = first / count
    covariance = second / count - mean[:, :, None] * mean[:, None, :]  # (C, N, N)

    std = covariance.diagonal(dim1=1, dim2=2).clamp(min=TINY).sqrt()
    correlation = (covariance / (std[:, :, None] * std[:, None, :])).abs()
    different = ~torch.eye(tokens, dtype=torch.bool)
    return float(correlation[:, different].mean().clamp(max=1))
