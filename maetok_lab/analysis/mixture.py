"""Gaussian mixtures by expectation maximisation, over chunks of rows, several restarts at once.

A Gaussian's log-density is linear in phi(x) = (x, x^2), or (x, x_i x_j for i <= j) with full covariances. So one
matrix product gives the log-densities of all components of all restarts, and one more their sufficient statistics: rows
are read once an iteration whatever the number of restarts, and both kinds of covariance share nearly every line.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import device_of

Covariance = Literal["diag", "full"]
KEEP = 1 << 28  # bytes of features that are kept from one iteration to the next
CHUNK_VALUES = {
    "cpu": 1 << 19,
    "cuda": 1 << 26,
}  # features and log-densities that exist at a time; on a CPU for each thread


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Weights (..., K), means (..., K, d) and covariances (..., K, d) or (..., K, d, d); `...` are restarts, if any."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    train_nll: float = math.nan  # nats per row
    iterations: int = 0
    converged: bool = False

    @property
    def covariance(self) -> Covariance:
        """Which kind the covariances are."""
        return "diag" if self.covariances.ndim == self.means.ndim else "full"

    @property
    def num_parameters(self) -> int:
        """Free parameters of one mixture, as in the BIC."""
        components, width = self.means.shape[-2:]
        spread = width if self.covariance == "diag" else _pairs(width)
        return components - 1 + components * (width + spread)

    def log_prob(self, points: Any) -> Tensor:
        """Log-density in nats at each row: (n, d) -> (n,) float64."""
        return torch.cat([joint.logsumexp(dim=1)[0] for joint in self._joint_chunks(points)])

    def predict(self, points: Any) -> Tensor:
        """The most probable component of each row: (n, d) -> (n,) int64."""
        return torch.cat([joint[0].argmax(dim=0) for joint in self._joint_chunks(points)])

    def to(self, target: torch.device | torch.dtype) -> "Mixture":
        """A copy with its tensors on another device or of another dtype."""
        moved = {
            name: getattr(self, name).to(target) for name in ("weights", "means", "covariances")
        }
        return dataclasses.replace(self, **moved)

    def _joint_chunks(self, points: Any) -> Iterator[Tensor]:
        if points.shape[1:] != self.means.shape[-1:]:
            raise ValueError(
                f"points must be (n, {self.means.shape[-1]}), not {tuple(points.shape)}"
            )
        rows = Rows(points, device_of(points))
        mixture = self.to(rows.device).to(torch.float64)
        for phi in rows.features(self.covariance, self.weights.shape[-1]):
            yield _log_joint(phi, mixture)


class Rows:
    """Rows (n, d) of a tensor, array or memory map, given out as features on the device where they are used."""

    def __init__(
        self,
        points: Any,
        device: torch.device,
        dtype: torch.dtype = torch.float64,
        chunk_rows: int = 0,
    ):
        if len(points.shape) != 2:
            raise ValueError(f"points must be (n, d), not {tuple(points.shape)}")
        self.points, self.device, self.dtype, self.chunk_rows = points, device, dtype, chunk_rows
        self.count, self.width = points.shape
        self._kept: Tensor | None = None

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Some of the rows, (m, d)."""
        if isinstance(self.points, Tensor):
            rows = self.points[index.to(self.points.device) if isinstance(index, Tensor) else index]
        else:  # torch.tensor copies: a memory map may be read-only
            rows = torch.tensor(self.points[index.numpy() if isinstance(index, Tensor) else index])
        return rows.to(self.device, self.dtype)

    def features(self, covariance: Covariance, mixtures: int) -> Iterator[Tensor]:
        """phi of consecutive chunks (b, F), small enough for `mixtures` log-densities a row beside it."""
        wide = self.width + (self.width if covariance == "diag" else _pairs(self.width))
        values = (
            CHUNK_VALUES["cuda"]
            if self.device.type == "cuda"
            else CHUNK_VALUES["cpu"] * torch.get_num_threads()
        )
        size = self.chunk_rows or max(16, values // (wide + mixtures))
        keep = self.count * wide * self.dtype.itemsize <= KEEP
        if keep and (self._kept is None or self._kept.shape[1] != wide):
            self._kept = _phi(self[:], covariance)
        for start in range(0, self.count, size):
            rows = slice(start, start + size)
            yield self._kept[rows] if keep else _phi(self[rows], covariance)


# Expectation and maximisation -----------------------------------------------------------------------------------------


def expect(
    rows: Rows, mixture: Mixture, *, hard: bool = False
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Sufficient statistics (R, K), (R, K, F) and mean log-likelihood (R,) over all rows.

    Responsibilities are soft, or those of the nearest component alone (`hard`).
    """
    counts, sums, likelihood = 0.0, 0.0, 0.0
    restarts, components = mixture.weights.shape
    parameters = _natural(mixture)
    for phi in rows.features(mixture.covariance, restarts * components):
        joint = _log_joint(phi, mixture, parameters)  # (R, K, b)
        if hard:
            joint = torch.full_like(joint, -torch.inf).scatter_(
                1, joint.argmax(dim=1, keepdim=True), 0.0
            )
        top = joint.amax(dim=1, keepdim=True)
        shares = joint.sub_(top).exp_()  # log-sum-exp, with one pass of exp
        total = shares.sum(dim=1, keepdim=True)
        shares = shares.div_(total)
        counts = counts + shares.sum(dim=2).double()
        sums = sums + (shares.flatten(0, 1) @ phi).double()
        likelihood = likelihood + (top + total.log())[:, 0].double().sum(dim=1)
    return (counts, sums.view(restarts, components, -1)), likelihood / rows.count


def mean_log_likelihood(rows: Rows, mixture: Mixture) -> Tensor:
    """Mean log-likelihood (R,) over all rows, as `expect` gives it with the statistics."""
    parameters, total = _natural(mixture), 0.0
    for phi in rows.features(mixture.covariance, mixture.weights.numel()):
        total = total + _log_joint(phi, mixture, parameters).logsumexp(dim=1).double().sum(dim=1)
    return total / rows.count


def maximise(statistics: tuple[Tensor, Tensor], mixture: Mixture, floor: float) -> Mixture:
    """The mixtures with the highest likelihood under given responsibilities; empty components are refilled."""
    counts, sums = statistics
    safe = counts.clamp(min=1e-30)[..., None]
    means, covariances = moments(sums / safe, mixture, floor)
    weights = counts / counts.sum(dim=1, keepdim=True)
    for restart in (counts < 0.5).any(dim=1).nonzero()[:, 0].tolist():
        empty = (counts[restart] < 0.5).nonzero()[:, 0].tolist()
        refill(weights[restart], means[restart], covariances[restart], empty)
    return Mixture(weights, means, covariances).to(mixture.means.dtype)


def moments(average: Tensor, mixture: Mixture, floor: float) -> tuple[Tensor, Tensor]:
    """Mean phi (R, K, F) -> means (R, K, d) and covariances with the floor added to each variance."""
    width = mixture.means.shape[-1]
    means, second = average.split([width, average.shape[-1] - width], dim=-1)
    if mixture.covariance == "diag":
        return means, (second - means * means).clamp(min=0) + floor
    covariances = _unpack(second, width) - means[..., :, None] * means[..., None, :]
    return means, covariances + floor * torch.eye(width, dtype=means.dtype, device=means.device)


def refill(weights: Tensor, means: Tensor, covariances: Tensor, empty: list[int]) -> None:
    """Put each empty component on one half of the heaviest, cut along its widest axis.

    In place: weights (K,), means (K, d), covariances (K, d) or (K, d, d) of one mixture.
    """
    for component in empty:
        heaviest = int(weights.argmax())
        spread = (
            covariances[heaviest] if covariances.ndim == 2 else covariances[heaviest].diagonal()
        )
        step = torch.zeros_like(means[heaviest])
        step[spread.argmax()] = spread.max().sqrt()
        means[component], means[heaviest] = means[heaviest] + step, means[heaviest] - step
        covariances[component] = covariances[heaviest]
        weights[component] = weights[heaviest] = weights[heaviest] / 2


def _natural(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Slopes (R K, F) and offsets (R K, 1) of all components: log weight + log-density = slopes @ phi + offset."""
    weights, means, covariances = (
        part.flatten(0, 1) for part in (mixture.weights, mixture.means, mixture.covariances)
    )
    if mixture.covariance == "diag":
        linear, quadratic, logdet = (
            means / covariances,
            -0.5 / covariances,
            covariances.log().sum(dim=1),
        )
    else:
        factor, failed = torch.linalg.cholesky_ex(covariances)
        if failed.any():
            raise ValueError(
                "a covariance is not positive definite; raise covariance_floor or use precision='float64'"
            )
        inverse = torch.cholesky_inverse(factor)
        linear = (inverse @ means[..., None])[..., 0]
        left, right = torch.triu_indices(means.shape[1], means.shape[1], device=means.device)
        quadratic = inverse[:, left, right] * torch.where(left == right, -0.5, -1.0)
        logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    constant = means.shape[1] * math.log(2 * math.pi) + logdet + (means * linear).sum(dim=1)
    return torch.cat([linear, quadratic], dim=1), (weights.log() - 0.5 * constant)[:, None]


def _log_joint(
    phi: Tensor, mixture: Mixture, parameters: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """log weight + log density of each component: phi (b, F) -> (R, K, b).

    Rows come last: with the few components last, MKL's product takes up to twice as long and does not use more threads.
    """
    mixture = batched(mixture)
    slopes, offsets = parameters or _natural(mixture)
    return torch.addmm(offsets, slopes, phi.T).unflatten(0, mixture.weights.shape)


# Shapes and checks ----------------------------------------------------------------------------------------------------


def _phi(x: Tensor, covariance: Covariance) -> Tensor:
    """(x, x^2), or (x, x_i x_j for i <= j) in the order of torch.triu_indices: (b, d) -> (b, F)."""
    if covariance == "diag":
        phi = x.new_empty(len(x), 2 * x.shape[1])
        phi[:, : x.shape[1]] = x
        torch.mul(x, x, out=phi[:, x.shape[1] :])
        return phi
    return torch.cat([x] + [x[:, i : i + 1] * x[:, i:] for i in range(x.shape[1])], dim=1)


def _pairs(width: int) -> int:
    return width * (width + 1) // 2


def _unpack(packed: Tensor, width: int) -> Tensor:
    """Upper triangles (..., d (d + 1) / 2) -> symmetric matrices (..., d, d)."""
    left, right = torch.triu_indices(width, width, device=packed.device)
    full = packed.new_empty(*packed.shape[:-1], width, width)
    full[..., left, right] = packed
    full[..., right, left] = packed
    return full


def batched(mixture: Mixture) -> Mixture:
    """A mixture with one restart's axis in front, unless it has one."""
    if mixture.weights.ndim == 2:
        return mixture
    parts = (part.unsqueeze(0) for part in (mixture.weights, mixture.means, mixture.covariances))
    return Mixture(*parts, iterations=0)
