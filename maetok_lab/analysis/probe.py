"""How much a linear classifier or near neighbours read from latents (the paper's figure 5a).

The paper says neither how its probe was trained nor what it scored; it does say that latents are
flattened. Mean-pooled tokens of released weights score a few per cent, so pooling is offered only
to show that difference.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from maetok_lab.analysis.preprocess import as_rows, flat_chunks, float64_device, width_of
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the L2 penalty, among which held-out rows choose
HELDOUT = 0.2  # share of the training rows held out for that, where there is no validation set
ROUNDING = 1e-12  # a standard deviation or variance so much below the largest is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How well labels are read from the latents of test images; accuracies are in [0, 1]."""

    top1: float
    top5: float
    standard_error: float  # of top1
    majority: float  # top1 of always saying the commonest training class
    strength: float  # L2 penalty that did best on held-out rows; of `knn_probe`, its neighbours
    heldout_top1: float  # top1 on those rows; NaN for neighbours
    train_images: int
    test_images: int
    classes: int
    pooled: bool  # whether tokens were averaged


def linear_probe(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    pool: bool = False,
    strengths: Sequence[float] = STRENGTHS,
    validation: tuple[Any, Tensor] | None = None,
    max_iterations: int = 300,
    seed: int = 0,
    precision: Literal["float64", "float32"] = "float64",
) -> ProbeResult:
    """Multinomial logistic regression on flattened (or pooled), standardised latents.

    latents (n, N, C), labels (n,). The strength that does best on `validation` (latents, labels),
    or on held-out training rows, is fitted to all of them. Of one class alone all is NaN. Raises
    ValueError for NaN or constant latents, or lengths that do not match.
    """
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be numbers > 0, not {list(strengths)}")
    check = functools.partial(
        _check, pool=pool, device=float64_device(as_rows(latents)), dtype=getattr(torch, precision)
    )
    train = check(latents, labels)
    test = check(test_latents, test_labels)
    if len(train.labels.unique()) < 2:
        warnings.warn("one class alone has no linear probe: its accuracy is NaN", stacklevel=2)
        return _no_result(train, test, pool)
    basis = _Basis.of(train.rows)
    train = basis(train)
    classes = _class_count(train, test)
    fit = functools.partial(
        _fit, variances=basis.variances, classes=classes, max_iterations=max_iterations
    )

    # Rows that choose the strength: those for validation, or a random share of the training rows.
    if validation is None:
        fitted, heldout = _split(train, seed)
    else:
        fitted = train
        heldout = basis(check(*validation))

    # From strong to weak: each fit begins where the one before ended. Of equals the strongest wins.
    strengths = sorted(strengths, reverse=True)
    weights = fit(fitted, strengths)
    scores = [_heldout_score(weight, heldout) for weight in weights]
    best = max(range(len(scores)), key=scores.__getitem__)
    # the same strength once more, on all training rows
    weight = fit(train, [strengths[best]], begin=weights[best])[0]
    return _result(
        _logits(basis(test).rows, weight),
        train,
        test,
        strength=strengths[best],
        heldout_top1=scores[best][0],
        pooled=pool,
    )


def _no_result(train: "_Labelled", test: "_Labelled", pooled: bool) -> ProbeResult:
    """What is said of one class alone."""
    unknown = ("top1", "top5", "standard_error", "majority", "strength", "heldout_top1")
    facts = {"train_images": len(train.rows), "test_images": len(test.rows), "classes": 1}
    return ProbeResult(**dict.fromkeys(unknown, math.nan), **facts, pooled=pooled)


