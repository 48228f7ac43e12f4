"""Samples judged class by class: which classes a model draws well."""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from maetok_lab.evaluation.features import Reference
from maetok_lab.evaluation.metrics import MIN_IMAGES, kernel_distance, precision_recall

COLUMNS = ["images", "reference_images", "kid", "low", "high", "precision", "recall"]


def evaluate_classes(
    samples: Reference,
    labels: Tensor,
    reference: Reference,
    reference_labels: Tensor,
    class_names: Sequence[str],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Kernel distance, precision and recall of each class's samples against its real images.

    labels (n,) of the samples, reference_labels (m,) -> one row a class with `COLUMNS`, `low` and
    `high` the 95 % interval of `kid`; NaN under 8 images a side. Raises ValueError when labels and
    images differ in number.
    """
    for side, side_labels in ((samples, labels), (reference, reference_labels)):
        if side.features is None:
            raise ValueError(f"{side.name} is only a mean and a covariance: classes need features")
        if len(side_labels) != side.count:
            raise ValueError(
                f"{side.name} has {side.count} images, but {len(side_labels)} labels came"
            )
    # a class has few images, so that its numbers are rough: their interval says how rough
    rows = []
    for label in range(len(class_names)):
        fake = samples.features[labels == label]
        real = reference.features[reference_labels == label]
        row = {"images": len(fake), "reference_images": len(real)}
        if min(len(fake), len(real)) >= MIN_IMAGES:
            kid = kernel_distance(fake, real, seed=seed)
            shares = precision_recall(fake, real)
            row |= {"kid": kid.value, "low": kid.low, "high": kid.high}
            row |= {"precision": shares.precision, "recall": shares.recall}
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(class_names, name="class"), columns=COLUMNS)
