"""The chart beside the mask studio: held-out images as a curve over the ratio, the present image as a ring on it."""

import pandas as pd

from maetok_lab.analysis.masks import MaskStudy
from maetok_lab.plots.curves import PALETTE
from maetok_lab.widgets.front import figure_widget


class RatioChart:
    """PSNR on the left axis, with `perceptual` that distance on the right. `.figure` is the widget."""

    def __init__(self, curve: pd.DataFrame, study: MaskStudy, *, perceptual: bool):
        self.columns, self._curve = ["psnr", "perceptual"][: 1 + perceptual], curve
        looks = {
            "psnr": (PALETTE[0], "solid", "circle-open", "y"),
            "perceptual": (PALETTE[1], "dash", "diamond-open", "y2"),
        }
        traces = []
        for column in self.columns:
            colour, dash, ring, axis = looks[column]
            name, line = {"psnr": "PSNR"}.get(column, column), {"color": colour, "dash": dash}
            held_out = {
                "x": curve["hidden"].tolist(),
                "y": curve[column].tolist(),
                "name": f"{name}, held-out",
            }
            traces.append(
                {"type": "scatter", "mode": "lines+markers", "line": line, "yaxis": axis} | held_out
            )
            marker = {"size": 13, "color": colour, "symbol": ring}
            here = {"x": [study.hidden], "y": [getattr(study, column)], "name": "this image"}
            traces.append(
                {"type": "scatter", "mode": "markers", "marker": marker, "yaxis": axis} | here
            )
        layout = {"legend": {"orientation": "h", "y": 1.25}, "yaxis": {"title": "PSNR, dB"}}
        layout["xaxis"] = {"title": "share of patches hidden", "range": [-0.03, 1.03]}
        if perceptual:
            layout["yaxis2"] = {
                "title": "perceptual distance",
                "overlaying": "y",
                "side": "right",
                "showgrid": False,
            }
            layout["margin"] = {"l": 52, "r": 56, "t": 30, "b": 42}
        self.figure = figure_widget(traces, width=450, height=270, **layout)

    def show(self, curve: pd.DataFrame, study: MaskStudy) -> None:
        """A `ratio_curve`, and the study's place."""
        with self.figure.batch_update():
            for column, (line, ring) in zip(
                self.columns, zip(self.figure.data[::2], self.figure.data[1::2])
            ):
                if curve is not self._curve:
                    line.x, line.y = curve["hidden"].tolist(), curve[column].tolist()
                ring.x, ring.y = [study.hidden], [getattr(study, column)]
        self._curve = curve
