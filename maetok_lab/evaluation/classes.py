"""Samples judged class by class: which classes a model draws well."""

import math
from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from maetok_lab.evaluation.features import Reference
from maetok_lab.evaluation.metrics import kernel_distance, precision_recall

FEWEST = 8  # images a side below which a class gets no numbers


def evaluate_classes(
    samples: Reference,
    labels: Tensor,
    reference: Reference,
    reference_labels: Tensor,
    class_names: Sequence[str],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Kernel distance (with its 95 % interval), precision and recall of each class's samples against its real images.

    labels (n,) of the samples, reference_labels (m,) -> one row a class: `images, reference_images, kid, low, high,
    precision, recall`, NaN under 8 images a side. With few images these are rough: read the interval first. Raises
    ValueError when labels and images differ in number.
    """
    for side, given in ((samples, labels), (reference, reference_labels)):
        if side.features is None or len(given) != len(side.features):
            raise ValueError(f"{side.name} has {side.count} images, but {len(given)} labels came")
    rows = []
    for number in range(len(class_names)):
        made, real = (
            samples.features[labels == number],
            reference.features[reference_labels == number],
        )
        row = {"images": len(made), "reference_images": len(real)}
        names = ("kid", "low", "high", "precision", "recall")
        rows.append(
            row
            | (
                _numbers(made, real, seed)
                if min(len(made), len(real)) >= FEWEST
                else dict.fromkeys(names, math.nan)
            )
        )
    return pd.DataFrame(rows, index=pd.Index(class_names, name="class"))


def _numbers(made: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    kernel, near = kernel_distance(made, real, seed=seed), precision_recall(made, real)
    return {
        "kid": kernel.value,
        "low": kernel.low,
        "high": kernel.high,
        "precision": near.precision,
        "recall": near.recall,
    }
