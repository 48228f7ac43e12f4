"""Fit a Gaussian mixture: k-means++ starts, short runs of all at once, long runs of the best."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from maetok_lab.analysis.mixture import (
    Covariance,
    Mixture,
    Rows,
    check_digits,
    expect,
    maximise,
    mean_log_likelihoods,
)
from maetok_lab.analysis.preprocess import check_resolution, flat_chunks, float64_device, take_rows
from maetok_lab.hints import check_choice
from maetok_lab.rng import generator

K_MEANS_ITERATIONS = 20  # the most of a start
TIES = 1e-6  # relative: what rounding, which differs with the number of restarts, must not decide


@dataclasses.dataclass(frozen=True, kw_only=True)
class GmmProtocol:
    """How mixtures are fitted and scored: curves compare only at equal protocols and dimensions."""

    # Principal components kept; None: the fewest that explain `variance`, a share in (0, 1].
    dimensions: int | None = None
    variance: float = 0.9  # share that the dimensions keep, where their number is open
    covariance: Covariance = "diag"  # of each component: its variances alone, or all of it
    restarts: int = 10  # starts; those best after the short runs are fitted, see `_promising`
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

    More restarts are never worse. `start` replaces them. Raises ValueError for NaN, constant rows,
    rows that their dtype or the precision cannot hold, components outside 1..n, and a start of
    other shapes.
    """
    device = float64_device(points, device)
    dtype = getattr(torch, protocol.precision)
    if len(points.shape) != 2:
        raise ValueError(f"points must be (n, d), not {tuple(points.shape)}")
    if not 1 <= components <= len(points):
        raise ValueError(
            f"components must be between 1 and {len(points)}, the number of rows, not {components}"
        )
    origin = _checked_mean(points, device, protocol)
    rows = Rows(points, device, dtype, origin=origin)
    if start is None:
        runs = _starts(rows, components, protocol)
    else:
        runs = [_checked_start(start, components, protocol, rows)]
    if len(runs) > 1:
        steps = min(protocol.screen_iterations, protocol.max_iterations)
        runs = _promising(_climb(rows, runs, steps, protocol))
    runs = _climb(rows, runs, protocol.max_iterations, protocol)
    best = min(runs, key=lambda run: run.train_nll)
    check_digits(best)
    return best.less(-origin).to(torch.float64)


# Iterations ---------------------------------------------------------------------------------------


def _climb(
    rows: Rows, runs: Sequence[Mixture], iterations: int, protocol: GmmProtocol
) -> list[Mixture]:
    """Every run until it gains less than the tolerance, or has `iterations` behind it."""
    runs = list(runs)
    before = [-math.inf] * len(runs)
    # rows are read once for all runs that go on
    while active := [
        index for index, run in enumerate(runs) if not run.converged and run.iterations < iterations
    ]:
        statistics = expect(rows, [runs[index] for index in active])
        for index, sums in zip(active, statistics, strict=True):
            run = runs[index]
            likelihood = float(sums.log_likelihood) / rows.count
            if abs(likelihood - before[index]) < protocol.tolerance:
                runs[index] = dataclasses.replace(run, train_nll=-likelihood, converged=True)
                continue
            before[index] = likelihood
            mixture = maximise(sums, run, protocol.covariance_floor)
            runs[index] = dataclasses.replace(mixture, iterations=run.iterations + 1)

    # those that were stopped need no statistics, their likelihood alone
    stopped = [index for index, run in enumerate(runs) if not run.converged]
    if stopped:
        likelihoods = mean_log_likelihoods(rows, [runs[index] for index in stopped])
        for index, likelihood in zip(stopped, likelihoods, strict=True):
            settled = abs(likelihood - before[index]) < protocol.tolerance
            runs[index] = dataclasses.replace(runs[index], train_nll=-likelihood, converged=settled)
    return runs


def _promising(runs: Sequence[Mixture]) -> list[Mixture]:
    """Of short runs, those that converged and those that are better than every run before them.

    A run is among them whatever comes after it. So more restarts only add to what is fitted to the
    end, and are never worse; of ten, about three are records.
    """
    promising = []
    lowest = math.inf
    for run in runs:
        if run.converged or run.train_nll < lowest:
            promising.append(run)
        lowest = min(lowest, run.train_nll)
    return promising


# Starts -------------------------------------------------------------------------------------------


