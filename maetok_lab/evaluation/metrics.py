"""Numbers from sets of features: three distances, precision and recall, inception score.

Nothing here knows where images or features came from; `evaluation.protocol` records that beside
every number. Features are (n, d); sums, covariances, kernels and distances are float64, on the
device of the first argument.
"""

import dataclasses
import math
import warnings

import torch
from torch import Tensor

from maetok_lab.device import wide
from maetok_lab.neighbours import near_each_other, nearest_neighbours
from maetok_lab.rng import generator

Statistics = tuple[Tensor, Tensor]  # mean (d,) and covariance (d, d)
CHUNK = 1024  # rows of a pairwise matrix that exist at a time
Z95 = 1.96  # standard errors on each side of a normal estimate that make its 95 % interval
KID_DRAWS = 100  # bootstrap draws of the kernel distance's interval
MIND_DIRECTIONS = 1000  # along which features are projected, as in the article
DIRECTIONS_AT_ONCE = 100  # columns of projected features that exist at a time
MIN_IMAGES = 8  # a side; a distance between fewer says nothing
# Share of the sum of singular values that rounding may take: there FID loses its ninth digit.
DIGITS_LOST = 1e-9
NEIGHBOURS = 3  # a row's distance to this neighbour of its own set is its radius (the article's k)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One number and, where there is one, its 95 % interval."""

    value: float
    interval: tuple[float, float] | None = None

    @classmethod
    def normal(cls, value: float, standard_error: float) -> "Estimate":
        """The interval of an estimate that is normal around the true value."""
        margin = Z95 * standard_error
        return cls(value, (value - margin, value + margin))


# Frechet distance -------------------------------------------------------------------------------


def feature_statistics(features: Tensor) -> Statistics:
    """Mean and covariance (n - 1 in the denominator) in float64: (n, d) -> (d,), (d, d)."""
    features = _checked_features(features, "features")
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """One side of the Frechet distance, prepared to be used several times."""

    mean: Tensor  # (d,)
    factor: Tensor  # (r, d), with factor.T @ factor = covariance and r at most d


