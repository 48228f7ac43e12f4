"""Gaussian mixtures: their log-densities, and one step of expectation maximisation over all rows.

The density of x is p(x) = sum_k w_k N(x; m_k, S_k). Everything here rests on one identity: the log
of a component, log w_k + log N(x; m_k, S_k), is linear in features phi(x) = (x, x^2), or with full
covariances (x, x_i x_j for i <= j). So one matrix product gives the log-densities of all components
and one more their sufficient statistics. Rows are read once an iteration for all mixtures that are
fitted to them, and both kinds of covariance share nearly every line.

Log-densities are in nats per row. Squares lose the digits that an offset takes, so rows and means
are relative to an origin among the rows. Sums over rows are float64 even where densities are
float32: a variance is a difference, E[x^2] - E[x]^2, of sums over up to a million rows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import float64_device

Covariance = Literal["diag", "full"]
CACHE_BYTES = 1 << 28  # features that take no more are kept from one iteration to the next
# Features and log-densities that exist at a time; on a CPU for each thread, so as to stay in cache.
CHUNK_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}
LOST_NATS = 0.1  # a log-density that rounding may change by more is refused


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians in d dimensions."""

    weights: Tensor  # (K,), sum to 1
    means: Tensor  # (K, d)
    covariances: Tensor  # (K, d) variances, or (K, d, d)
    train_nll: float = math.nan  # nats per row
    iterations: int = 0  # of expectation maximisation
    converged: bool = False  # the last iteration gained less than the tolerance

    @property
    def covariance(self) -> Covariance:
        """Which kind the covariances are."""
        return "diag" if self.covariances.ndim == self.means.ndim else "full"

    @property
    def num_parameters(self) -> int:
        """Free parameters, as in the BIC."""
        components, width = self.means.shape
        # A mean and a covariance have as many numbers as phi; the weights sum to 1.
        return components - 1 + components * _feature_count(width, self.covariance)

    @property
    def variances(self) -> Tensor:
        """Of every component in every dimension, (K, d)."""
        if self.covariance == "diag":
            return self.covariances
        return self.covariances.diagonal(dim1=1, dim2=2)

    def log_prob(self, points: Any) -> Tensor:
        """Log-density in nats at each row: (n, d) -> (n,) float64.

        Raises ValueError for rows of another width, and for components so narrow and far apart
        that float64 cannot tell.
        """
        return torch.cat([joint.logsumexp(dim=0) for joint in self._joint_chunks(points)])

    def predict(self, points: Any) -> Tensor:
        """The most probable component of each row: (n, d) -> (n,) int64."""
        return torch.cat([joint.argmax(dim=0) for joint in self._joint_chunks(points)])

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Mixture":
        """A copy with `function` applied to weights, means and covariances alike."""
        return dataclasses.replace(
            self,
            weights=function(self.weights),
            means=function(self.means),
            covariances=function(self.covariances),
        )

    def to(self, *target: torch.device | torch.dtype) -> "Mixture":
        """A copy with its tensors on another device, of another dtype, or both."""
        return self.apply(lambda part: part.to(*target))

    def shifted(self, offset: Tensor) -> "Mixture":
        """A copy with `offset` (d,) added to its means, in float64."""
        return dataclasses.replace(self, means=self.means.double() + offset)

    def _joint_chunks(self, points: Any) -> Iterator[Tensor]:
        """Log weight + log-density of each component, for consecutive rows: (K, b) float64."""
        width = self.means.shape[-1]
        if points.shape[1:] != (width,):
            raise ValueError(f"points must be (n, {width}), not {tuple(points.shape)}")
        device = float64_device(points)
        mixture = self.to(device, torch.float64)
        origin = mixture.weights @ mixture.means
        centred = mixture.shifted(-origin)
        check_digits(centred)
        log_joint = log_joint_of(centred)
        for phi in Rows(points, device, origin=origin).features(self.covariance, len(self.weights)):
            yield log_joint(phi)


