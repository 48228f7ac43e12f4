"""Gaussian mixtures: their log-densities, and one step of expectation maximisation over all rows.

The density of x is p(x) = sum_k w_k N(x; m_k, S_k). Everything here rests on one identity: the log
of a component, log w_k + log N(x; m_k, S_k), is linear in features phi(x) = (x, x^2), or with full
covariances (x, x_i x_j for i <= j). So one matrix product gives the log-densities of all components
of all restarts, and one more their sufficient statistics. Rows are read once an iteration whatever
the number of restarts, and both kinds of covariance share nearly every line.

Log-densities are in nats per row. Sums over rows are float64 even where densities are float32: a
variance is a difference, E[x^2] - E[x]^2, of sums over up to a million rows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import float64_device

Covariance = Literal["diag", "full"]
CACHE_BYTES = 1 << 28  # features that take no more are kept from one iteration to the next
# Features and log-densities that exist at a time; on a CPU for each thread, so as to stay in cache.
CHUNK_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One mixture of K Gaussians in d dimensions, or R of them (restarts), on an axis in front."""

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
        """Free parameters of one mixture, as in the BIC."""
        components, width = self.means.shape[-2:]
        # A mean and a covariance have as many numbers as phi; the weights sum to 1.
        return components - 1 + components * _feature_count(width, self.covariance)

    def log_prob(self, points: Any) -> Tensor:
        """Log-density in nats at each row: (n, d) -> (n,) float64."""
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

    def _joint_chunks(self, points: Any) -> Iterator[Tensor]:
        """Log weight + log-density of each component, for consecutive rows: (K, b) float64."""
        width = self.means.shape[-1]
        if points.shape[1:] != (width,):
            raise ValueError(f"points must be (n, {width}), not {tuple(points.shape)}")
        rows = Rows(points, float64_device(points))
        log_joint = log_joint_of(self.to(rows.device, torch.float64).apply(lambda part: part[None]))
        for phi in rows.features(self.covariance, len(self.weights)):
            yield log_joint(phi)[0]


