"""Numbers from pairs of images (PSNR, SSIM) and from sets of features (Frechet, kernel, precision and recall, score).

Nothing here knows where images or features came from; `evaluation.protocol` records that beside every number. Features
are (n, d); sums, covariances, kernels and distances are float64, on the device of the first argument.
"""

import dataclasses
import math
import warnings

import torch
from torch import Tensor

from maetok_lab.evaluation.pixels import psnr, round_to_uint8, ssim, wide
from maetok_lab.rng import generator

__all__ = [
    "Gaussian",
    "InceptionScore",
    "KernelDistance",
    "PrecisionRecall",
    "as_gaussian",
    "feature_statistics",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "psnr",
    "round_to_uint8",
    "ssim",
]

Statistics = tuple[Tensor, Tensor]
CHUNK = 1024  # rows of a pairwise matrix that exist at a time


# Frechet distance -----------------------------------------------------------------------------------------------------


def feature_statistics(features: Tensor) -> Statistics:
    """Mean and covariance (n - 1 in the denominator) of features in float64: (n, d) -> (d,), (d, d)."""
    features = _features(features, "features")
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """What the Frechet distance needs of one side: mean (d,), and a factor (r, d) with factor.T @ factor =
    covariance."""

    mean: Tensor
    factor: Tensor


