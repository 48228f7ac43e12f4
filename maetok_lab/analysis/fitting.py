"""Fit a Gaussian mixture: k-means++ starts, all fitted at once, the hopeless given up."""

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

K_MEANS_ITERATIONS = 100  # the most of a start
K_MEANS_TOLERANCE = 1e-4  # nats per row, as if clusters were spherical Gaussians of one size
TIES = 1e-6  # relative: what rounding, which differs with the number of restarts, must not decide


@dataclasses.dataclass(frozen=True, kw_only=True)
class GmmProtocol:
    """How mixtures are fitted and scored: curves compare only at equal protocols and dimensions."""

    # Principal components kept; None: the fewest that explain `variance`, a share in (0, 1].
    dimensions: int | None = None
    variance: float = 0.9  # share that the dimensions keep, where their number is open
    covariance: Covariance = "diag"  # of each component: its variances alone, or all of it
    restarts: int = 10  # starts, of which the best end counts
    max_iterations: int = 200  # of expectation maximisation
    tolerance: float = 1e-3  # nats per row: the fit ends when an iteration gains less
    # Added to every variance, in standardised units squared, as scikit-learn does: no component can
    # shrink onto one row, whose density would be infinite.
    covariance_floor: float = 1e-3
    # A restart has so many iterations; then it is given up as soon as so many more at its pace
    # would not bring it up to an earlier one.
    screen_iterations: int = 20
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
    count = points.shape[0]
    if not 1 <= components <= count:
        raise ValueError(
            f"components must be between 1 and {count}, the number of rows, not {components}"
        )
    mean, variance = _checked_moments(points, device, protocol)

    # everything from here on is relative to the mean: squares lose the digits that an offset takes
    rows = Rows(points, device, dtype, origin=mean)
    if start is None:
        runs = _starts(rows, components, protocol)
    else:
        runs = [_checked_start(start, components, protocol, rows)]
    best = min(_climb(rows, runs, protocol), key=lambda run: run.train_nll)

    # what the rows' own variance did not tell: most may lie in components that are much narrower
    check_digits(best)
    within = (best.weights @ best.variances).double()
    check_resolution(points, mean, torch.where(variance > 0, within, 0))
    return best.shifted(mean).to(torch.float64)


# Iterations ---------------------------------------------------------------------------------------


def _climb(rows: Rows, starts: Sequence[Mixture], protocol: GmmProtocol) -> list[Mixture]:
    """Iterate all until each gains less than the tolerance, is given up, or has no iterations left.

    What becomes of a start depends on those before it alone. So more of them only add to the ends
    among which the best is chosen, which is never worse.
    """
    runs = list(starts)
    likelihoods = [-math.inf] * len(runs)  # of the last expectation; in nats per row
    active = list(range(len(runs)))
    for iteration in range(protocol.max_iterations):
        # rows are read once for all runs that go on
        statistics = expect(rows, [runs[index] for index in active])
        for index, sums in zip(tuple(active), statistics, strict=True):
            likelihood = float(sums.log_likelihood) / rows.count
            gain = likelihood - likelihoods[index]
            likelihoods[index] = likelihood
            runs[index] = dataclasses.replace(
                runs[index], train_nll=-likelihood, converged=abs(gain) < protocol.tolerance
            )
            hope = math.inf
            if iteration >= max(protocol.screen_iterations, 1):
                hope = likelihood + protocol.screen_iterations * gain
            if runs[index].converged or hope < max(likelihoods[:index], default=-math.inf):
                active.remove(index)
            else:
                mixture = maximise(sums, runs[index], protocol.covariance_floor)
                runs[index] = dataclasses.replace(mixture, iterations=iteration + 1)
        if not active:
            return runs

    # those that were stopped need no statistics, their likelihood alone
    ends = mean_log_likelihoods(rows, [runs[index] for index in active])
    for index, likelihood in zip(active, ends, strict=True):
        settled = abs(likelihood - likelihoods[index]) < protocol.tolerance
        runs[index] = dataclasses.replace(runs[index], train_nll=-likelihood, converged=settled)
    return runs


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
    centres = _plus_plus(points.double(), components, randoms).to(points.dtype)
    if protocol.covariance == "diag":
        second = points.square().mean(dim=0).double()
    else:
        second = (points.T @ points).double() / len(points)

    # One assignment serves components that differ in shape, k-means those that are alike. Its many
    # iterations take half the time in float32, scaled so that squares cannot overflow.
    scale = points.abs().amax().clamp(min=torch.finfo(points.dtype).tiny)
    scaled = (points / scale).float()
    starts = []
    for restart, means in enumerate(centres):
        if restart % 2:
            means = _k_means(scaled, (means / scale).float()).to(points.dtype) * scale
        means, counts, _ = _assign(points, means)
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


def _k_means(points: Tensor, means: Tensor) -> Tensor:
    """Lloyd's iterations until they settle: rows (m, d), centres (K, d) -> centres (K, d)."""
    power = float(points.square().sum()) / len(points)
    before = math.inf
    for _ in range(K_MEANS_ITERATIONS):
        means, _, score = _assign(points, means)
        distance = max(power - 2 * score, 1e-30)  # mean |x - c|^2
        if points.shape[1] / 2 * math.log(before / distance) < K_MEANS_TOLERANCE:
            break
        before = distance
    return means