class Rows:
    """Rows (n, d) of a tensor, array or memory map, given out as features where they are used.

    They are given relative to `origin` (d,) float64.
    """

    def __init__(
        self,
        points: Any,
        device: torch.device,
        dtype: torch.dtype = torch.float64,
        *,
        origin: Tensor,
    ):
        self.points = points
        self.device = device
        self.dtype = dtype
        self.origin = origin
        self.count, self.width = points.shape
        self._cache: Tensor | None = None

    def __getitem__(self, index: slice) -> Tensor:
        """Some of the rows, (m, d)."""
        rows = self.points[index]
        if not isinstance(rows, Tensor):
            rows = torch.tensor(rows)  # a copy: a memory map may be read-only
        # the difference first: float32 may hold it where it does not hold the rows
        return (rows.detach().to(self.device, torch.float64) - self.origin).to(self.dtype)

    def features(self, covariance: Covariance, components: int) -> Iterator[Tensor]:
        """phi of consecutive chunks (b, F), so long that a density a component fits beside."""
        width = _feature_count(self.width, covariance)
        values = CHUNK_VALUES["cpu"] * torch.get_num_threads()
        if self.device.type == "cuda":
            values = CHUNK_VALUES["cuda"]
        size = max(16, values // (width + components))

        # Iterations ask for the same features: where they fit, they are computed once.
        cached = self.count * width * self.dtype.itemsize <= CACHE_BYTES
        if cached and (self._cache is None or self._cache.shape[1] != width):
            self._cache = _phi(self[:], covariance)
        for start in range(0, self.count, size):
            chunk = slice(start, start + size)
            yield self._cache[chunk] if cached else _phi(self[chunk], covariance)


# Features and densities ---------------------------------------------------------------------------


def _feature_count(width: int, covariance: Covariance) -> int:
    """F, the numbers in phi(x)."""
    return width + (width if covariance == "diag" else width * (width + 1) // 2)


def _phi(x: Tensor, covariance: Covariance) -> Tensor:
    """(x, x^2), or (x, x_i x_j for i <= j) in the order of torch.triu_indices: (b, d) -> (b, F)."""
    width = x.shape[1]
    if covariance == "diag":
        phi = x.new_empty(len(x), 2 * width)
        phi[:, :width] = x
        torch.mul(x, x, out=phi[:, width:])
        return phi
    return torch.cat([x] + [x[:, i : i + 1] * x[:, i:] for i in range(width)], dim=1)


def log_joint_of(mixture: Mixture) -> Callable[[Tensor], Tensor]:
    """The function phi (b, F) -> log weight + log-density of each component (K, b), in nats.

    Raises ValueError for a covariance that is not positive definite.
    """
    means = mixture.means
    covariances = mixture.covariances
    width = means.shape[1]

    # log N(x; m, S) = -1/2 (d log 2 pi + log |S| + m' S^-1 m) + (S^-1 m)' x - 1/2 x' S^-1 x
    if mixture.covariance == "diag":
        linear = means / covariances
        quadratic = -0.5 / covariances
        logdet = covariances.log().sum(dim=1)
    else:
        factor, failed = torch.linalg.cholesky_ex(covariances)
        if failed.any():
            raise ValueError(
                "a covariance is not positive definite; "
                "raise covariance_floor or use precision='float64'"
            )
        inverse = torch.cholesky_inverse(factor)
        linear = (inverse @ means[..., None])[..., 0]
        left, right = torch.triu_indices(width, width, device=means.device)
        # x_i x_j with i < j stands for itself and for x_j x_i: no half
        quadratic = inverse[:, left, right] * torch.where(left == right, -0.5, -1.0)
        logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    constant = width * math.log(2 * math.pi) + logdet + (means * linear).sum(dim=1)
    slopes = torch.cat([linear, quadratic], dim=1)  # (K, F)
    offsets = (mixture.weights.log() - 0.5 * constant)[:, None]  # (K, 1)

    def log_joint(phi: Tensor) -> Tensor:
        # Rows come last: with the few components last, MKL's product takes up to twice as long and
        # does not use more threads.
        return torch.addmm(offsets, slopes, phi.T)

    return log_joint


def check_digits(mixture: Mixture) -> None:
    """Raise ValueError where rounding of squares may change a log-density by `LOST_NATS`."""
    # the terms of (x - m)^2 / S, multiplied out, are as large as m^2 / S for the component's rows
    distances = (mixture.means.square() / mixture.variances).sum(dim=1)
    if torch.finfo(mixture.means.dtype).eps * float(distances.max()) > LOST_NATS:
        dtype = str(mixture.means.dtype).removeprefix("torch.")
        remedy = "" if dtype == "float64" else "take precision='float64', or "
        raise ValueError(
            f"a component lies {float(distances.max().sqrt()):.1e} of its standard deviations from "
            f"the mean of all, too far for {dtype}: {remedy}fit groups that are so far apart one "
            "by one, without rows that stand alone"
        )


# Expectation and maximisation ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All that the next mixture depends on, summed over rows; float64."""

    counts: Tensor  # (K,), the rows that a component is responsible for
    sums: Tensor  # (K, F), phi of the rows weighted by responsibility
    log_likelihood: Tensor  # (), in nats

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(
            self.counts + other.counts,
            self.sums + other.sums,
            self.log_likelihood + other.log_likelihood,
        )


def expect(rows: Rows, mixtures: Sequence[Mixture]) -> list[Statistics]:
    """The expectation step under mixtures of one kind: each row's responsibilities, summed.

    They are r_k = w_k N_k(x) / p(x).
    """
    # Rows are read once for all mixtures, but each has products of its own: one product of all
    # would round differently with their number.
    totals: list[Statistics | None] = [None] * len(mixtures)
    log_joints = [log_joint_of(mixture) for mixture in mixtures]
    for phi in rows.features(mixtures[0].covariance, len(mixtures[0].weights)):
        for index, log_joint in enumerate(log_joints):
            part = _chunk_statistics(log_joint(phi), phi)
            total = totals[index]
            totals[index] = part if total is None else total + part
    return [total for total in totals if total is not None]


def _chunk_statistics(joint: Tensor, phi: Tensor) -> Statistics:
    """Statistics of one chunk of rows, from their log-densities (K, b), which are overwritten."""
    # log-sum-exp over components and the responsibilities, with one pass of exp
    top = joint.amax(dim=0)
    shares = joint.sub_(top).exp_()
    total = shares.sum(dim=0)
    shares = shares.div_(total)
    return Statistics(
        shares.sum(dim=1).double(), (shares @ phi).double(), (top + total.log()).double().sum()
    )


def mean_log_likelihoods(rows: Rows, mixtures: Sequence[Mixture]) -> list[float]:
    """Mean log-likelihood of each mixture, in nats per row."""
    totals = [0.0] * len(mixtures)
    log_joints = [log_joint_of(mixture) for mixture in mixtures]
    for phi in rows.features(mixtures[0].covariance, len(mixtures[0].weights)):
        for index, log_joint in enumerate(log_joints):
            totals[index] += float(log_joint(phi).logsumexp(dim=0).double().sum())
    return [total / rows.count for total in totals]


def maximise(statistics: Statistics, mixture: Mixture, floor: float) -> Mixture:
    """The mixture of highest likelihood under given responsibilities; no component is empty."""
    counts = statistics.counts
    safe = counts.clamp(min=1e-30)[:, None]
    width = mixture.means.shape[1]
    means, second = (statistics.sums / safe).tensor_split([width], dim=1)
    # S = E[x x'] - m m'; rounding can leave a variance a little below 0
    if mixture.covariance == "diag":
        covariances = (second - means * means).clamp(min=0) + floor
    else:
        covariances = _unpack(second, width) - means[:, :, None] * means[:, None, :]
        covariances.diagonal(dim1=1, dim2=2).add_(floor)
    weights = counts / counts.sum()
    # With less than half a row's worth of responsibility a component never comes back by itself.
    empty = (counts < 0.5).nonzero()[:, 0].tolist()
    _refill(weights, means, covariances, empty)
    return Mixture(weights, means, covariances).to(mixture.means.dtype)


def _unpack(packed: Tensor, width: int) -> Tensor:
    """Upper triangles (..., d (d + 1) / 2) -> symmetric matrices (..., d, d)."""
    left, right = torch.triu_indices(width, width, device=packed.device)
    full = packed.new_empty(*packed.shape[:-1], width, width)
    full[..., left, right] = packed
    full[..., right, left] = packed
    return full


def _refill(weights: Tensor, means: Tensor, covariances: Tensor, empty: list[int]) -> None:
    """Put each empty component on one half of the heaviest, cut along its widest axis.

    In place: weights (K,), means (K, d), covariances (K, d) or (K, d, d).
    """
    for component in empty:
        heaviest = int(weights.argmax())
        variances = covariances[heaviest]
        if variances.ndim == 2:
            variances = variances.diagonal()
        # the halves lie one standard deviation to either side
        step = torch.zeros_like(means[heaviest])
        step[variances.argmax()] = variances.max().sqrt()
        means[component] = means[heaviest] + step
        means[heaviest] = means[heaviest] - step
        covariances[component] = covariances[heaviest]
        weights[component] = weights[heaviest] = weights[heaviest] / 2
