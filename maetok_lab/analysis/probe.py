"""How much a linear classifier or near neighbours read from latents (the paper's figure 5a).

The paper says neither how its probe was trained nor what it scored; it does say that latents are
flattened. Mean-pooled tokens of released weights score a few per cent, so pooling is offered only
to show that difference.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from maetok_lab.analysis.definitions import Definition, definition
from maetok_lab.analysis.labelled import ROUNDING, Labelled, labelled_latents
from maetok_lab.analysis.preprocess import as_rows, float64_device
from maetok_lab.neighbours import Neighbours, nearest_neighbours
from maetok_lab.progress import track
from maetok_lab.rng import generator

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the L2 penalty, among which held-out rows choose
HELDOUT = 0.2  # share of the training rows held out for that, where there is no validation set


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
    definition: Definition  # of `top1`, with the settings that it had

    @property
    def pooled(self) -> bool:
        """Whether tokens were averaged."""
        return self.definition["settings"].get("pooled", False)


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
    device = float64_device(as_rows(latents))
    dtype = getattr(torch, precision)
    read = functools.partial(labelled_latents, pool=pool, device=device, dtype=dtype)
    train = read(latents, labels)
    test = read(test_latents, test_labels)
    settings = {"strengths": list(strengths), "max_iterations": max_iterations, "seed": seed}
    if validation is None:
        settings["chosen_on"] = f"a random {HELDOUT:.0%} of the training rows"
    else:
        settings["chosen_on"] = f"{len(validation[1])} validation rows"
    stated = definition("linear_probe", pooled=pool, precision=precision, **settings)
    if len(train.labels.unique()) < 2:
        warnings.warn("one class alone has no linear probe: its accuracy is NaN", stacklevel=2)
        return _no_result(len(train.labels), len(test.labels), stated)
    unseen = [test] if validation is None else [test, read(*validation)]
    _check_widths(train, unseen)
    basis = _Basis.of(train)
    train = basis(train)
    classes = _class_count(train.data.labels, *(data.labels for data in unseen))
    fit = functools.partial(
        _fit, variances=basis.variances, classes=classes, max_iterations=max_iterations
    )

    # Rows that choose the strength: those for validation, or a random share of the training rows.
    fitted, heldout = _split(train, seed) if validation is None else (train, basis(unseen[1]))

    # From strong to weak: each fit begins where the one before ended. Of equals the strongest wins.
    strengths = sorted(strengths, reverse=True)
    weights = fit(fitted, strengths)
    scores = [_heldout_score(weight, heldout) for weight in weights]
    best = max(range(len(scores)), key=scores.__getitem__)
    # the same strength once more, on all training rows
    weight = fit(train, [strengths[best]], begin=weights[best])[0]
    logits = torch.cat([chunk for chunk, _ in basis(test).logits(weight)])
    choice = {"strength": strengths[best], "heldout_top1": scores[best][0]}
    return _result(logits, train.data.labels, test.labels, definition=stated, **choice)


def _no_result(train_images: int, test_images: int, definition: Definition) -> ProbeResult:
    """What is said of one class alone."""
    numbers = ("top1", "top5", "standard_error", "majority", "strength", "heldout_top1")
    facts = {"train_images": train_images, "test_images": test_images, "classes": 1}
    return ProbeResult(**dict.fromkeys(numbers, math.nan), **facts, definition=definition)


def knn_probe(
    latents: Any, labels: Tensor, test_latents: Any, test_labels: Tensor, *, neighbours: int = 20
) -> ProbeResult:
    """Vote of the nearest training latents by cosine, after standardisation; as `linear_probe`.

    Raises the same errors, and ValueError for fewer training rows than neighbours.
    """
    device = float64_device(as_rows(latents))
    read = functools.partial(labelled_latents, pool=False, device=device, dtype=torch.float64)
    train = read(latents, labels)
    test = read(test_latents, test_labels)
    count = len(train.labels)
    if not 1 <= neighbours <= count:
        raise ValueError(
            f"neighbours must be between 1 and {count}, the training rows, not {neighbours}"
        )
    _check_widths(train, [test])
    mean, std = train.scale()

    def direction(rows: Tensor) -> Tensor:
        return functional.normalize((rows - mean) / std, dim=1)

    train = train.changed(direction)
    classes = _class_count(train.labels, test.labels)
    votes = []
    for rows, _ in test.changed(direction).chunks():
        near = _nearest_of_all(rows, train, neighbours)
        # a vote counts 1 + cosine (a distance is minus the cosine), so ties go to the nearer class
        vote = rows.new_zeros(len(rows), classes)
        votes.append(vote.scatter_add_(1, train.labels[near.indices], 1 - near.distances))
    return _result(
        torch.cat(votes),
        train.labels,
        test.labels,
        strength=float(neighbours),
        heldout_top1=math.nan,
        definition=definition("knn_probe", neighbours=neighbours),
    )


def _nearest_of_all(rows: Tensor, train: Labelled, neighbours: int) -> Neighbours:
    """The training rows nearest to `rows` (b, D) by cosine: the nearest of each chunk's nearest."""
    indices, distances = [], []
    start = 0
    for points, _ in train.chunks():
        near = nearest_neighbours(
            rows, points, neighbours=min(neighbours, len(points)), cosine=True
        )
        indices.append(near.indices + start)
        distances.append(near.distances)
        start += len(points)
    nearest = torch.cat(distances, dim=1).topk(neighbours, largest=False)
    return Neighbours(torch.cat(indices, dim=1).gather(1, nearest.indices), nearest.values)