class Rows:
    """Rows (n, d) of a tensor, array or memory map, given out as features where they are used."""

    def __init__(self, points: Any, device: torch.device, dtype: torch.dtype = torch.float64):
        if len(points.shape) != 2:
            raise ValueError(f"points must be (n, d), not {tuple(points.shape)}")
        self.points = points
        self.device = device
        self.dtype = dtype
        self.count, self.width = points.shape
        self._cache: Tensor | None = None

    def __getitem__(self, index: slice) -> Tensor:
        """Some of the rows, (m, d)."""
        rows = self.points[index]
        if not isinstance(rows, Tensor):
            rows = torch.tensor(rows)  # a copy: a memory map may be read-only
        return rows.to(self.device, self.dtype)

    def features(self, covariance: Covariance, densities: int) -> Iterator[Tensor]:
        """phi of consecutive chunks (b, F), so long that `densities` numbers a row fit beside."""
        width = _feature_count(self.width, covariance)
        values = CHUNK_VALUES["cpu"] * torch.get_num_threads()
        if self.device.type == "cuda":
            values = CHUNK_VALUES["cuda"]
        size = max(16, values // (width + densities))

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
    """The function phi (b, F) -> log weight + log-density of each component (R, K, b), in nats.

    Raises ValueError for a covariance that is not positive definite.
    """
    weights = mixture.weights.flatten()  # (R K,)
    means = mixture.means.flatten(0, 1)  # (R K, d)
    covariances = mixture.covariances.flatten(0, 1)
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
    slopes = torch.cat([linear, quadratic], dim=1)  # (R K, F)
    offsets = (weights.log() - 0.5 * constant)[:, None]  # (R K, 1)

    def log_joint(phi: Tensor) -> Tensor:
        # Rows come last: with the few components last, MKL's product takes up to twice as long and
        # does not use more threads.
        return torch.addmm(offsets, slopes, phi.T).unflatten(0, mixture.weights.shape)

    return log_joint


# Expectation and maximisation ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All that the next mixtures depend on, summed over the rows, for R restarts; float64."""

    counts: Tensor  # (R, K), the rows that a component is responsible for
    sums: Tensor  # (R, K, F), phi of the rows weighted by responsibility
    likelihood: Tensor  # (R,), mean log-likelihood in nats per row


def expect(rows: Rows, mixture: Mixture, *, hard: bool = False) -> Statistics:
    """The expectation step under mixtures (R, K): each row's responsibilities, summed.

    Responsibilities are soft, r_k = w_k N_k(x) / p(x), or `hard`: 1 for the most probable
    component, 0 for the others, and the likelihood says nothing then.
    """
    counts = 0.0
    sums = 0.0
    likelihood = 0.0
    restarts, components = mixture.weights.shape
    log_joint = log_joint_of(mixture)
    for phi in rows.features(mixture.covariance, restarts * components):
        joint = log_joint(phi)  # (R, K, b)
        if hard:
            nearest = joint.argmax(dim=1, keepdim=True)
            joint = torch.full_like(joint, -torch.inf).scatter_(1, nearest, 0.0)
        # log-sum-exp over components and the responsibilities, with one pass of exp
        top = joint.amax(dim=1, keepdim=True)
        shares = joint.sub_(top).exp_()
        total = shares.sum(dim=1, keepdim=True)
        shares = shares.div_(total)
        counts = counts + shares.sum(dim=2).double()
        sums = sums + (shares.flatten(0, 1) @ phi).double()
        likelihood = likelihood + (top + total.log())[:, 0].double().sum(dim=1)
    return Statistics(counts, sums.view(restarts, components, -1), likelihood / rows.count)


def mean_log_likelihood(rows: Rows, mixture: Mixture) -> Tensor:
    """Mean log-likelihood (R,) in nats per row, as `expect` gives it with the statistics."""
    total = 0.0
    log_joint = log_joint_of(mixture)
    for phi in rows.features(mixture.covariance, mixture.weights.numel()):
        total = total + log_joint(phi).logsumexp(dim=1).double().sum(dim=1)
    return total / rows.count


def maximise(statistics: Statistics, mixture: Mixture, floor: float) -> Mixture:
    """The mixtures of highest likelihood under given responsibilities; no component is empty."""
    counts = statistics.counts
    safe = counts.clamp(min=1e-30)[..., None]
    means, covariances = moments(statistics.sums / safe, mixture, floor)
    weights = counts / counts.sum(dim=1, keepdim=True)
    # With less than half a row's worth of responsibility a component never comes back by itself.
    empty = counts < 0.5
    for restart in empty.any(dim=1).nonzero()[:, 0].tolist():
        components = empty[restart].nonzero()[:, 0].tolist()
        _refill(weights[restart], means[restart], covariances[restart], components)
    return Mixture(weights, means, covariances).to(mixture.means.dtype)


def moments(average: Tensor, mixture: Mixture, floor: float) -> tuple[Tensor, Tensor]:
    """Mean phi (R, K, F) -> means (R, K, d), covariances with `floor` added to each variance."""
    width = mixture.means.shape[-1]
    means, second = average.split([width, average.shape[-1] - width], dim=-1)
    # S = E[x x'] - m m'; rounding can leave a variance a little below 0
    if mixture.covariance == "diag":
        return means, (second - means * means).clamp(min=0) + floor
    covariances = _unpack(second, width) - means[..., :, None] * means[..., None, :]
    return means, covariances + floor * torch.eye(width, dtype=means.dtype, device=means.device)


def _unpack(packed: Tensor, width: int) -> Tensor:
    """Upper triangles (..., d (d + 1) / 2) -> symmetric matrices (..., d, d)."""
    left, right = torch.triu_indices(width, width, device=packed.device)
    full = packed.new_empty(*packed.shape[:-1], width, width)
    full[..., left, right] = packed
    full[..., right, left] = packed
    return full


def _refill(weights: Tensor, means: Tensor, covariances: Tensor, empty: list[int]) -> None:
    """Put each empty component on one half of the heaviest, cut along its widest axis.

    In place: weights (K,), means (K, d), covariances (K, d) or (K, d, d) of one mixture.
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
