"""Fit a Gaussian mixture: k-means++ starts, short runs of all at once, a long run of the best."""

import dataclasses
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from maetok_lab.analysis.mixture import (
    Covariance,
    Mixture,
    Rows,
    expect,
    maximise,
    mean_log_likelihood,
    moments,
)
from maetok_lab.analysis.preprocess import float64_device, take_rows
from maetok_lab.hints import check_choice
from maetok_lab.rng import generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class GmmProtocol:
    """How mixtures are fitted and scored: curves compare only at equal protocols and dimensions."""

    # Principal components kept; None: the fewest that explain `variance`, a share in (0, 1].
    dimensions: int | None = None
    variance: float = 0.9  # share that the dimensions keep, where their number is open
    covariance: Covariance = "diag"  # of each component: its variances alone, or all of it
    restarts: int = 10  # starts; the best after the short runs is fitted
    max_iterations: int = 200  # of expectation maximisation, those of the short run included
    tolerance: float = 1e-3  # nats per row: the fit ends when an iteration gains less
    # Added to every variance, in standardised units squared, as scikit-learn does: no component can
    # shrink onto one row, whose density would be infinite.
    covariance_floor: float = 1e-3
    screen_iterations: int = 20  # of each short run
    start_rows: int = 20_000  # random rows from which the starts are made
    heldout: float = 0.2  # share of rows held out; 0 where held-out latents were given
    # Of scores and densities. float32 agrees to 1e-4 relative and is meant for GPUs; sums and the
    # result are float64 in any case.
    precision: Literal["float64", "float32"] = "float64"
    seed: int = 0  # of the held-out rows and the starts

    def __post_init__(self):
        # `not a < x <= b` refuses NaN too
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance must be in (0, 1], not {self.variance}")
        if self.dimensions is not None and self.dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, not {self.dimensions}")
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout must be a share in [0, 1), not {self.heldout}")
        if self.restarts < 1 or self.max_iterations < 1:
            raise ValueError(
                f"restarts ({self.restarts}) and max_iterations ({self.max_iterations}) "
                "must be at least 1"
            )
        check_choice(self.covariance, get_args(Covariance), "covariance")
        check_choice(self.precision, ("float64", "float32"), "precision")


def fit_gmm(
    points: Any,
    components: int,
    protocol: GmmProtocol,
    *,
    start: Mixture | None = None,
    device: torch.device | str | None = None,
) -> Mixture:
    """Fit a Gaussian mixture by expectation maximisation: rows (n, d) -> Mixture, where they are.

    `start` replaces the protocol's restarts. Raises ValueError for NaN, constant rows, components
    outside 1..n, and a start of other shapes.
    """
    device = float64_device(points, device)
    rows = Rows(points, device, getattr(torch, protocol.precision))
    _check_rows(rows, components)
    if start is None:
        start = _best_start(rows, components, protocol)
    else:
        start = _checked_start(start, components, protocol, rows)
    steps = protocol.max_iterations - start.iterations
    climb = _climb(rows, start, steps, protocol.tolerance, protocol.covariance_floor)
    return dataclasses.replace(
        climb.mixture.apply(lambda part: part[0].double()),
        train_nll=-float(climb.likelihood[0]),
        converged=climb.converged,
    )


# Iterations ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Climb:
    """Where some iterations led."""

    mixture: Mixture  # R restarts
    likelihood: Tensor  # (R,), mean log-likelihood in nats per row
    converged: bool  # the last iteration gained less than the tolerance, in every restart


def _climb(rows: Rows, mixture: Mixture, steps: int, tolerance: float, floor: float) -> _Climb:
    """At most `steps` iterations of all restarts at once; the likelihood never falls."""
    before: Tensor | float = -math.inf
    for _ in range(steps):
        statistics = expect(rows, mixture)
        likelihood = statistics.likelihood
        if _settled(likelihood, before, tolerance):
            return _Climb(mixture, likelihood, True)
        before = likelihood
        iterations = mixture.iterations + 1
        mixture = dataclasses.replace(maximise(statistics, mixture, floor), iterations=iterations)
    likelihood = mean_log_likelihood(rows, mixture)  # nobody would read the statistics
    return _Climb(mixture, likelihood, _settled(likelihood, before, tolerance))


def _settled(likelihood: Tensor, before: Tensor | float, tolerance: float) -> bool:
    return bool((likelihood - before).abs().max() < tolerance)


# Starts -------------------------------------------------------------------------------------------


def _best_start(rows: Rows, components: int, protocol: GmmProtocol) -> Mixture:
    """Of several starts, the one with the highest likelihood after a short run; an axis in front.

    A bad start shows within a few iterations, and rows are read once for all of them.
    """
    starts = _starts(rows, components, protocol)
    if len(starts.weights) == 1:
        return starts
    steps = min(protocol.screen_iterations, protocol.max_iterations)
    climb = _climb(rows, starts, steps, 0.0, protocol.covariance_floor)
    best = climb.likelihood.argmax()[None]
    return climb.mixture.apply(lambda part: part[best])


