"""The charts beside the mask studio: held-out images over the mask ratio, this image as a ring."""

from typing import Any

import pandas as pd

from maetok_lab.analysis.masks import MaskStudy
from maetok_lab.plots.curves import PALETTE
from maetok_lab.widgets.charts import chart, line

COLUMNS = {"psnr": "PSNR, dB", "perceptual": "perceptual distance"}


def ratio_charts(curve: pd.DataFrame, study: MaskStudy, *, size: tuple[int, int]) -> dict[str, Any]:
    """A chart of each measure that `curve` (of `ratio_curve`) has, by its column."""
    # the ring is this image, among the means of held-out ones
    width, height = size
    charts = {}
    for (column, label), colour in zip(COLUMNS.items(), PALETTE):
        if column not in curve:
            continue
        held_out = line("held-out images", curve["hidden"], curve[column], colour, marks=True)
        ring = {"x": study.hidden, "y": getattr(study, column), "colour": PALETTE[1]}
        charts[column] = chart(
            [held_out],
            x={
                "label": "share of patches hidden (ring: this image)",
                "range": [0, 1],
                "percent": True,
            },
            y={"label": label},
            width=width,
            height=height,
            points=[ring],
        ) | {"legend": False}
    return charts
