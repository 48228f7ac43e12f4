"""What a finite number of samples hides.

The Frechet distance extrapolated to infinitely many, its error, and copies of training images.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.evaluation.metrics import Z95, Gaussian, Statistics, as_gaussian, frechet_distance
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

BLOCKS = 6  # of samples, each left out once for the interval at infinity


def frechet_against_count(
    features: Tensor,
    reference: Tensor | Statistics | Gaussian,
    *,
    counts: Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Frechet distance of the first N of the shuffled samples for several N, and at infinity.

    features (n, d) -> columns `count, value`; `.attrs` holds `infinity` with its 95 % interval
    `low, high`. `counts` default to five between n / 3 and n. Raises ValueError for fewer than two
    counts or counts outside 2 .. n.
    """
    total = len(features)
    if counts is None:  # evenly spaced in 1 / N
        counts = [
            round(1 / inverse) for inverse in torch.linspace(3 / total, 1 / total, 5).tolist()
        ]
    counts = sorted(set(counts))
    if len(counts) < 2 or counts[0] < 2 or counts[-1] > total:
        raise ValueError(f"counts must be two or more numbers in 2 .. {total}, not {counts}")
    target = as_gaussian(reference, "reference")
    order = torch.randperm(total, generator=generator(seed, "frechet-count"))
    shuffled = features[order.to(features.device)]
    values = _distances(shuffled, target, counts)
    infinity = _intercept(counts, values)

    # jackknife: the spread of the extrapolation when one block of the samples is left out
    parts = shuffled.tensor_split(BLOCKS)
    estimates = []
    for block in range(BLOCKS):
        samples = torch.cat([*parts[:block], *parts[block + 1 :]])
        fewer = [max(2, round(count * len(samples) / counts[-1])) for count in counts]
        estimates.append(_intercept(fewer, _distances(samples, target, fewer)))
    estimates = torch.tensor(estimates, dtype=torch.float64)
    squares = float((estimates - estimates.mean()).square().sum())
    margin = Z95 * math.sqrt((BLOCKS - 1) / BLOCKS * squares)
    table = pd.DataFrame({"count": counts, "value": values})
    table.attrs = {"infinity": infinity, "low": infinity - margin, "high": infinity + margin}
    return table


def _distances(features: Tensor, target: Gaussian, counts: Sequence[int]) -> list[float]:
    """Frechet distance of the first N features for each of the counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images are the point here
        return [frechet_distance(features[:count], target) for count in counts]


def _intercept(counts: Sequence[int], values: Sequence[float]) -> float:
    """Where a line through the values, in 1 / N, meets 0 (Chong and Forsyth 2020)."""
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    target = torch.tensor(values, dtype=torch.float64)[:, None]
    return float(torch.linalg.lstsq(design, target).solution[0])


def frechet_error(
    features: Tensor, reference: Tensor | Gaussian, *, draws: int = 8, seed: int = 0
) -> float:
    """Standard error of the Frechet distance: its spread over random halves, times sqrt(1/2).

    features (n, d) against a Gaussian, which stays whole; or against a reference (n, d) whose rows
    belong to those of the features (an image and its reconstruction): both are halved alike.
    """

    def distance(half: Tensor) -> float:
        """Of these rows."""
        side = reference if isinstance(reference, Gaussian) else reference[half]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few images: the whole set's distance warns
            return frechet_distance(features[half], side)

    return halves_error(distance, len(features), draws=draws, seed=seed)


def halves_error(
    distance: Callable[[Tensor], float], count: int, *, draws: int = 8, seed: int = 0
) -> float:
    """Standard error of a distance of `count` samples, given the distance of some rows of them."""
    values = []
    for draw in range(draws):
        order = torch.randperm(count, generator=generator(seed, "frechet-halves", draw))
        values.append(distance(order[: max(2, count // 2)]))
    return float(torch.tensor(values, dtype=torch.float64).std() / math.sqrt(2))


def copied_share(features: Tensor, train: Tensor, heldout: Tensor) -> float:
    """Probability that a sample is nearer to its nearest training image than a new real image.

    (n, d), (m, d), (k, d) -> [0, 1]: about 0.5 for samples that copy as little as `heldout` images
    do, 1 for copies; below 0.5 samples are further from the training images than real ones are.
    """
    nearest = []
    for side in (features, heldout):
        distances = nearest_neighbours(side, train, neighbours=1).distances
        nearest.append(distances[:, 0])
    samples, real = nearest
    # pairs are counted by rank: a table of all of them would take 80 GB for 50,000 a side
    ranks = real.sort().values
    below = torch.searchsorted(ranks, samples)  # real distances smaller than each sample's
    up_to = torch.searchsorted(ranks, samples, right=True)  # and those that are not larger
    twice = (2 * len(ranks) - below - up_to).sum()
    return float(twice) / 2 / (len(samples) * len(ranks))
