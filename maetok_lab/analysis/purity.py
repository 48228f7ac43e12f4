"""Do an image's nearest neighbours in latent space have its label? No training, no probe."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maetok_lab.analysis.definitions import Definition, definition
from maetok_lab.analysis.labelled import ROUNDING, labelled_latents
from maetok_lab.analysis.preprocess import as_rows, float64_device
from maetok_lab.neighbours import nearest_neighbours


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelPurity:
    """Shares in [0, 1] of neighbours with an image's own label, and what chance would give."""

    gsq: float  # of each image's one most similar other image
    gsq_error: float  # standard error over images
    lnc: float  # mean share among the `neighbours` most similar ones
    lnc_error: float
    chance: float  # expectation of both, if labels were dealt out at random
    neighbours: int
    images: int
    definitions: dict[str, Definition]  # of `gsq`, `lnc` and `chance`, with their settings


def label_purity(
    latents: Any, labels: Tensor, *, neighbours: int = 5, pool: bool = True
) -> LabelPurity:
    """GSQ and LNC of latents (n, N, C) with labels (n,): all neighbours are among these images.

    Tokens are averaged if `pool`, else flattened, as 1-D tokens need it. Raises ValueError for NaN,
    latents that are all the same, labels that do not match, and for fewer than `neighbours` + 1.
    """
    device = float64_device(as_rows(latents))
    data = labelled_latents(latents, labels, pool=pool, device=device, dtype=torch.float64)
    count = len(data.labels)
    if not 1 <= neighbours < count:
        raise ValueError(
            f"neighbours must be between 1 and {count - 1}, the other images, not {neighbours}; "
            "take fewer neighbours, or more images"
        )

    # directions from the mean image: without it a common offset would make all alike
    rows = torch.cat([rows for rows, _ in data.chunks()])
    mean = rows.mean(dim=0)
    rows = rows - mean
    if rows.abs().max() <= ROUNDING * mean.abs().max():
        raise ValueError(f"latents are constant: all {count} images have the same")
    near = nearest_neighbours(
        functional.normalize(rows, dim=1), neighbours=neighbours, cosine=True
    ).indices
    alike = (data.labels[near] == data.labels[:, None]).double()  # (n, neighbours)

    # how a label is met by chance, the image itself left out: sum_k n_k (n_k - 1) / (n (n - 1))
    sizes = data.labels.unique(return_counts=True)[1].double()
    chance = (sizes * (sizes - 1)).sum() / (count * (count - 1))
    stated = {"pooled": pool, "images": count}
    return LabelPurity(
        gsq=float(alike[:, 0].mean()),
        gsq_error=float(alike[:, 0].std() / count**0.5),
        lnc=float(alike.mean()),
        lnc_error=float(alike.mean(dim=1).std() / count**0.5),
        chance=float(chance),
        neighbours=neighbours,
        images=count,
        definitions={
            "gsq": definition("gsq", **stated),
            "lnc": definition("lnc", neighbours=neighbours, **stated),
            "chance": definition("label_chance", images=count),
        },
    )
