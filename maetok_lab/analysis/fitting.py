"""Fit a Gaussian mixture: greedy k-means++ starts, short runs of all restarts at once, a long run of the best."""

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.analysis.mixture import (
    Covariance,
    Mixture,
    Rows,
    batched,
    expect,
    maximise,
    mean_log_likelihood,
    moments,
    refill,
)
from maetok_lab.analysis.preprocess import device_of
from maetok_lab.rng import generator


def fit_gmm(
    points: Any,
    components: int,
    *,
    covariance: Covariance = "diag",
    restarts: int = 10,
    seed: int = 0,
    max_iterations: int = 200,
    tolerance: float = 1e-3,
    covariance_floor: float = 1e-3,
    screen_iterations: int = 20,
    start_rows: int = 20_000,
    start: Mixture | None = None,
    chunk_rows: int = 0,
    precision: Literal["float64", "float32"] = "float64",
    device: torch.device | str | None = None,
) -> Mixture:
    """Fit a Gaussian mixture by expectation maximisation: rows (n, d) -> Mixture on the same device.

    Each restart begins at greedy k-means++ centres of `start_rows` random rows with their pooled variance, and runs
    `screen_iterations`; the best goes on until the mean log-likelihood gains less than `tolerance` nats an iteration.
    `covariance_floor` is added to every variance (as in scikit-learn). A component with less than half a row is put on
    a half of the heaviest. `start` replaces the restarts. Raises ValueError for NaN, constant rows, or components > n.
    """
    device = device_of(points, device)
    rows = Rows(
        points, device, {"float64": torch.float64, "float32": torch.float32}[precision], chunk_rows
    )
    _check_rows(rows, components, covariance)
    if start is None:
        restarts = 1 if components == 1 else restarts
        start = _starts(rows, components, covariance, restarts, start_rows, covariance_floor, seed)
        if restarts > 1:
            start = _best(rows, start, min(screen_iterations, max_iterations), covariance_floor)
    else:
        start = _checked_start(start, components, covariance, rows)
    left = max_iterations - start.iterations
    mixture, likelihood, converged = _iterate(rows, start, left, tolerance, covariance_floor)
    return Mixture(
        *(part[0].double() for part in (mixture.weights, mixture.means, mixture.covariances)),
        train_nll=-float(likelihood[0]),
        iterations=mixture.iterations,
        converged=converged,
    )


def split_heaviest(mixture: Mixture, components: int) -> Mixture:
    """A mixture of more components: again and again the heaviest is cut in two along its widest axis."""
    batch = batched(mixture)
    extra = components - batch.weights.shape[-1]
    if extra < 0:
        raise ValueError(
            f"cannot go from {batch.weights.shape[-1]} components to {components} by splitting"
        )
    weights, means, covariances = (
        torch.cat([part, part.new_zeros(1, extra, *part.shape[2:])], dim=1)
        for part in (batch.weights, batch.means, batch.covariances)
    )
    refill(weights[0], means[0], covariances[0], list(range(components - extra, components)))
    return Mixture(weights[0], means[0], covariances[0])


def _best(rows: Rows, starts: Mixture, steps: int, floor: float) -> Mixture:
    """Of R mixtures, the one with the highest likelihood after a few iterations."""
    mixture, likelihood, _ = _iterate(rows, starts, steps, 0.0, floor)
    best = likelihood.argmax()[None]
    return dataclasses.replace(
        mixture,
        weights=mixture.weights[best],
        means=mixture.means[best],
        covariances=mixture.covariances[best],
    )


def _iterate(
    rows: Rows, mixture: Mixture, steps: int, tolerance: float, floor: float
) -> tuple[Mixture, Tensor, bool]:
    """Up to `steps` iterations -> mixture (R restarts), its mean log-likelihood (R,), whether it stopped gaining."""
    before = None
    for _ in range(steps):
        statistics, likelihood = expect(rows, mixture)
        if before is not None and _settled(likelihood, before, tolerance):
            return mixture, likelihood, True
        before = likelihood
        mixture = dataclasses.replace(
            maximise(statistics, mixture, floor), iterations=mixture.iterations + 1
        )
    likelihood = mean_log_likelihood(
        rows, mixture
    )  # without the statistics: nobody would read them
    return mixture, likelihood, before is not None and _settled(likelihood, before, tolerance)


def _settled(likelihood: Tensor, before: Tensor, tolerance: float) -> bool:
    return bool((likelihood - before).abs().max() < tolerance)