def frechet_distance(
    features: Tensor | Statistics | Gaussian, reference: Tensor | Statistics | Gaussian
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between two sets, in float64.

    Each is (n, d) features or a (mean, covariance) pair. Warns of covariances without full rank:
    with n <= d the distance is mostly bias. Raises ValueError for NaN, fewer than two images, or
    unequal dimensions.
    """
    one = as_gaussian(features, "features")
    two = as_gaussian(reference, "reference")
    mean = two.mean.to(one.mean.device)
    factor = two.factor.to(one.mean.device)
    if one.mean.shape != mean.shape:
        raise ValueError(
            f"features have {len(one.mean)} dimensions, but the reference has {len(mean)}"
        )
    # With A.T A = C1 and B.T B = C2, tr (C1 C2)^(1/2) is the sum of the singular values of A B.T.
    # Unlike a matrix square root that stays exact for covariances without full rank.
    cross = _sum_of_singular_values(one.factor @ factor.T)
    means = (one.mean - mean).square().sum()
    return float(means + one.factor.square().sum() + factor.square().sum() - 2 * cross)


def _sum_of_singular_values(matrix: Tensor) -> Tensor:
    """Through the eigenvalues of a product, four times as fast, where these are exact enough."""
    tiny = torch.finfo(matrix.dtype).tiny  # the least divisor, of a matrix of zeros
    scale = matrix.abs().max().clamp(min=tiny)  # of a matrix near 1, squares are numbers
    matrix = matrix / scale
    product = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    squares = torch.linalg.eigvalsh(product).clamp(min=0)
    # eigenvalues are rounded at the size of the largest: roots of small ones lose digits
    rounding = torch.finfo(squares.dtype).eps * squares[-1]
    lost = rounding / torch.maximum(2 * squares.sqrt(), rounding.sqrt()).clamp(min=tiny)
    if lost.sum() > DIGITS_LOST * squares.sqrt().sum():
        return scale * torch.linalg.svdvals(matrix).sum()
    return scale * squares.sqrt().sum()


def as_gaussian(side: Tensor | Statistics | Gaussian, name: str) -> Gaussian:
    """One side of `frechet_distance`, with its warnings and errors, in which it is `name`."""
    if isinstance(side, Gaussian):
        return side
    if isinstance(side, tuple):
        return _from_statistics(_checked_statistics(side, name), name)
    features = _checked_features(side, name)
    count, width = features.shape
    if count > width:
        return _from_statistics(feature_statistics(features), name)

    # Centred features are a factor themselves, and the smaller one where images are few. They sum
    # to 0: a reflection that turns the first into 0 leaves their products as they are.
    warnings.warn(
        f"{name}: {count} images for {width} dimensions: the covariance has no full rank and the "
        "Frechet distance is mostly bias; use more images, or kernel_distance",
        stacklevel=3,
    )
    mean = features.mean(dim=0)
    centred = features - mean
    others = centred[1:] + centred[0] / (math.sqrt(count) - 1)
    return Gaussian(mean, others / math.sqrt(count - 1))


def _from_statistics(statistics: Statistics, name: str) -> Gaussian:
    """The factor of a covariance, whose eigenvalues may be negative by rounding only."""
    mean, covariance = statistics
    covariance = (covariance + covariance.T) / 2
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    pivots = triangle.diagonal().square()
    if not failed and pivots.min() > len(pivots) * 2e-16 * pivots.max():
        return Gaussian(mean, triangle.T)

    # without full rank: the symmetric square root
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-4 * values[-1].abs():
        lowest = float(values[0])
        raise ValueError(f"{name} is no covariance: it has a negative eigenvalue, {lowest:.3g}")
    positive = values > len(values) * 2e-16 * values[-1]
    rank = int(positive.sum())
    # of n <= d images the covariance has rank n - 1
    if rank < len(values):
        warnings.warn(
            f"{name}: the covariance has rank {rank} of {len(values)}; too few images?",
            stacklevel=4,
        )
    # roots of what is rounding alone would be large
    roots = torch.where(positive, values, 0).sqrt()
    return Gaussian(mean, (vectors * roots) @ vectors.T)


# Kernel distance --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """Kernel distance with its standard error and 95 % interval."""

    value: float
    standard_error: float
    low: float
    high: float


def kernel_distance(features: Tensor, reference: Tensor, *, seed: int = 0) -> KernelDistance:
    """Unbiased squared MMD under (x y / d + 1)^3 (Binkowski et al. 2018, "KID"), no unit.

    (n, d), (m, d) -> KernelDistance, at times below 0 for equal distributions. All images enter one
    estimate; its interval is that of bootstrap draws. Cost n m d. Raises ValueError for NaN, fewer
    than three images, or unequal dimensions.
    """
    x, y = _checked_pair(features, reference)
    smaller = min(len(x), len(y))
    if smaller < 3:  # a draw of two images is those two once more
        raise ValueError(f"the kernel distance's interval needs 3 images a side, not {smaller}")
    # one column of weights for the estimate itself, one for each bootstrap draw
    random = generator(seed, "kernel-distance")
    x_weights = _with_draws(x, random)
    y_weights = _with_draws(y, random)
    same_x = _kernel_mean(x, x, x_weights, x_weights, same=True)
    same_y = _kernel_mean(y, y, y_weights, y_weights, same=True)
    values = same_x + same_y - 2 * _kernel_mean(x, y, x_weights, y_weights, same=False)
    value = float(values[0])
    draws = values[1:]
    draws = draws[draws.isfinite()]  # of few images a draw may hold one alone, which has no pairs
    low, high = draws.quantile(torch.tensor([0.025, 0.975]).to(draws)).tolist()
    return KernelDistance(value, float(draws.std()), low, high)


def _with_draws(x: Tensor, random: torch.Generator) -> Tensor:
    """How often each row counts: (n, 1 + KID_DRAWS), once in the first column."""
    count = len(x)
    picks = torch.randint(count, (count, KID_DRAWS), generator=random)
    ones = torch.ones(count, KID_DRAWS, dtype=torch.float64)
    draws = torch.zeros_like(ones).scatter_add_(0, picks, ones)
    return torch.cat([ones[:, :1], draws], dim=1).to(x)


def _kernel_mean(x: Tensor, y: Tensor, w: Tensor, v: Tensor, *, same: bool) -> Tensor:
    """Weighted mean kernel over all pairs: (n, d), (m, d), weights (n, b), (m, b) -> (b,).

    When both sets are the `same` one, pairs of an image with itself are left out.
    """
    total = x.new_zeros(w.shape[1])
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3  # (chunk, m)
        if same:  # a draw may hold an image twice: without these pairs it is unbiased as well
            kernel.diagonal(start).zero_()
        total += (w[rows] * (kernel @ v)).sum(dim=0)
    pairs = w.sum(0) * v.sum(0)
    if same:
        pairs = pairs - (w * v).sum(0)
    return total / pairs


# Monge distance ---------------------------------------------------------------------------------


def monge_distance(features: Tensor, reference: Tensor, *, seed: int = 0) -> float:
    """3 d x the mean squared Wasserstein distance along random directions (Berthet et al. 2026,
    arXiv 2605.06797, "MIND"), no unit.

    (n, d), (m, d) -> 0 or more, biased upwards by few images. Unequal n and m are matched by
    quantile (torch-fidelity: a subset). Raises ValueError for NaN, fewer than two images, or
    unequal dimensions.
    """
    x, y = _checked_pair(features, reference)
    x_rows, y_rows, shares = (part.to(x.device) for part in _matched_quantiles(len(x), len(y)))
    shares = shares.to(x)
    width = x.shape[1]
    random = generator(seed, "mind-directions")
    directions = torch.randn(width, MIND_DIRECTIONS, generator=random, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(x)

    # along one direction the nearest transport keeps the order: sorted rows belong together
    total = x.new_zeros(())
    for part in directions.split(DIRECTIONS_AT_ONCE, dim=1):
        x_sorted = (x @ part).sort(dim=0).values
        y_sorted = (y @ part).sort(dim=0).values
        total += (shares @ (x_sorted[x_rows] - y_sorted[y_rows]).square()).sum()
    return float(3 * width * total / MIND_DIRECTIONS)


def _matched_quantiles(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of n and of m sorted rows meet, and their shares: three tensors of at most n + m - 1.

    Of equal n and m row i meets row i.
    """
    # quantiles in units of 1 / (n m): between two cuts both sides stay on one row
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n])
    cuts = ends.unique()
    lengths = cuts.diff(prepend=cuts.new_zeros(1))
    return (cuts - 1) // m, (cuts - 1) // n, lengths.double() / (n * m)


