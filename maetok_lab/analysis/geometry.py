"""The shape of a cloud of latents: intrinsic dimension, spectrum, channels, and how much its tokens repeat each
other."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import as_rows, flat_chunks, spectrum_of, width_of
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

MAX_ROWS = 5000  # pairs of all rows are compared


def intrinsic_dimension(
    latents: Any, *, method: str = "twonn", neighbours: int = 10, seed: int = 0
) -> float:
    """How many numbers the latents need locally, from distances to nearest neighbours: (n, ...) -> a dimension > 0.

    "twonn" (Facco et al. 2017) uses the ratio of the second to the first distance, "mle" (Levina and Bickel 2005, with
    MacKay's average) the first `neighbours`. On at most 5,000 random rows. Both are too low for many dimensions and few
    rows. Raises ValueError for an unknown method or too few distinct rows.
    """
    rows = _sample(latents, MAX_ROWS, seed).unique(dim=0)  # a copy has distance 0 and no dimension
    needed = {"twonn": 2, "mle": neighbours}
    if method not in needed:
        raise ValueError(f"unknown method {method!r}; choose one of {sorted(needed)}")
    if needed[method] < 2:
        raise ValueError(f"{method} needs at least 2 neighbours, not {neighbours}")
    if len(rows) <= needed[method] + 1:
        raise ValueError(
            f"{method} needs more distinct latents than {len(rows)} for {needed[method]} neighbours"
        )
    distances = nearest_neighbours(rows, neighbours=needed[method]).distances  # (n, k)
    logs = (distances[:, -1:] / distances[:, :-1]).log()  # (n, k - 1)
    if method == "twonn":
        return float((len(rows) - 1) / logs.sum())
    # k - 2: the unbiased form (MacKay and Ghahramani 2005)
    return float((neighbours - 2) / logs.sum(dim=1).mean())


def spectrum_numbers(latents: Any) -> dict[str, float]:
    """The PCA spectrum in four numbers: dimensions for 90 % of the variance, effective rank, participation, top share.

    The effective rank is exp of the entropy of the variance shares, the participation ratio 1 / their squared sum.
    """
    spectrum = spectrum_of(latents)
    share = spectrum / spectrum.sum()
    return {
        "dimensions_90": float((share.cumsum(0) < 0.9 * (1 - 1e-12)).sum() + 1),
        "effective_rank": float((-(share * share.clamp(min=1e-300).log()).sum()).exp()),
        "participation_ratio": float(1 / share.square().sum()),
        "top_share": float(share[0]),
    }


def channel_statistics(latents: Any) -> pd.DataFrame:
    """Mean, standard deviation, skewness and excess kurtosis of each channel: (n, N, C) -> one row a channel."""
    latents = as_rows(latents)
    channels = latents.shape[-1]
    width_of(latents)
    moments = torch.zeros(4, channels, dtype=torch.float64)
    for _, rows in flat_chunks(latents, device="cpu"):
        x = rows.view(-1, channels)
        moments += torch.stack([(x**power).sum(dim=0) for power in (1, 2, 3, 4)])
    m1, m2, m3, m4 = moments / (latents.shape[0] * width_of(latents) / channels)
    variance = (m2 - m1**2).clamp(min=1e-300)
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    columns = {
        "mean": m1,
        "std": variance.sqrt(),
        "skewness": third / variance**1.5,
        "kurtosis": fourth / variance**2 - 3,
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()}).rename_axis(
        "channel"
    )


def token_correlation(latents: Any) -> float:
    """Mean absolute correlation over images between one channel of two different tokens: (n, N, C) -> [0, 1].

    0 for independent tokens, 1 for tokens that repeat each other; about sqrt(2 / (pi n)) for independent ones by
    chance. Raises ValueError unless latents are (n, N, C) with two tokens or more.
    """
    latents = as_rows(latents)
    if len(latents.shape) != 3 or latents.shape[1] < 2:
        raise ValueError(
            f"tokens are compared in latents (n, N, C) with N > 1, not {tuple(latents.shape)}"
        )
    _, tokens, channels = latents.shape
    count, first, second = 0, 0.0, torch.zeros(channels, tokens, tokens, dtype=torch.float64)
    offset = None
    for _, rows in flat_chunks(latents, device="cpu"):
        x = rows.view(len(rows), tokens, channels).permute(2, 0, 1)  # (C, b, N)
        offset = (
            x.mean(dim=1, keepdim=True) if offset is None else offset
        )  # near the mean: no cancellation
        x = x - offset
        count, first, second = (
            count + len(rows),
            first + x.sum(dim=1),
            second + x.transpose(1, 2) @ x,
        )
    mean = first / count
    covariance = second / count - mean[:, :, None] * mean[:, None, :]
    std = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    correlation = (covariance / (std[:, :, None] * std[:, None, :])).abs()
    off = ~torch.eye(tokens, dtype=torch.bool)
    return float(correlation[:, off].mean().clamp(max=1))


def _sample(latents: Any, most: int, seed: int) -> Tensor:
    """At most `most` random rows, flattened, float64 on the CPU."""
    latents = as_rows(latents)
    width_of(latents)
    pick = (
        torch.randperm(latents.shape[0], generator=generator(seed, "geometry"))[:most].sort().values
    )
    rows = latents[pick.to(latents.device) if isinstance(latents, Tensor) else pick.numpy()]
    rows = rows if isinstance(rows, Tensor) else torch.tensor(rows)
    if not rows.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    return rows.detach().flatten(1).double().cpu()
