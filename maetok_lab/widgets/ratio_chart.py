"""The chart beside the mask studio: held-out images over the mask ratio, this image as a ring."""

from typing import Any

import pandas as pd

from maetok_lab.analysis.masks import MaskStudy
from maetok_lab.plots.curves import PALETTE
from maetok_lab.widgets.front import figure_widget

# measure: its name, the looks of its line and of its ring, its axis
LOOKS = {
    "psnr": ("PSNR", PALETTE[0], "solid", "circle-open", "y"),
    "perceptual": ("perceptual", PALETTE[1], "dash", "diamond-open", "y2"),
}


class RatioChart:
    """PSNR on the left axis; if `perceptual`, that distance on the right. `.figure` is the widget.

    Each measure has two traces: the line of the held-out images, then the ring of this image.
    """

    def __init__(self, curve: pd.DataFrame, study: MaskStudy, *, perceptual: bool):
        self._curve = curve
        self.columns = ["psnr", "perceptual"] if perceptual else ["psnr"]
        traces: list[dict[str, Any]] = []
        for column in self.columns:
            traces += _line_and_ring(column, curve, study)
        layout: dict[str, Any] = {
            "legend": {"orientation": "h", "y": 1.25},
            "xaxis": {"title": "share of patches hidden", "range": [-0.03, 1.03]},
            "yaxis": {"title": "PSNR, dB"},
        }
        if perceptual:
            # a second axis over the same space, and room for its numbers
            axis = {"title": "perceptual distance", "overlaying": "y", "side": "right"}
            layout["yaxis2"] = axis | {"showgrid": False}
            layout["margin"] = {"l": 52, "r": 56, "t": 30, "b": 42}
        self.figure = figure_widget(traces, width=450, height=270, **layout)

    def show(self, curve: pd.DataFrame, study: MaskStudy) -> None:
        """Show a curve of `ratio_curve`, and the study's place on it."""
        lines = self.figure.data[::2]
        rings = self.figure.data[1::2]
        with self.figure.batch_update():
            for column, line, ring in zip(self.columns, lines, rings):
                # the same curve is not sent to the page again
                if curve is not self._curve:
                    line.x = curve["hidden"].tolist()
                    line.y = curve[column].tolist()
                ring.x = [study.hidden]
                ring.y = [getattr(study, column)]
        self._curve = curve


def _line_and_ring(column: str, curve: pd.DataFrame, study: MaskStudy) -> list[dict[str, Any]]:
    name, colour, dash, symbol, axis = LOOKS[column]
    # the line is sent with its points: voila shows the chart as it was when it was made
    line = {
        "mode": "lines+markers",
        "name": f"{name}, held-out",
        "line": {"color": colour, "dash": dash},
        "x": curve["hidden"].tolist(),
        "y": curve[column].tolist(),
    }
    # larger than the line's dots and open, so that a dot under it stays visible
    ring = {
        "mode": "markers",
        "name": "this image",
        "marker": {"size": 13, "color": colour, "symbol": symbol},
        "x": [study.hidden],
        "y": [getattr(study, column)],
    }
    return [{"type": "scatter", "yaxis": axis} | trace for trace in (line, ring)]