def _assign(points: Tensor, means: Tensor) -> tuple[Tensor, Tensor, float]:
    """Rows (m, d) go to the nearest of (K, d) -> the means of each, their counts (K,), a score.

    The score is the mean of c'x - |c|^2 / 2 = (|x|^2 - |x - c|^2) / 2.
    """
    scores = torch.addmm(-0.5 * means.square().sum(dim=1)[:, None], means, points.T)  # (K, m)
    top = scores.amax(dim=0)
    nearest = (scores == top).to(points.dtype)
    nearest /= nearest.sum(dim=0)  # twins share their rows
    counts = nearest.sum(dim=1)
    sums = nearest @ points
    # an empty cluster stays where it is
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1e-6)[:, None], means)
    return means, counts, float(top.mean())


def _plus_plus(points: Tensor, components: int, randoms: Sequence[torch.Generator]) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): rows (m, d) -> centres (R, K, d).

    Each next centre is the best of some candidates, drawn with probability proportional to the
    squared distance from the centres so far.
    """
    # twice scikit-learn's number: starts miss half as many of well separated groups
    trials = 2 * (2 + int(math.log(components)))
    restarts = len(randoms)
    restart = torch.arange(restarts, device=points.device)
    squares = points.square().sum(dim=1)
    draws = [
        torch.rand(components, trials, generator=random, dtype=torch.float64) for random in randoms
    ]
    uniform = torch.stack(draws, dim=1).to(points.device)  # (K, R, trials)
    centres = [(uniform[0, :, 0] * len(points)).long()]  # rows (R,), one entry a centre
    # (R, m), to the nearest centre; rounding can leave a square a little below 0
    nearest = _squared_distances(points, squares, centres[0]).clamp_(min=0)
    for step in range(1, components):
        # a uniform number picks its row by the running sum of squared distances
        reach = nearest.cumsum(dim=1)
        targets = (uniform[step] * reach[:, -1:]).to(reach.dtype)
        candidates = torch.searchsorted(reach, targets).clamp(max=len(points) - 1)  # (R, trials)
        distances = _squared_distances(points, squares, candidates.flatten())
        distances = distances.view(restarts, trials, -1)
        torch.minimum(distances, nearest[:, None], out=distances)
        # greedy: the first candidate that leaves the least distance in all
        totals = distances.sum(dim=2)
        least = totals.amin(dim=1, keepdim=True)
        best = (totals <= least * (1 + TIES)).int().argmax(dim=1)  # (R,)
        nearest = distances[restart, best].clamp_(min=0)
        centres.append(candidates[restart, best])
    return points[torch.stack(centres, dim=1)]


def _squared_distances(points: Tensor, squares: Tensor, indices: Tensor) -> Tensor:
    """|x - c|^2 = |x|^2 - 2 c'x + |c|^2, all rows x (m, d) to rows c = points[indices]: (k, m)."""
    products = torch.addmm(squares, points[indices], points.T, alpha=-2)
    return products.add_(squares[indices, None])


# Checks -------------------------------------------------------------------------------------------


def _checked_start(start: Mixture, components: int, protocol: GmmProtocol, rows: Rows) -> Mixture:
    """The start as one restart, on the device and of the type of the rows."""
    if start.means.shape != (components, rows.width) or start.covariance != protocol.covariance:
        raise ValueError(
            f"the start has {tuple(start.means.shape)} means and {start.covariance} covariances, "
            f"but ({components}, {rows.width}) and {protocol.covariance} are to be fitted"
        )
    centred = start.to(rows.device).shifted(-rows.origin).to(rows.dtype)
    return dataclasses.replace(centred, iterations=0, converged=False)


def _checked_moments(
    points: Any, device: torch.device, protocol: GmmProtocol
) -> tuple[Tensor, Tensor]:
    """Mean and variance (d,) float64 of the rows. Raises ValueError for those beyond fitting."""
    # relative to the first row, so that a constant dimension has no variance at all
    count = points.shape[0]
    first = next(flat_chunks(points[:1], device))[1][0]
    total = torch.zeros_like(first)
    for start, part in flat_chunks(points, device):
        total += (part - first).sum(dim=0)
        # the sum alone clears nearly all rows, in one pass
        if not total.isfinite().all() and not part.isfinite().all():
            end = start + len(part) - 1
            raise ValueError(f"points hold NaN or infinite values, in rows {start} to {end}")
    mean = first + total / count

    squares = torch.zeros_like(first)
    largest = 0.0
    for _, part in flat_chunks(points, device):
        squares += (part - mean).square().sum(dim=0)
        largest = max(largest, float(part.abs().amax()))
    # distances are sums of squares over dimensions, and are themselves summed over rows
    limit = torch.finfo(getattr(torch, protocol.precision)).max
    if not 4 * count * squares.sum() < limit:
        raise ValueError(
            f"rows hold numbers as large as {largest:.1e}, whose squares {protocol.precision}"
            " cannot hold: divide them by their standard deviations"
        )
    variance = squares / count
    if count > 1 and not variance.any():
        raise ValueError("points are constant: all rows are the same, as far as their dtype tells")
    check_resolution(points, mean, variance, floor=protocol.covariance_floor)
    return mean, variance