def knn_probe(
    latents: Any, labels: Tensor, test_latents: Any, test_labels: Tensor, *, neighbours: int = 20
) -> ProbeResult:
    """Vote of the nearest training latents by cosine, after standardisation; as `linear_probe`.

    Raises the same errors, and ValueError for fewer training rows than neighbours.
    """
    device = float64_device(as_rows(latents))
    train = _check(latents, labels, False, device, torch.float64)
    test = _check(test_latents, test_labels, False, device, torch.float64)
    if not 1 <= neighbours <= len(train.rows):
        raise ValueError(
            f"neighbours must be between 1 and {len(train.rows)}, the training rows, "
            f"not {neighbours}"
        )
    mean, std = _scale(train.rows)
    x = functional.normalize((train.rows - mean) / std, dim=1)
    x_test = functional.normalize((test.rows - mean) / std, dim=1)
    classes = _class_count(train, test)
    near = nearest_neighbours(x_test, x, neighbours=neighbours, cosine=True)
    # a vote counts 1 + cosine (a distance is minus the cosine), so ties go to the nearer class
    votes = x_test.new_zeros(len(x_test), classes)
    votes.scatter_add_(1, train.labels[near.indices], 1 - near.distances)
    return _result(
        votes, train, test, strength=float(neighbours), heldout_top1=math.nan, pooled=False
    )


# Logistic regression ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """Flattened latents with their labels."""

    rows: Tensor  # (n, D)
    labels: Tensor  # (n,) int64

    def part(self, selection: Tensor) -> "_Labelled":
        """The rows in `selection` (n,) bool."""
        return _Labelled(self.rows[selection], self.labels[selection])


def _split(train: _Labelled, seed: int) -> tuple[_Labelled, _Labelled]:
    """The rows to fit, and a random share `HELDOUT` of all to choose by."""
    count = len(train.rows)
    size = round(HELDOUT * count)
    if not size:
        raise ValueError(
            f"of {count} training rows none is held out to choose the strength by; "
            "take more rows, or give `validation`"
        )
    order = torch.randperm(count, generator=generator(seed, "probe", "heldout"))
    selection = torch.zeros(count, dtype=torch.bool)
    selection[order[:size]] = True
    selection = selection.to(train.rows.device)
    return train.part(~selection), train.part(selection)


@dataclasses.dataclass(frozen=True)
class _Basis:
    """Standardisation, then rotation to the principal axes of the training rows.

    The rotation leaves the penalised problem as it is (outside the axes the best weights are zero),
    but lets the solver take steps of the right size: strongly correlated inputs then need tens of
    iterations, not thousands.
    """

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    axes: Tensor  # (D, r)
    variances: Tensor  # (r,), of standardised rows along the axes

    @classmethod
    def of(cls, x: Tensor) -> "_Basis":
        """The basis of rows x (n, D): through the smaller of the two Gram matrices, in float64."""
        mean, std = _scale(x)
        x = ((x - mean) / std).double()
        wide = x.shape[1] > len(x)
        product = x @ x.T if wide else x.T @ x
        variances, vectors = torch.linalg.eigh(product / len(x))
        positive = variances > ROUNDING * variances[-1]
        variances = variances[positive]
        axes = vectors[:, positive]
        if wide:  # from eigenvectors over rows to axes of unit length
            axes = x.T @ axes / (len(x) * variances).sqrt()
        return cls(mean, std, axes.to(mean.dtype), variances.to(mean.dtype))

    def __call__(self, data: _Labelled) -> _Labelled:
        rows = ((data.rows - self.mean) / self.std) @ self.axes
        return _Labelled(rows, data.labels)