def frechet_distance(
    features: Tensor | Statistics | Gaussian, reference: Tensor | Statistics | Gaussian
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between two sets, each (n, d) features or a (mean, covariance) pair.

    In float64. With symmetric square roots A.T A = C1 and B.T B = C2, tr (C1 C2)^(1/2) is the sum of the singular
    values of A B.T, which stays exact for covariances without full rank. Those are computed with a warning: with n <= d
    the distance is mostly bias. Raises ValueError for NaN, fewer than two images, or unequal dimensions.
    """
    one, two = as_gaussian(features, "features"), as_gaussian(reference, "reference")
    mean, factor = two.mean.to(one.mean.device), two.factor.to(one.mean.device)
    if one.mean.shape != mean.shape:
        raise ValueError(
            f"features have {len(one.mean)} dimensions, but the reference has {len(mean)}"
        )
    cross = torch.linalg.svdvals(one.factor @ factor.T).sum()
    return float(
        (one.mean - mean).square().sum()
        + one.factor.square().sum()
        + factor.square().sum()
        - 2 * cross
    )


def as_gaussian(given: Tensor | Statistics | Gaussian, name: str = "features") -> Gaussian:
    """One side of the Frechet distance, to be used several times: see there for what is taken, warned of and
    refused."""
    if isinstance(given, Gaussian):
        return given
    if isinstance(given, tuple):
        mean, covariance = _checked_statistics(given, name)
        return Gaussian(mean, _root(covariance, name))
    features = _features(given, name)
    if len(features) > features.shape[1]:
        mean, covariance = feature_statistics(features)
        return Gaussian(mean, _root(covariance, name))
    warnings.warn(
        f"{name}: {len(features)} images for {features.shape[1]} dimensions: the covariance has no full rank and the "
        "Frechet distance is mostly bias; use more images, or kernel_distance",
        stacklevel=3,
    )
    mean = features.mean(dim=0)
    return Gaussian(mean, (features - mean) / math.sqrt(len(features) - 1))


def _checked_statistics(given: Statistics, name: str) -> Statistics:
    mean, cov = (wide(torch.as_tensor(part)) for part in given)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)}, {tuple(cov.shape)}"
        raise ValueError(f"{name}: a (mean, covariance) pair is (d,), (d, d), not {shapes}")
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise ValueError(f"{name}: mean or covariance hold NaN or infinite values")
    if not torch.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * float(cov.abs().max())):
        raise ValueError(f"{name}: the covariance is not symmetric")
    return mean, cov


def _root(cov: Tensor, name: str) -> Tensor:
    """Symmetric square root of a covariance; eigenvalues negative by more than rounding are an error."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    if values[0] < -1e-4 * values[-1].abs():
        raise ValueError(
            f"{name} is no covariance: it has a negative eigenvalue, {float(values[0]):.3g}"
        )
    rank = int((values > len(values) * 2e-16 * values[-1]).sum())
    if rank < len(values):
        warnings.warn(
            f"{name}: the covariance has rank {rank} of {len(values)}; too few images?",
            stacklevel=4,
        )
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


# Kernel distance ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """Kernel distance with its standard error and 95 % interval, and how many images a side one estimate used."""

    value: float
    standard_error: float
    low: float
    high: float
    subset_size: int
    subsets: int


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    *,
    subset_size: int | None = None,
    subsets: int = 100,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared MMD between two sets of features under (x y / d + 1)^3 (Binkowski et al. 2018, "KID").

    (n, d), (m, d) -> KernelDistance, without unit; may be slightly below 0 for equal distributions. Without
    `subset_size` all images enter one estimate and the interval is that of `subsets` bootstrap draws of both sets
    (percentiles; pairs of an image with its own copy are left out, so the draws stay unbiased). With it, the mean over
    `subsets` random subsets, and an error no smaller than their spread scaled to the size of the whole set. Cost n m d.
    Raises ValueError for NaN, fewer than two images, unequal dimensions, or a subset larger than a set.
    """
    x, y = _pair(features, reference)
    if subset_size is None:
        return _bootstrap_distance(x, y, subsets, seed)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size must be between 2 and {min(len(x), len(y))}, the smaller set, not {subset_size}"
        )
    random = generator(seed, "kernel-distance")
    values = []
    for _ in range(subsets):
        rows = (torch.randperm(len(side), generator=random)[:subset_size] for side in (x, y))
        values.append(_weighted_distance(*(side[pick] for side, pick in zip((x, y), rows))))
    values = torch.cat(values)
    value, spread = float(values.mean()), float(values.std()) if subsets > 1 else math.nan
    error = spread * max(subsets**-0.5, math.sqrt(subset_size / min(len(x), len(y))))
    return KernelDistance(
        value, error, value - 1.96 * error, value + 1.96 * error, subset_size, subsets
    )


def _bootstrap_distance(x: Tensor, y: Tensor, draws: int, seed: int) -> KernelDistance:
    random = generator(seed, "kernel-distance")
    weights = [
        torch.cat([torch.ones(len(s), 1), _draws(len(s), draws, random)], 1).to(x) for s in (x, y)
    ]
    values = _weighted_distance(x, y, *weights)
    value, values = float(values[0]), values[1:]
    if draws < 2:
        return KernelDistance(value, math.nan, math.nan, math.nan, min(len(x), len(y)), 1)
    low, high = values.quantile(torch.tensor([0.025, 0.975]).to(values)).tolist()
    return KernelDistance(value, float(values.std()), low, high, min(len(x), len(y)), 1)


def _draws(count: int, draws: int, random: torch.Generator) -> Tensor:
    """How often each image occurs in each bootstrap draw: (count, draws)."""
    picks = torch.randint(count, (count, draws), generator=random)
    return torch.zeros(count, draws, dtype=torch.float64).scatter_add_(
        0, picks, torch.ones(count, draws).double()
    )


def _weighted_distance(
    x: Tensor, y: Tensor, w: Tensor | None = None, v: Tensor | None = None
) -> Tensor:
    """Unbiased MMD^2 for each column of image weights: (n, d), (m, d), (n, b), (m, b) -> (b,)."""
    w, v = (x.new_ones(len(x), 1) if w is None else w), (y.new_ones(len(y), 1) if v is None else v)
    return (
        _kernel_mean(x, x, w, w, True)
        + _kernel_mean(y, y, v, v, True)
        - 2 * _kernel_mean(x, y, w, v, False)
    )


def _kernel_mean(x: Tensor, y: Tensor, w: Tensor, v: Tensor, same: bool) -> Tensor:
    """Weighted mean kernel over all pairs, without the pairs of an image with itself when both sets are the `same`."""
    total = x.new_zeros(w.shape[1])
    for start in range(0, len(x), CHUNK):
        kernel = (x[start : start + CHUNK] @ y.T / x.shape[1] + 1) ** 3  # (chunk, m)
        if same:
            kernel.diagonal(start).zero_()
        total += (w[start : start + CHUNK] * (kernel @ v)).sum(dim=0)
    pairs = w.sum(0) * v.sum(0) - ((w * v).sum(0) if same else 0)
    return total / pairs


# Precision, recall, inception score -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples near the reference, and of the reference near the samples; both in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    features: Tensor, reference: Tensor, *, neighbours: int = 3
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019), as torch-fidelity computes them.

    A row lies near a set if it is within the distance of some row of that set to its own k-th neighbour.
    (n, d), (m, d) -> shares in [0, 1]; they depend on n and m. Raises ValueError for NaN, sets of at most `neighbours`
    images, or unequal dimensions.
    """
    x, y = _pair(features, reference)
    if min(len(x), len(y)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need more images than {min(len(x), len(y))} a side"
        )
    return PrecisionRecall(_share_near(x, y, neighbours), _share_near(y, x, neighbours))


def _share_near(rows: Tensor, others: Tensor, neighbours: int) -> float:
    chunks = others.split(CHUNK)
    # + 1: the first neighbour of a row in its own set is itself
    radius = torch.cat(
        [torch.cdist(c, others).kthvalue(neighbours + 1).values for c in chunks]
    )  # (m,)
    near = torch.cat([(torch.cdist(c, others) <= radius).any(dim=1) for c in rows.split(CHUNK)])
    return float(near.double().mean())


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits; 1 .. number of classes."""

    mean: float
    std: float


def inception_score(logits: Tensor, *, splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """exp E KL(p(class | image) || p(class)) (Salimans et al. 2016) from class logits (n, classes), over equal splits.

    `seed` shuffles the images first; None keeps their order. Raises ValueError for NaN or fewer images than splits.
    """
    logits = _features(logits, "logits")
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} splits need at least as many images, not {len(logits)}")
    if seed is not None:
        logits = logits[
            torch.randperm(len(logits), generator=generator(seed, "inception-score")).to(
                logits.device
            )
        ]
    log_p = logits.log_softmax(dim=1)
    scores = []
    for split in range(splits):
        part = log_p[split * len(log_p) // splits : (split + 1) * len(log_p) // splits]
        marginal = part.exp().mean(dim=0).log()
        scores.append(float((part.exp() * (part - marginal)).sum(dim=1).mean().exp()))
    scores = torch.tensor(scores, dtype=torch.float64)
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


# Checks ---------------------------------------------------------------------------------------------------------------


def _features(features: Tensor, name: str) -> Tensor:
    features = torch.as_tensor(features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"{name} must be (n, d) with at least two rows, not {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError(
            f"{name} hold NaN or infinite values in {int((~features.isfinite()).any(1).sum())} rows"
        )
    return wide(features)


def _pair(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    x = _features(features, "features")
    y = _features(reference, "reference").to(x.device)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features have {x.shape[1]} dimensions, but the reference has {y.shape[1]}"
        )
    return x, y