# Logistic regression ------------------------------------------------------------------------------


def _split(train: "_Rotated", seed: int) -> tuple["_Rotated", "_Rotated"]:
    """The rows to fit, and a random share `HELDOUT` of all to choose by."""
    count = len(train.data.labels)
    size = round(HELDOUT * count)
    if not size:
        raise ValueError(
            f"of {count} training rows none is held out to choose the strength by; "
            "take more rows, or give `validation`"
        )
    order = torch.randperm(count, generator=generator(seed, "probe", "heldout"))
    selection = torch.zeros(count, dtype=torch.bool)
    selection[order[:size]] = True
    selection = selection.to(train.data.labels.device)
    return train.part(~selection), train.part(selection)


@dataclasses.dataclass(frozen=True)
class _Rotated:
    """Standardised rows along principal axes, with a column of ones for the biases.

    Rows in memory are rotated once. Those that are streamed stay as they are, and what they are
    multiplied by is rotated: the same product, of a matrix that is smaller.
    """

    data: Labelled  # rows (n, r + 1), or (n, D + 1) where `axes` are given
    axes: Tensor | None = None  # (D, r)

    def part(self, selection: Tensor) -> "_Rotated":
        """The rows in `selection` (n,) bool."""
        return _Rotated(self.data.part(selection), self.axes)

    def logits(self, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (b, K) of weights (r + 1, K), with the labels (b,), a chunk at a time."""
        weight = self._spread(weight)
        for rows, labels in self.data.chunks():
            yield rows @ weight, labels

    def loss_and_slope(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats, and its gradient (r + 1, K), of weights (r + 1, K)."""
        spread = self._spread(weight)
        count = len(self.data.labels)
        loss, slope = torch.zeros(()).to(spread), torch.zeros_like(spread)
        for rows, labels in self.data.chunks():
            truth = functional.one_hot(labels, weight.shape[1]).to(rows)
            log_p = (rows @ spread).log_softmax(dim=1)
            # by hand: d loss / d W = x' (p - truth) / n
            slope += rows.T @ ((log_p.exp() - truth) / count)
            loss -= (log_p * truth).sum() / count
        if self.axes is not None:
            slope = torch.cat([self.axes.T @ slope[:-1], slope[-1:]])
        return loss, slope

    def _spread(self, weight: Tensor) -> Tensor:
        """Weights (r + 1, K) for the rows as they are kept."""
        if self.axes is None:
            return weight
        return torch.cat([self.axes @ weight[:-1], weight[-1:]])


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
    def of(cls, train: Labelled) -> "_Basis":
        """The basis of training rows: through the smaller of the two Gram matrices, in float64."""
        mean, std = train.scale()
        count = len(train.labels)
        wide = train.width > count
        product: Any = 0.0
        for rows, _ in train.chunks():
            x = ((rows - mean) / std).double()
            product = product + (x @ x.T if wide else x.T @ x)
        variances, vectors = torch.linalg.eigh(product / count)
        positive = variances > ROUNDING * variances[-1]
        variances = variances[positive]
        axes = vectors[:, positive]
        if wide:  # from eigenvectors over rows to axes of unit length; such rows are one chunk
            axes = x.T @ axes / (count * variances).sqrt()
        return cls(mean, std, axes.to(mean.dtype), variances.to(mean.dtype))

    def __call__(self, data: Labelled) -> _Rotated:
        axes = None if isinstance(data.rows, Tensor) else self.axes

        def into(rows: Tensor) -> Tensor:
            rows = (rows - self.mean) / self.std
            if axes is None:
                rows = rows @ self.axes
            return functional.pad(rows, (0, 1), value=1.0)

        return _Rotated(data.changed(into), axes)


def _fit(
    data: _Rotated,
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
    curvature = functional.pad(variances, (0, 1), value=1.0)[:, None]  # (r + 1, 1)
    weight = begin
    if weight is None:
        weight = curvature.new_zeros(len(curvature), classes)
    weights = []
    for strength in track(strengths, "linear probe, penalties"):
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
            loss, slope = data.loss_and_slope(now)
            scaled.grad = unit * (slope + penalty * now)
            return (penalty * now.square()).sum() / 2 + loss

        solver.step(closure)
        weight = scaled.detach() * unit
        weights.append(weight)
    return weights


def _heldout_score(weight: Tensor, heldout: _Rotated) -> tuple[float, float]:
    """Top-1 accuracy, and minus the cross-entropy, which decides ties: higher is better."""
    count = len(heldout.data.labels)
    hits, loss = 0, 0.0
    for logits, labels in heldout.logits(weight):
        hits += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return hits / count, -loss / count


# Results ------------------------------------------------------------------------------------------


def _class_count(*labels: Tensor) -> int:
    return int(max(part.max() for part in labels)) + 1


def _check_widths(train: Labelled, unseen: Sequence[Labelled]) -> None:
    for data in unseen:
        if data.width != train.width:
            raise ValueError(
                f"latents to fit have {train.width} numbers a row, those of the test or validation "
                f"images {data.width}: they are to be of one tokenizer"
            )


def _result(
    scores: Tensor,
    labels: Tensor,
    test_labels: Tensor,
    *,
    strength: float,
    heldout_top1: float,
    definition: Definition,
) -> ProbeResult:
    """Accuracies of scores (n, K) of the test rows, the highest of which is the prediction."""
    count = len(test_labels)
    classes = scores.shape[1]
    # with fewer than five classes top-5 is 1
    best = scores.topk(min(5, classes), dim=1).indices
    hits = best == test_labels[:, None]  # (n, 5)
    top1 = float(hits[:, 0].double().mean())
    commonest = labels.mode().values
    return ProbeResult(
        top1=top1,
        top5=float(hits.any(dim=1).double().mean()),
        standard_error=math.sqrt(top1 * (1 - top1) / count),  # of a share of `count` trials
        majority=float((test_labels == commonest).double().mean()),
        strength=strength,
        heldout_top1=heldout_top1,
        train_images=len(labels),
        test_images=count,
        classes=classes,
        definition=definition,
    )
