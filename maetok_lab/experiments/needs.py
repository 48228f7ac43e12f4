"""What a study will have to do without, told by the images alone, before anything is trained."""

from collections.abc import Mapping, Sequence

import numpy as np

from maetok_lab.analysis.fitting import GmmProtocol
from maetok_lab.data.images import ImageSource
from maetok_lab.evaluation.metrics import MIN_IMAGES
from maetok_lab.hints import counted


def shortfalls(
    images: Mapping[str, ImageSource],
    *,
    components: Sequence[int] = (),
    heldout: float = GmmProtocol.heldout,
    score_every: int = 1,
) -> list[str]:
    """A line for each thing that `images` (by split) are too few or too much alike for.

    Mixtures of `components` are fitted to all but a share `heldout`: 0 where test latents score
    them. Every `score_every`-th test image is scored. Where a line is given the number is NaN.
    """
    lines = []
    train = images["train"]
    if len(train.labels.unique()) < 2:
        lines.append("one class: no linear probe, and no accuracy of maps")
    for split, part in images.items():
        scored = len(range(0, len(part), score_every))
        if split != "train" and scored < MIN_IMAGES:
            lines.append(
                f"{counted(scored, 'image')} of {split} to score: a KID needs {MIN_IMAGES} a side"
            )

    # of copies one stays, and a share of the rest is held out
    count = len(train.digests)
    distinct = len(np.unique(train.digests, axis=0))
    if distinct < count:
        copies = counted(count - distinct, "training image")
        lines.append(f"{copies} copied from others: mixtures and maps take one of each")
    fitted = distinct - round(heldout * distinct)
    too_many = [count for count in components if count > fitted]
    if too_many:
        numbers = ", ".join(map(str, too_many))
        lines.append(f"{fitted} distinct images to fit: no mixtures of {numbers} Gaussians")
    return lines