def _starts(rows: Rows, components: int, protocol: GmmProtocol) -> Mixture:
    """Mixtures (R, K) at the means of k-means++ clusters, with the clusters' pooled covariance."""
    random = generator(protocol.seed, "gmm", "start", components)
    restarts = protocol.restarts if components > 1 else 1  # one Gaussian has one best fit

    # A sample is enough for a start: centres cost rows x components x candidates.
    sample = rows
    size = max(protocol.start_rows, components)
    if rows.count > size:
        indices = torch.randperm(rows.count, generator=random)[:size].sort().values
        sample = Rows(take_rows(rows.points, indices), rows.device, rows.dtype)
    means = _plus_plus(sample[:], components, restarts, random)

    # Every row goes to its nearest centre: the most probable of equal, spherical components.
    unit = torch.ones(rows.width, dtype=rows.dtype, device=rows.device)
    if protocol.covariance == "full":
        unit = torch.diag(unit)
    weights = torch.full(means.shape[:2], 1 / components, dtype=rows.dtype, device=rows.device)
    spherical = Mixture(weights, means, unit.expand(restarts, components, *unit.shape))
    clusters = expect(sample, spherical, hard=True)
    counts = clusters.counts  # (R, K)
    average = clusters.sums / counts.clamp(min=1)[..., None]
    centres, within = moments(average, spherical, 0.0)

    # One covariance for all: a small cluster's own would be too narrow to leave.
    shares = counts / counts.sum(dim=1, keepdim=True)
    shares = shares.view(*counts.shape, *[1] * unit.ndim)
    pooled = (shares * within).sum(dim=1, keepdim=True)
    pooled = pooled + protocol.covariance_floor * unit.double()
    # Every centre keeps some weight, also one that shares all its rows with a twin.
    weights = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)
    centres = torch.where(counts[..., None] > 0, centres, means.double())
    return Mixture(weights, centres, pooled.expand(-1, components, *unit.shape)).to(rows.dtype)


def _plus_plus(points: Tensor, components: int, restarts: int, random: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): rows (m, d) -> centres (R, K, d).

    Each next centre is the best of 2 + log K candidates, drawn with probability proportional to the
    squared distance from the centres so far.
    """
    trials = 2 + int(math.log(components))
    restart = torch.arange(restarts, device=points.device)
    squares = points.square().sum(dim=1)
    uniform = torch.rand(components, restarts, trials, generator=random, dtype=torch.float64)
    uniform = uniform.to(points.device)
    centres = [(uniform[0, :, 0] * len(points)).long()]  # rows (R,), one entry a centre
    nearest = _squared_distances(points, squares, centres[0])  # (R, m), to the nearest centre
    for step in range(1, components):
        # a uniform number picks its row by the running sum of squared distances
        reach = nearest.cumsum(dim=1)
        targets = (uniform[step] * reach[:, -1:]).to(reach.dtype)
        candidates = torch.searchsorted(reach, targets).clamp(max=len(points) - 1)  # (R, trials)
        distances = _squared_distances(points, squares, candidates.flatten())
        distances = distances.view(restarts, trials, -1)
        distances = torch.minimum(distances, nearest[:, None])
        # greedy: the candidate that leaves the least distance in all
        best = distances.sum(dim=2).argmin(dim=1)  # (R,)
        nearest = distances[restart, best]
        centres.append(candidates[restart, best])
    return points[torch.stack(centres, dim=1)]


def _squared_distances(points: Tensor, squares: Tensor, indices: Tensor) -> Tensor:
    """|x - c|^2 = |x|^2 - 2 c'x + |c|^2, all rows x (m, d) to rows c = points[indices]: (k, m)."""
    products = torch.addmm(squares, points[indices], points.T, alpha=-2)
    return products.add_(squares[indices, None]).clamp_(min=0)


# Checks -------------------------------------------------------------------------------------------


def _checked_start(start: Mixture, components: int, protocol: GmmProtocol, rows: Rows) -> Mixture:
    """The start as one restart, on the device and of the type of the rows."""
    if start.means.shape != (components, rows.width) or start.covariance != protocol.covariance:
        raise ValueError(
            f"the start has {tuple(start.means.shape)} means and {start.covariance} covariances, "
            f"but ({components}, {rows.width}) and {protocol.covariance} are to be fitted"
        )
    batch = start.to(rows.device, rows.dtype).apply(lambda part: part[None])
    return dataclasses.replace(batch, iterations=0)


def _check_rows(rows: Rows, components: int) -> None:
    if not 1 <= components <= rows.count:
        raise ValueError(
            f"components must be between 1 and {rows.count}, the number of rows, not {components}"
        )
    size = 1 << 16
    for start in range(0, rows.count, size):
        part = rows[start : start + size]
        # the sum alone clears nearly all rows, in one pass
        if not part.sum().isfinite() and not part.isfinite().all():
            end = start + len(part)
            raise ValueError(f"points hold NaN or infinite values, in rows {start} to {end - 1}")
    # the first two rows tell varied ones from constant ones nearly always
    first = rows[:1]
    if rows.count > 1 and (first == rows[1:2]).all() and (first == rows[1:size]).all():
        raise ValueError("points are constant: all rows are the same")