# Precision, recall, inception score -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Two shares in [0, 1]."""

    precision: float  # of samples near the reference
    recall: float  # of the reference near the samples


def precision_recall(features: Tensor, reference: Tensor) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019), as torch-fidelity computes them.

    A row lies near a set if it is within the radius of some row of it. (n, d), (m, d) -> shares;
    they depend on n and m. Raises ValueError for NaN, sets of 3 images or fewer, or unequal
    dimensions.
    """
    x, y = _checked_pair(features, reference)
    smaller = min(len(x), len(y))
    if smaller <= NEIGHBOURS:
        raise ValueError(f"{NEIGHBOURS} neighbours need more images than {smaller} on each side")
    x_radius, y_radius = (
        nearest_neighbours(rows, neighbours=NEIGHBOURS).distances[:, -1] for rows in (x, y)
    )
    x_near, y_near = near_each_other(x, y, x_radius, y_radius)
    return PrecisionRecall(float(x_near.double().mean()), float(y_near.double().mean()))


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits; 1 .. number of classes."""

    mean: float
    std: float


def inception_score(logits: Tensor, *, splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """exp E KL(p(class | image) || p(class)) (Salimans et al. 2016), over equal splits.

    logits (n, classes). `seed` shuffles the images first; None keeps their order. Raises ValueError
    for NaN or fewer images than splits.
    """
    logits = _checked_features(logits, "logits")
    count = len(logits)
    if not 1 <= splits <= count:
        raise ValueError(f"{splits} splits need at least as many images, not {count}")
    if seed is not None:  # samples may come class by class
        order = torch.randperm(count, generator=generator(seed, "inception-score"))
        logits = logits[order.to(logits.device)]
    # p(class) is the mean over a split: few images make the score smaller
    log_p = logits.log_softmax(dim=1)
    scores = []
    for split in range(splits):
        part = log_p[split * count // splits : (split + 1) * count // splits]
        marginal = part.exp().mean(dim=0).log()
        divergence = (part.exp() * (part - marginal)).sum(dim=1)
        scores.append(float(divergence.mean().exp()))
    scores = torch.tensor(scores, dtype=torch.float64)
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


# Checks -----------------------------------------------------------------------------------------


def _checked_features(features: Tensor, name: str) -> Tensor:
    """Features (n, d) in float64."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or len(features) < 2:
        shape = tuple(features.shape)
        raise ValueError(f"{name} must be (n, d) with at least two rows, not {shape}")
    bad_rows = int((~features.isfinite()).any(1).sum())
    if bad_rows:
        raise ValueError(f"{name} hold NaN or infinite values in {bad_rows} rows")
    return wide(features)


def _checked_pair(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    x = _checked_features(features, "features")
    y = _checked_features(reference, "reference").to(x.device)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features have {x.shape[1]} dimensions, but the reference has {y.shape[1]}"
        )
    return x, y


def _checked_statistics(statistics: Statistics, name: str) -> Statistics:
    """Mean (d,) and covariance (d, d) in float64; numpy's arrays will do."""
    mean, covariance = (wide(torch.as_tensor(part)) for part in statistics)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)}, {tuple(covariance.shape)}"
        raise ValueError(f"{name}: a (mean, covariance) pair is (d,), (d, d), not {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{name}: mean or covariance hold NaN or infinite values")
    # published ones are float32 at times
    largest = float(covariance.abs().max())
    if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * largest):
        raise ValueError(f"{name}: the covariance is not symmetric")
    return mean, covariance
