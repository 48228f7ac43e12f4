"""The shape of a cloud of latents: intrinsic dimension, spectrum, channels, repeated tokens.

All sums and distances are float64: moments and distances of near neighbours are small differences.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
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
ROUNDING = 1e-12  # a variance so much below the largest, or the squared mean, is none
PERPLEXITY = 30  # of t-SNE, about how many neighbours it looks at


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


# Channels against each other ----------------------------------------------------------------------


def channel_effective_rank(latents: Any, *, pool: bool = True) -> float:
    """eRank / C: exp of the entropy of the singular values' shares, over the channels: in (0, 1].

    Of latents (n, N, C) less their mean, tokens averaged if `pool`, else all tokens as rows. Raises
    ValueError for constant latents and NaN.
    """
    variances = channel_variances(latents, pool=pool)
    share = variances.sqrt() / variances.sqrt().sum()
    entropy = -(share * share.clamp(min=TINY).log()).sum()
    return float(entropy.exp() / len(share))


def channel_condition(latents: Any) -> float:
    """Largest over smallest variance along an axis of channel space, all tokens as rows; >= 1.

    Infinite where some channels are sums of others. Raises ValueError as `channel_effective_rank`.
    """
    variances = channel_variances(latents, pool=False)
    return float(variances[0] / variances[-1]) if variances[-1] > 0 else math.inf


def channel_variances(latents: Any, *, pool: bool) -> Tensor:
    """Eigenvalues (C,) of the channels' covariance, largest first, those of rounding as 0."""
    latents = as_rows(latents)
    if len(latents.shape) != 3:
        raise ValueError(f"channels are those of latents (n, N, C), not {tuple(latents.shape)}")
    width_of(latents)
    channels = latents.shape[2]

    def rows() -> Iterator[Tensor]:
        for _, flat in flat_chunks(latents, "cpu"):
            tokens = flat.view(len(flat), -1, channels)
            yield tokens.mean(dim=1) if pool else tokens.flatten(0, 1)

    # centred before the product: E[x x'] - m m' would lose the digits that the mean takes
    count = latents.shape[0] * (1 if pool else latents.shape[1])
    mean = sum(part.sum(dim=0) for part in rows()) / count
    covariance = torch.zeros(channels, channels, dtype=torch.float64)
    for part in rows():
        covariance += (part - mean).T @ (part - mean) / count
    if not covariance.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    variances = torch.linalg.eigvalsh(covariance).flip(0)
    if variances[0] <= ROUNDING**2 * mean.square().sum():
        raise ValueError("latents are constant: they have no variance")
    return torch.where(variances > ROUNDING * variances[0], variances, 0.0)


def token_uniformity(latents: Any, *, tokens: int = 10_000, seed: int = 0) -> dict[str, float]:
    """How evenly random tokens of (n, N, C) lie on a t-SNE map: what `density_evenness` says.

    Slow (minutes) and noisy: VA-VAE averages ten runs. Raises ValueError for too few tokens.
    """
    from sklearn.manifold import TSNE  # takes a second to import, and this is seldom called

    latents = as_rows(latents)
    count, per_image, _ = latents.shape
    if min(tokens, count * per_image) <= 3 * PERPLEXITY:
        raise ValueError(
            f"t-SNE needs more than {3 * PERPLEXITY} tokens, not {min(tokens, count * per_image)}; "
            "take more images, or raise `tokens`"
        )

    # random tokens of random images, less channels' means and over their standard deviations
    order = torch.randperm(count * per_image, generator=generator(seed, "uniformity"))[:tokens]
    places = order % per_image
    statistics = channel_statistics(latents)
    flat = take_rows(latents, order // per_image)[torch.arange(len(order)), places].double().cpu()
    mean, std = torch.tensor(statistics[["mean", "std"]].to_numpy().T)
    mapper = TSNE(2, perplexity=PERPLEXITY, init="pca", random_state=seed, n_jobs=1)
    return density_evenness(mapper.fit_transform(((flat - mean) / std).float().numpy()))


def density_evenness(points: np.ndarray) -> dict[str, float]:
    """Variation, Gini coefficient and entropy of the density at points (n, 2): 0, 0, 1 if even."""
    from scipy.stats import gaussian_kde  # here, because importing it takes half a second

    density = np.sort(gaussian_kde(points.T)(points.T))
    count = len(density)
    share = density / density.sum()
    rank = 2 * np.arange(1, count + 1) - count - 1
    return {
        "uniformity_density_cv": float(density.std() / density.mean()),
        "uniformity_gini": float((rank * share).sum() / count),
        "uniformity_entropy": float(-(share * np.log2(share + 1e-10)).sum() / math.log2(count)),
    }