# Starts ---------------------------------------------------------------------------------------------------------------


def _starts(
    rows: Rows,
    components: int,
    covariance: Covariance,
    restarts: int,
    start_rows: int,
    floor: float,
    seed: int,
) -> Mixture:
    random = generator(seed, "gmm", "start", components)
    sample = rows
    if rows.count > max(start_rows, components):
        pick = (
            torch.randperm(rows.count, generator=random)[: max(start_rows, components)]
            .sort()
            .values
        )
        sample = Rows(rows[pick], rows.device, rows.dtype, rows.chunk_rows)
    means = _plus_plus(sample[:], components, restarts, random)
    ones = torch.ones(rows.width, dtype=rows.dtype, device=rows.device)
    unit = ones if covariance == "diag" else torch.diag(ones)
    weights = torch.full(means.shape[:2], 1 / components, dtype=rows.dtype, device=rows.device)
    spherical = Mixture(weights, means, unit.expand(restarts, components, *unit.shape))
    (counts, sums), _ = expect(sample, spherical, hard=True)
    centres, within = moments(sums / counts.clamp(min=1)[..., None], spherical, 0.0)
    shares = (counts / counts.sum(dim=1, keepdim=True)).view(*counts.shape, *[1] * unit.ndim)
    pooled = (shares * within).sum(dim=1, keepdim=True) + floor * unit.double()
    # every centre keeps some weight, also one that shares all its rows with a twin
    weights = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)
    centres = torch.where(counts[..., None] > 0, centres, means.double())
    return Mixture(weights, centres, pooled.expand(-1, components, *unit.shape)).to(rows.dtype)


def _plus_plus(points: Tensor, components: int, restarts: int, random: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007), 2 + log K candidates a centre: (m, d) -> (R, K, d)."""
    trials = 2 + int(math.log(components))
    squares = points.square().sum(dim=1)
    uniform = torch.rand(components, restarts, trials, generator=random, dtype=torch.float64).to(
        points.device
    )
    chosen = [(uniform[0, :, 0] * len(points)).long()]  # each (R,)
    nearest = _distances(points, squares, chosen[0])  # (R, m) squared
    for step in range(1, components):
        reach = nearest.cumsum(dim=1)
        picks = torch.searchsorted(reach, (uniform[step] * reach[:, -1:]).to(reach.dtype)).clamp(
            max=len(points) - 1
        )
        distances = _distances(points, squares, picks.flatten()).view(restarts, trials, -1)
        distances = torch.minimum(distances, nearest[:, None])
        best = distances.sum(dim=2).argmin(dim=1)  # (R,)
        rank = torch.arange(restarts, device=points.device)
        nearest = distances[rank, best]
        chosen.append(picks[rank, best])
    return points[torch.stack(chosen, dim=1)]


def _distances(points: Tensor, squares: Tensor, picks: Tensor) -> Tensor:
    return (
        torch.addmm(squares, points[picks], points.T, alpha=-2)
        .add_(squares[picks, None])
        .clamp_(min=0)
    )


# Checks ---------------------------------------------------------------------------------------------------------------


def _checked_start(start: Mixture, components: int, covariance: Covariance, rows: Rows) -> Mixture:
    if (
        start.weights.shape != (components,)
        or start.covariance != covariance
        or start.means.shape[1] != rows.width
    ):
        raise ValueError(
            f"the start has {tuple(start.means.shape)} means and {start.covariance} covariances, but "
            f"({components}, {rows.width}) and {covariance} are to be fitted"
        )
    return batched(start.to(rows.device).to(rows.dtype))


def _check_rows(rows: Rows, components: int, covariance: str) -> None:
    if covariance not in ("diag", "full"):
        raise ValueError(f"unknown covariance {covariance!r}; choose one of ['diag', 'full']")
    if not 1 <= components <= rows.count:
        raise ValueError(
            f"components must be between 1 and {rows.count}, the number of rows, not {components}"
        )
    for start in range(0, rows.count, 1 << 16):
        part = rows[start : start + (1 << 16)]
        if (
            not part.sum().isfinite() and not part.isfinite().all()
        ):  # the sum alone clears nearly all rows, in one pass
            raise ValueError(f"points hold NaN or infinite values, after row {start}")
    # the first two rows tell varied ones from constant ones nearly always
    if rows.count > 1 and all(bool((rows[:1] == rows[1:stop]).all()) for stop in (2, 1 << 16)):
        raise ValueError("points are constant: all rows are the same")
