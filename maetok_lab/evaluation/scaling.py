"""What a finite number of samples hides: the Frechet distance extrapolated to infinitely many, and copies of training
images."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.evaluation.metrics import Gaussian, Statistics, as_gaussian, frechet_distance
from maetok_lab.rng import generator


def frechet_against_count(
    features: Tensor,
    reference: Tensor | Statistics | Gaussian,
    *,
    counts: Sequence[int] | None = None,
    blocks: int = 6,
    seed: int = 0,
) -> pd.DataFrame:
    """Frechet distance of the first N of the shuffled samples for several N, and its value at infinity.

    features (n, d) -> columns `count, value`; `.attrs` holds `infinity`, the intercept of a line in 1 / N (Chong and
    Forsyth 2020), with its 95 % interval `low, high`: a jackknife over `blocks` of the samples. `counts` default to
    five between n / 3 and n. Raises ValueError for fewer than two counts or counts outside 2 .. n.
    """
    counts = _counts(len(features)) if counts is None else sorted(set(counts))
    if len(counts) < 2 or counts[0] < 2 or counts[-1] > len(features):
        raise ValueError(
            f"counts must be two or more numbers in 2 .. {len(features)}, not {counts}"
        )
    target = as_gaussian(reference, "reference")
    shuffled = features[
        torch.randperm(len(features), generator=generator(seed, "frechet-count")).to(
            features.device
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images are the point here
        values = [frechet_distance(shuffled[:count], target) for count in counts]
        infinity = _intercept(counts, values)
        parts = list(shuffled.tensor_split(blocks))
        without = [
            _infinity_of(torch.cat(parts[:i] + parts[i + 1 :]), target, counts)
            for i in range(blocks)
        ]
    spread = torch.tensor(without, dtype=torch.float64)
    error = math.sqrt((blocks - 1) / blocks * float((spread - spread.mean()).square().sum()))
    table = pd.DataFrame({"count": counts, "value": values})
    table.attrs = {
        "infinity": infinity,
        "low": infinity - 1.96 * error,
        "high": infinity + 1.96 * error,
    }
    return table


def _counts(n: int) -> list[int]:
    """Five counts, evenly spaced in 1 / N."""
    return sorted({round(1 / inverse) for inverse in torch.linspace(3 / n, 1 / n, 5).tolist()})


def _infinity_of(features: Tensor, target: Gaussian, counts: Sequence[int]) -> float:
    shrunk = [max(2, round(count * len(features) / counts[-1])) for count in counts]
    return _intercept(shrunk, [frechet_distance(features[:count], target) for count in shrunk])


def _intercept(counts: Sequence[int], values: Sequence[float]) -> float:
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    return float(
        torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None]).solution[0]
    )


def frechet_error(
    features: Tensor, reference: Tensor | Gaussian, *, draws: int = 8, seed: int = 0
) -> float:
    """Standard error of the Frechet distance: its spread over random halves of the samples, times sqrt(1/2).

    (n, d) against a Gaussian, which stays as it is; or against (n, d) whose rows belong to those of features (an image and
    its reconstruction), which are halved together.
    """
    halves = [
        torch.randperm(len(features), generator=generator(seed, "frechet-halves", i))
        for i in range(draws)
    ]
    picks = [half[: max(2, len(features) // 2)] for half in halves]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few images: the distance itself has warned
        values = [
            frechet_distance(
                features[pick], reference if isinstance(reference, Gaussian) else reference[pick]
            )
            for pick in picks
        ]
    return float(torch.tensor(values, dtype=torch.float64).std() / math.sqrt(2))


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """For each sample its nearest training images (n, k), nearest first, and their distances (n, k) in feature
    units."""

    indices: Tensor
    distances: Tensor


def nearest_neighbours(features: Tensor, train: Tensor, *, neighbours: int = 3) -> Neighbours:
    """The training images whose features are nearest: (n, d), (m, d) -> Neighbours. Raises ValueError for k > m."""
    if not 1 <= neighbours <= len(train) or features.shape[1:] != train.shape[1:]:
        shapes = f"{tuple(features.shape)} and {tuple(train.shape)}"
        raise ValueError(
            f"need 1 to {len(train)} neighbours of features of one width, not {neighbours} of {shapes}"
        )
    found = [
        torch.cdist(part.double(), train.double()).topk(neighbours, largest=False)
        for part in features.split(1024)
    ]
    return Neighbours(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))


def copied_share(features: Tensor, train: Tensor, heldout: Tensor) -> float:
    """Probability that a sample lies nearer to its nearest training image than a held-out real image does to its own.

    (n, d), (m, d), (k, d) -> [0, 1]: about 0.5 for samples that copy as little as new real images do, 1 for copies;
    below 0.5 samples are further from the training images than real ones are.
    """
    made, real = (
        nearest_neighbours(side, train, neighbours=1).distances[:, 0]
        for side in (features, heldout)
    )
    less, equal = (made[:, None] < real).double(), (made[:, None] == real).double()
    return float((less + equal / 2).mean())