def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column (D,); a constant column is divided by 1."""
    std = x.std(dim=0, correction=0)
    if not std.max() > 0:
        raise ValueError(f"latents are constant: all {len(x)} training rows are the same")
    return x.mean(dim=0), torch.where(std > ROUNDING * std.max(), std, 1.0)


def _fit(
    data: _Labelled,
    strengths: Sequence[float],
    *,
    variances: Tensor,
    classes: int,
    max_iterations: int,
    begin: Tensor | None = None,
) -> list[Tensor]:
    """Weights (r + 1, K) for each strength in turn, each begun at the one before.

    Minimises mean cross-entropy in nats + strength / 2 |W|^2 by L-BFGS. The last row of weights
    holds the biases, which are not penalised.
    """
    truth = functional.one_hot(data.labels, classes).to(data.rows)
    x = functional.pad(data.rows, (0, 1), value=1.0)  # (n, r + 1): a column for the biases
    weight = begin
    if weight is None:
        weight = x.new_zeros(x.shape[1], classes)
    curvature = functional.pad(variances, (0, 1), value=1.0)[:, None]  # (r + 1, 1)
    weights = []
    for strength in strengths:
        penalty = torch.full_like(curvature, strength)
        penalty[-1] = 0.0
        # The curvature is near p (1 - p) variance + penalty: in units of its root all directions
        # are alike, and L-BFGS needs few steps.
        unit = (curvature / classes + penalty).rsqrt()
        scaled = (weight / unit).requires_grad_()
        solver = torch.optim.LBFGS(
            [scaled],
            max_iter=max_iterations,
            tolerance_grad=1e-5,  # of these units: 1e-6 of the loss
            tolerance_change=1e-9,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(
            scaled: Tensor = scaled, unit: Tensor = unit, penalty: Tensor = penalty
        ) -> Tensor:
            """The loss of these weights; leaves its gradient on them, as LBFGS wants it."""
            now = scaled.detach() * unit
            log_p = (x @ now).log_softmax(dim=1)
            # by hand: d loss / d W = x' (p - truth) / n + penalty * W
            residual = (log_p.exp() - truth) / len(x)
            scaled.grad = unit * (x.T @ residual + penalty * now)
            return (penalty * now.square()).sum() / 2 - (log_p * truth).sum() / len(x)

        solver.step(closure)
        weight = scaled.detach() * unit
        weights.append(weight)
    return weights


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight[:-1] + weight[-1]


def _heldout_score(weight: Tensor, heldout: _Labelled) -> tuple[float, float]:
    """Top-1 accuracy, and minus the cross-entropy, which decides ties: higher is better."""
    logits = _logits(heldout.rows, weight)
    top1 = float((logits.argmax(1) == heldout.labels).double().mean())
    return top1, -float(functional.cross_entropy(logits, heldout.labels))


# Checks and results -------------------------------------------------------------------------------


def _check(
    latents: Any, labels: Tensor, pool: bool, device: torch.device, dtype: torch.dtype
) -> _Labelled:
    """All latents as rows on `device`, flattened or averaged over tokens, and their labels."""
    latents = as_rows(latents)
    labels = torch.as_tensor(labels)
    width = width_of(latents)
    count = latents.shape[0]
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be ({count},) whole numbers, not {labels.dtype} {tuple(labels.shape)}"
        )
    if pool:
        if len(latents.shape) != 3:
            raise ValueError(f"only latents (n, N, C) can be pooled, not {tuple(latents.shape)}")
        width = latents.shape[-1]

    # Converted a chunk at a time: the latents may be a memory map, the rows are in memory at once.
    rows = torch.empty(count, width, dtype=dtype, device=device)
    for start, chunk in flat_chunks(latents, device):
        if pool:
            chunk = chunk.unflatten(1, tuple(latents.shape[1:])).mean(dim=1)
        rows[start : start + len(chunk)] = chunk.to(dtype)
    if not rows.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    return _Labelled(rows, labels.to(device, torch.int64))


def _class_count(train: _Labelled, test: _Labelled) -> int:
    return int(max(train.labels.max(), test.labels.max())) + 1


def _result(
    scores: Tensor,
    train: _Labelled,
    test: _Labelled,
    *,
    strength: float,
    heldout_top1: float,
    pooled: bool,
) -> ProbeResult:
    """Accuracies of scores (n, K) of the test rows, the highest of which is the prediction."""
    count = len(test.labels)
    classes = scores.shape[1]
    # with fewer than five classes top-5 is 1
    best = scores.topk(min(5, classes), dim=1).indices
    hits = best == test.labels[:, None]  # (n, 5)
    top1 = float(hits[:, 0].double().mean())
    commonest = train.labels.mode().values
    return ProbeResult(
        top1=top1,
        top5=float(hits.any(dim=1).double().mean()),
        standard_error=math.sqrt(top1 * (1 - top1) / count),  # of a share of `count` trials
        majority=float((test.labels == commonest).double().mean()),
        strength=strength,
        heldout_top1=heldout_top1,
        train_images=len(train.labels),
        test_images=count,
        classes=classes,
        pooled=pooled,
    )
