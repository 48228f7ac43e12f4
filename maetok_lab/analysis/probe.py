"""How much a linear classifier, or the nearest neighbours, can read from latents (the paper's figure 5a).

The paper says neither how its probe was trained nor what it scored; it does say that latents are flattened. Mean-pooled
tokens of released weights score a few per cent, so pooling is offered only to show that difference.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import as_rows, device_of, flat_chunks, width_of
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Accuracies in [0, 1] on test images; `standard_error` is that of top1, `majority` the commonest class's share.

    `strength` is the L2 penalty that did best on held-out training rows (`heldout_top1`), or the number of neighbours.
    """

    top1: float
    top5: float
    standard_error: float
    majority: float
    strength: float
    heldout_top1: float
    train_images: int
    test_images: int
    classes: int
    pooled: bool


def linear_probe(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    pool: bool = False,
    strengths: Sequence[float] = STRENGTHS,
    validation: tuple[Any, Tensor] | None = None,
    heldout: float = 0.2,
    max_iterations: int = 300,
    seed: int = 0,
    precision: Literal["float64", "float32"] = "float64",
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Multinomial logistic regression by L-BFGS on flattened (or mean-pooled) and standardised latents.

    latents (n, N, C), labels (n,), and the same for test images -> ProbeResult. Minimises mean cross-entropy in nats
    plus strength / 2 |W|^2; the strength with the best top-1 on `validation` latents and labels, or on a share
    `heldout` of the training rows, is then fitted to all training rows. Holds all rows at once, on `device`. Raises
    ValueError for NaN or constant latents, one class only, or lengths that do not match.
    """
    device, dtype = device_of(as_rows(latents), device), getattr(torch, precision)
    x, y = _checked(latents, labels, pool, device, dtype)
    x_test, y_test = _checked(test_latents, test_labels, pool, device, dtype)
    classes = int(max(y.max(), y_test.max())) + 1
    if len(y.unique()) < 2:
        raise ValueError(
            f"a probe needs at least two classes among the training labels, not only {int(y[0])}"
        )
    basis = _Basis.of(x)
    x, x_test = basis(x), basis(x_test)
    if validation is None:
        hidden = torch.zeros(len(x), dtype=torch.bool, device=device)
        hidden[_shuffled(len(x), seed, device)[: round(heldout * len(x))]] = True
        parts = (x[~hidden], y[~hidden], x[hidden], y[hidden])
    else:
        x_held, y_held = _checked(*validation, pool, device, dtype)
        parts = (x, y, basis(x_held), y_held)
    strength, heldout_top1, begun = _choose_strength(
        *parts, basis.variances, classes, strengths, max_iterations
    )
    weight = _fit(x, y, basis.variances, classes, [strength], max_iterations, begun)[0]
    return _result(_logits(x_test, weight), y, y_test, strength, heldout_top1, classes, pool)


def knn_probe(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    neighbours: int = 20,
    pool: bool = False,
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Vote of the nearest training latents by cosine, after standardisation; arguments and result as of the probe.

    Votes count (1 + cosine), so ties go to the nearer class. Raises ValueError as `linear_probe` does, and for fewer
    training rows than neighbours.
    """
    device = device_of(as_rows(latents), device)
    x, y = _checked(latents, labels, pool, device, torch.float64)
    x_test, y_test = _checked(test_latents, test_labels, pool, device, torch.float64)
    if not 1 <= neighbours <= len(x):
        raise ValueError(
            f"neighbours must be between 1 and {len(x)}, the training rows, not {neighbours}"
        )
    mean, std = _scale(x)
    x, x_test = (torch.nn.functional.normalize((rows - mean) / std, dim=1) for rows in (x, x_test))
    classes = int(max(y.max(), y_test.max())) + 1
    near = nearest_neighbours(x_test, x, neighbours=neighbours, cosine=True)
    votes = x_test.new_zeros(len(x_test), classes)
    votes.scatter_add_(1, y[near.indices], 1 - near.distances)
    return _result(votes, y, y_test, float(neighbours), math.nan, classes, pool)


# Logistic regression --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Basis:
    """Standardisation, then rotation to the principal axes of the training rows.

    The rotation leaves the penalised problem as it is (outside the axes the best weights are zero), but there the
    solver can be given steps of the right size: strongly correlated inputs then take tens of iterations, not thousands.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor  # (D, r)
    variances: Tensor  # (r,)

    @classmethod
    def of(cls, x: Tensor) -> "_Basis":
        """The basis of rows x (n, D): through the smaller of the two Gram matrices."""
        mean, std = _scale(x)
        x = ((x - mean) / std).double()
        wide = x.shape[1] > len(x)
        values, vectors = torch.linalg.eigh((x @ x.T if wide else x.T @ x) / len(x))
        kept = values > 1e-12 * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        axes = x.T @ vectors / (len(x) * values).sqrt() if wide else vectors
        return cls(mean, std, axes.to(mean.dtype), values.to(mean.dtype))

    def __call__(self, rows: Tensor) -> Tensor:
        return ((rows - self.mean) / self.std) @ self.axes


def _choose_strength(
    x: Tensor,
    y: Tensor,
    x_held: Tensor,
    y_held: Tensor,
    variances: Tensor,
    classes: int,
    strengths: Sequence[float],
    steps: int,
) -> tuple[float, float, Tensor]:
    """The strength with the best held-out top-1 (ties: lower held-out cross-entropy), that top-1, and its weights."""
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be numbers > 0, not {list(strengths)}")
    if not len(y_held):
        raise ValueError("no rows are held out to choose the strength by")
    ordered = sorted(strengths, reverse=True)
    fitted, scored = _fit(x, y, variances, classes, ordered, steps), []
    for strength, weight in zip(ordered, fitted):
        logits = _logits(x_held, weight)
        top1 = float((logits.argmax(1) == y_held).double().mean())
        scored.append((top1, -float(torch.nn.functional.cross_entropy(logits, y_held)), strength))
    best = max(scored)
    return best[2], best[0], fitted[ordered.index(best[2])]


def _fit(
    x: Tensor,
    y: Tensor,
    variances: Tensor,
    classes: int,
    strengths: Sequence[float],
    steps: int,
    begun: Tensor | None = None,
) -> list[Tensor]:
    """Weights and, as last row, biases (r + 1, K) for each strength, from strong to weak, each begun at the one
    before."""
    truth = torch.nn.functional.one_hot(y, classes).to(x)
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    fitted, weight = [], x.new_zeros(x.shape[1], classes) if begun is None else begun
    for strength in strengths:
        penalty = torch.cat([torch.full_like(variances, strength), variances.new_zeros(1)])[:, None]
        # the curvature is near p (1 - p) variance + penalty: in units of its root all directions are alike
        unit = (torch.cat([variances, variances.new_ones(1)])[:, None] / classes + penalty).rsqrt()
        scaled = (weight / unit).requires_grad_()
        solver = torch.optim.LBFGS(
            [scaled],
            max_iter=steps,
            tolerance_grad=1e-5,  # of these units: 1e-6 of the loss
            tolerance_change=1e-9,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(
            scaled: Tensor = scaled, unit: Tensor = unit, penalty: Tensor = penalty
        ) -> Tensor:
            now = scaled.detach() * unit
            log_p = (x @ now).log_softmax(dim=1)
            scaled.grad = unit * (x.T @ ((log_p.exp() - truth) / len(x)) + penalty * now)
            return (penalty * now.square()).sum() / 2 - (log_p * truth).sum() / len(x)

        solver.step(closure)
        weight = scaled.detach() * unit
        fitted.append(weight)
    return fitted


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight[:-1] + weight[-1]


def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    std = x.std(dim=0, correction=0)
    if not std.max() > 0:
        raise ValueError(f"latents are constant: all {len(x)} training rows are the same")
    return x.mean(dim=0), torch.where(
        std > 1e-12 * std.max(), std, 1.0
    )  # a constant column stays at zero


# Checks and results ---------------------------------------------------------------------------------------------------


def _checked(
    latents: Any, labels: Tensor, pool: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    latents, labels = as_rows(latents), torch.as_tensor(labels)
    width = width_of(latents)
    if labels.shape != (latents.shape[0],) or labels.is_floating_point():
        raise ValueError(
            f"labels must be ({latents.shape[0]},) whole numbers, not {labels.dtype} {tuple(labels.shape)}"
        )
    if pool and len(latents.shape) != 3:
        raise ValueError(f"only latents (n, N, C) can be pooled, not {tuple(latents.shape)}")
    rows = torch.empty(
        latents.shape[0], latents.shape[-1] if pool else width, dtype=dtype, device=device
    )
    for start, chunk in flat_chunks(latents, device=device):
        chunk = chunk.unflatten(1, tuple(latents.shape[1:])).mean(dim=1) if pool else chunk
        rows[start : start + len(chunk)] = chunk.to(dtype)
    if not rows.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    return rows, labels.to(device, torch.int64)


def _shuffled(count: int, seed: int, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "probe", "heldout")).to(device)


def _result(
    scores: Tensor,
    y: Tensor,
    y_test: Tensor,
    strength: float,
    heldout_top1: float,
    classes: int,
    pooled: bool,
) -> ProbeResult:
    ranked = scores.topk(min(5, classes), dim=1).indices == y_test[:, None]
    top1 = float(ranked[:, 0].double().mean())
    return ProbeResult(
        top1=top1,
        top5=float(ranked.any(dim=1).double().mean()),
        standard_error=math.sqrt(top1 * (1 - top1) / len(y_test)),
        majority=float((y_test == y.mode().values).double().mean()),
        strength=strength,
        heldout_top1=heldout_top1,
        train_images=len(y),
        test_images=len(y_test),
        classes=classes,
        pooled=pooled,
    )
