"""The chart beside the mask studio: held-out images as a curve over the ratio, the present image as a ring on it."""

import pandas as pd

from maetok_lab.analysis.masks import MaskStudy
from maetok_lab.plots.curves import PALETTE
from maetok_lab.widgets.front import figure_widget


class RatioChart:
    """PSNR on the left axis, with `perceptual` that distance on the right. `.figure` is the widget."""

    def __init__(self, *, perceptual: bool):
        self.columns = ["psnr", "perceptual"][: 1 + perceptual]
        chart = figure_widget(width=450, height=260, legend={"orientation": "h", "y": 1.18}, yaxis_title="PSNR, dB")
        chart.update_layout(xaxis={"title": "share of patches hidden", "range": [-0.03, 1.03]})
        looks = {"psnr": (PALETTE[0], "solid", "circle-open", "y"), "perceptual": (PALETTE[1], "dash", "diamond-open", "y2")}
        for column in self.columns:
            colour, dash, ring, axis = looks[column]
            name = {"psnr": "PSNR"}.get(column, column)
            line = {"color": colour, "dash": dash}
            chart.add_scatter(name=f"{name}, held-out", line=line, mode="lines+markers", yaxis=axis)
            marker = {"size": 13, "color": colour, "symbol": ring}
            chart.add_scatter(name="this image", mode="markers", marker=marker, yaxis=axis)
        if perceptual:
            right = {"title": "perceptual distance", "overlaying": "y", "side": "right", "showgrid": False}
            chart.update_layout(yaxis2=right)
        self.figure, self._curve = chart, None

    def show(self, curve: pd.DataFrame, study: MaskStudy) -> None:
        """A `ratio_curve`, and the study's place."""
        with self.figure.batch_update():
            for column, (line, ring) in zip(self.columns, zip(self.figure.data[::2], self.figure.data[1::2])):
                if curve is not self._curve:
                    line.x, line.y = curve["hidden"].tolist(), curve[column].tolist()
                ring.x, ring.y = [study.hidden], [getattr(study, column)]
        self._curve = curve