def _starts(rows: Rows, components: int, protocol: GmmProtocol) -> list[Mixture]:
    """Mixtures at the means of k-means++ clusters, with the clusters' pooled covariance."""
    restarts = protocol.restarts if components > 1 else 1  # one Gaussian has one best fit

    # A sample is enough for a start: centres cost rows x components x candidates.
    sample = rows
    size = max(protocol.start_rows, components)
    if rows.count > size:
        random = generator(protocol.seed, "gmm", "start rows", components)
        indices = torch.randperm(rows.count, generator=random)[:size].sort().values
        sample = Rows(take_rows(rows.points, indices), rows.device, rows.dtype, origin=rows.origin)
    # each restart draws from a stream of its own: the first of many is the only one of one
    randoms = [
        generator(protocol.seed, "gmm", "start", components, restart) for restart in range(restarts)
    ]
    points = sample[:]
    centres = _plus_plus(points, components, randoms)
    if protocol.covariance == "diag":
        second = points.square().mean(dim=0).double()
    else:
        second = (points.T @ points).double() / len(points)

    starts = []
    for restart, means in enumerate(centres):
        # One assignment serves components that differ in shape, k-means those that are alike.
        iterations = K_MEANS_ITERATIONS if restart % 2 else 1
        means, counts = _k_means(points, means, iterations, protocol.tolerance)
        start = _pooled(means.double(), counts.double(), second, protocol.covariance_floor)
        starts.append(start.to(rows.dtype))
    return starts


def _pooled(means: Tensor, counts: Tensor, second: Tensor, floor: float) -> Mixture:
    """Mixture at clusters (K, d) of `counts` (K,) rows, with one covariance within all of them.

    `second` (d,) or (d, d) are all rows' mean squares or products.
    """
    # a small cluster's own covariance would be too narrow to leave
    shares = counts / counts.sum()
    if second.ndim == 1:
        covariance = (second - shares @ means.square()).clamp(min=0) + floor
    else:
        eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
        covariance = second - (means.T * shares) @ means + floor * eye
    # Every centre keeps some weight, also one that shares all its rows with a twin.
    weights = (counts + 1) / (counts + 1).sum()
    return Mixture(weights, means, covariance.expand(len(counts), *covariance.shape))


def _k_means(
    points: Tensor, means: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from centres (K, d) over rows (m, d): means (K, d), rows of each (K,).

    They end when one gains less than the tolerance, as nats per row of equal, spherical Gaussians.
    """
    power = float(points.square().sum()) / len(points)
    width = points.shape[1]
    before = math.inf
    for _ in range(iterations):
        # |x - c|^2 = |x|^2 - 2 (c'x - |c|^2 / 2) is least where the bracket is greatest
        scores = torch.addmm(-0.5 * means.square().sum(dim=1)[:, None], means, points.T)
        top = scores.amax(dim=0)
        nearest = (scores == top).to(points.dtype)  # (K, m)
        nearest /= nearest.sum(dim=0)  # twins share their rows
        counts = nearest.sum(dim=1)
        sums = nearest @ points
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=0.5)[:, None], means)
        distance = max(power - 2 * float(top.mean()), 1e-300)
        if width / 2 * (math.log(before) - math.log(distance)) <= tolerance:
            break
        before = distance
    return means, counts


def _plus_plus(points: Tensor, components: int, randoms: Sequence[torch.Generator]) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): rows (m, d) -> centres (R, K, d).

    Each next centre is the best of 2 + log K candidates, drawn with probability proportional to the
    squared distance from the centres so far.
    """
    trials = 2 + int(math.log(components))
    restarts = len(randoms)
    restart = torch.arange(restarts, device=points.device)
    squares = points.square().sum(dim=1)
    draws = [
        torch.rand(components, trials, generator=random, dtype=torch.float64) for random in randoms
    ]
    uniform = torch.stack(draws, dim=1).to(points.device)  # (K, R, trials)
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
        # greedy: the first candidate that leaves the least distance in all
        totals = distances.sum(dim=2)
        least = totals.amin(dim=1, keepdim=True)
        best = (totals <= least * (1 + TIES)).int().argmax(dim=1)  # (R,)
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
    centred = start.to(rows.device).less(rows.origin).to(rows.dtype)
    return dataclasses.replace(centred, iterations=0, converged=False)


def _checked_mean(points: Any, device: torch.device, protocol: GmmProtocol) -> Tensor:
    """The mean row (d,) float64. Raises ValueError for rows that cannot be fitted."""
    # relative to the first row, so that a constant dimension has no variance at all
    first = next(flat_chunks(points[:1], device))[1][0]
    total = torch.zeros_like(first)
    for start, part in flat_chunks(points, device):
        total += (part - first).sum(dim=0)
        # the sum alone clears nearly all rows, in one pass
        if not total.isfinite().all() and not part.isfinite().all():
            end = start + len(part) - 1
            raise ValueError(f"points hold NaN or infinite values, in rows {start} to {end}")
    mean = first + total / len(points)
    squares = torch.zeros_like(first)
    for _, part in flat_chunks(points, device):
        squares += (part - mean).square().sum(dim=0)
    if len(points) > 1 and not squares.any():
        raise ValueError("points are constant: all rows are the same, as far as their dtype tells")
    check_resolution(points, mean, squares / len(points), floor=protocol.covariance_floor)

    # distances are sums of squares over dimensions, and are themselves summed over rows
    limit = torch.finfo(getattr(torch, protocol.precision)).max
    if not 4 * len(points) * squares.sum() < limit:
        raise ValueError(
            f"rows lie {float(squares.sum().sqrt()):.1e} from their mean, whose squares"
            f" {protocol.precision} cannot hold: divide them by their standard deviations"
        )
    return mean
