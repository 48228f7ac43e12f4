"""A map of latents in which a point shows its image, a click decodes, a lasso sums up, and two clicks draw a line between."""

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.maps import REAL, class_counts, decode_between, make_atlas, mean_image
from maetok_lab.data.images import ImageSource
from maetok_lab.inference import device_of
from maetok_lab.pictures import image_grid
from maetok_lab.plots.curves import PALETTE
from maetok_lab.plots.masks import picture_of
from maetok_lab.plots.projection import plot_projection
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.widgets.front import (
    Picture,
    Studio,
    escaped,
    figure_widget,
    ipywidgets,
    png_bytes,
    png_image,
    take_images,
)

METHODS = ("pca", "umap", "tsne")  # the last cannot place overlays
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "pentagon", "x", "star")
GLYPHS = "●■◆✚▲⬟✖★"  # the same in a legend
NAMED = 24  # classes in the legend, most frequent first
STRIP = 9  # images between two points


class LatentMap(Studio):
    """Latents of the images of `source` (a `LatentDataset` or raw (n, N, C)) on a map; `tokenizer` decodes.

    `overlays` are more latents by name, such as generated ones: raw, of the same tokenizer. Attributes to read: `atlas`,
    `point` and `before` (the last two clicked points), `selection` (a DataFrame of what the lasso holds).
    """

    def __init__(
        self,
        latents: Any,
        source: ImageSource,
        tokenizer: AnyTokenizer,
        *,
        method: str = "pca",
        colour: str = "class",
        overlays: Mapping[str, Any] | None = None,
        components: int = 8,
        seed: int = 0,
        max_rows: int = 50_000,
    ):
        self.source, self.tokenizer = source, tokenizer.eval()
        self.device = device_of(tokenizer)
        self._make = functools.cache(
            lambda method: make_atlas(
                latents,
                source,
                method=method,
                overlays=overlays,
                components=components,
                seed=seed,
                max_rows=max_rows,
            )
        )
        self.method, self.atlas = method, self._make(method)
        if colour not in self.colours:
            raise ValueError(f"unknown colour {colour!r}; choose one of {self.colours}")
        self.colour = colour
        self.point: int | None = None
        self.before: int | None = None
        self.selection: pd.DataFrame = self.atlas.frame.iloc[:0]

    # State ------------------------------------------------------------------------------------------------------------

    @property
    def colours(self) -> list[str]:
        """The columns that can colour the map."""
        return [name for name in self.atlas.frame if name not in ("x", "y", "row")]

    def codes(self) -> tuple[np.ndarray, list[str]]:
        """A number for each point's class in the present colour, and the classes, most frequent first."""
        values = self.atlas.frame[self.colour]
        order = values.value_counts().index.tolist()
        return pd.Categorical(values, categories=order).codes.astype(np.int32), [
            str(name) for name in order
        ]

    @torch.inference_mode()
    def decoded(self, point: int) -> Tensor:
        """What the tokenizer decodes from a point's latent. -> (3, H, W)"""
        return (
            self.tokenizer.decode(self.atlas.latent(point)[None].to(self.device))[0].float().cpu()
        )

    def original(self, point: int) -> Tensor:
        """The image of a point; for an overlay, whose latents have none, what is decoded. -> (3, H, W)"""
        place = self.atlas.frame.iloc[point]
        if place["run"] != REAL:
            return self.decoded(point)
        return take_images(self.source, torch.tensor([int(place["row"])]))[0]

    def click(self, point: int) -> None:
        """Take a point; the one taken before becomes the other end of the line."""
        if not 0 <= point < len(self.atlas.frame):
            raise ValueError(f"points are 0 .. {len(self.atlas.frame) - 1}, not {point}")
        self.before, self.point = self.point, point

    def between(self) -> Tensor:
        """Images on the line from the point clicked before to the last one. -> (9, 3, H, W)"""
        ends = [self.atlas.latent(point).to(self.device) for point in (self.before, self.point)]
        return decode_between(self.tokenizer, *ends, steps=STRIP).cpu()

    def select(self, points: list[int]) -> None:
        """Take these points as the `selection`."""
        self.selection = self.atlas.frame.iloc[points]

    def selected_mean(self) -> Tensor | None:
        """The mean image of the selection's real images; None without any. -> (3, H, W)"""
        rows = self.selection.loc[self.selection["run"] == REAL, "row"]
        return mean_image(self.source, torch.tensor(rows.tolist())) if len(rows) else None

    def twin(self) -> Any:
        """The map as a matplotlib figure."""
        codes, names = self.codes()
        frame = self.atlas.frame[["x", "y"]].copy()
        frame.attrs = self.atlas.projection.frame.attrs
        return plot_projection(frame, labels=codes, class_names=names, legend=NAMED).figure

    # View -------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package = ipywidgets()
        last = len(self.atlas.frame) - 1
        return SimpleNamespace(
            method=package.Dropdown(
                options=METHODS[: 3 - (len(self.atlas.latents) > 1)],
                value=self.method,
                description="map",
            ),
            colour=package.Dropdown(options=self.colours, value=self.colour, description="colour"),
            point=package.BoundedIntText(
                value=0, min=0, max=last, description="point", continuous_update=False
            ),
        )

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package, see = ipywidgets(), self.controls
        self.chart = self._chart()
        self.legend, self.about, self.counted = package.HTML(), package.HTML(), package.HTML()
        self.pictures = {
            "near": Picture("under the pointer", size=128),
            "original": Picture("clicked: image", size=128),
            "decoded": Picture("clicked: decoded", size=128),
            "mean": Picture("lasso: mean image", size=128),
        }
        self.strip = png_image(width=f"{64 * STRIP}px", height="64px")
        see.method.observe(self._on_method, "value")
        see.colour.observe(self._on_colour, "value")
        see.point.observe(lambda change: self._on_click(change["new"]), "value")
        wrap = {"flex_flow": "row wrap", "max_width": "1160px", "align_items": "flex-start"}
        boxes = [picture.box for picture in self.pictures.values()]
        side = [
            package.HBox(boxes[:3]),
            self.about,
            self.strip,
            package.HBox([boxes[3], self.counted]),
        ]
        view = package.VBox(
            [
                package.HBox([see.method, see.colour, see.point], layout=wrap),
                package.HBox(
                    [
                        package.VBox(
                            [package.Box([self.chart], layout={"width": "540px"}), self.legend],
                            layout={"width": "550px"},
                        ),
                        package.VBox(side, layout={"width": "600px"}),
                    ],
                    layout=wrap,
                ),
            ]
        )
        self._show_colours()
        return view

    def _chart(self) -> Any:
        frame = self.atlas.frame
        size = float(np.clip(9000 / max(len(frame), 1), 3, 8))
        dots = {
            "size": size,
            "opacity": 0.75,
            "cmin": 0,
            "cmax": len(PALETTE) - 1,
            "colorscale": _steps(PALETTE),
        }
        dots["color"], dots["symbol"] = self._looks()
        ends = {"size": 15, "color": "rgba(0,0,0,0)", "line": {"width": 3, "color": "black"}}
        places = {"x": frame["x"].to_numpy(), "y": frame["y"].to_numpy()}
        points = {
            "type": "scattergl",
            "mode": "markers",
            "hoverinfo": "none",
            "marker": dots,
        } | places
        line = {"type": "scatter", "mode": "markers+lines", "marker": ends, "hoverinfo": "skip"}
        axis = {
            f"{name}axis": {"showticklabels": False, "title": f"{self.method} {number} (no unit)"}
            for number, name in enumerate("xy", start=1)
        }
        look = {
            "dragmode": "lasso",
            "showlegend": False,
            "hovermode": "closest",
            "width": 530,
            "height": 480,
        }
        chart = figure_widget(
            [points, line | {"line": {"width": 1, "color": "black"}}], **look, **axis
        )
        points = chart.data[0]
        points.on_hover(lambda _, at, __: at.point_inds and self._on_hover(at.point_inds[0]))
        points.on_click(lambda _, at, __: at.point_inds and self._take(at.point_inds[0]))
        points.on_selection(lambda _, at, __: self._on_select(list(at.point_inds)))
        points.on_deselect(lambda *_: self._on_select([]))
        return chart

    def _on_method(self, change: Any) -> None:
        self.about.value = f"making the {change['new']} map ..."
        self.method, self.atlas = change["new"], self._make(change["new"])
        frame, chart = self.atlas.frame, self.chart
        with chart.batch_update():
            chart.data[0].x, chart.data[0].y = frame["x"].to_numpy(), frame["y"].to_numpy()
            chart.layout.xaxis.title.text, chart.layout.yaxis.title.text = (
                f"{self.method} {k} (no unit)" for k in (1, 2)
            )
        self._show_ends()

    def _on_colour(self, change: Any) -> None:
        self.colour = change["new"]
        self._show_colours()
        self._show_selection()

    def _on_hover(self, point: int) -> None:
        self.pictures["near"].show(picture_of(self.original(point)), self._name(point))

    def _take(self, point: int) -> None:
        """A click on the map is a number in the control, so that both do the same."""
        if self.controls.point.value == point:
            self._on_click(point)
        self.controls.point.value = point

    def _on_click(self, point: int) -> None:
        self.click(point)
        self.pictures["original"].show(picture_of(self.original(point)))
        self.pictures["decoded"].show(picture_of(self.decoded(point)))
        self._show_ends()

    def _on_select(self, points: list[int]) -> None:
        self.select(points)
        self._show_selection()

    # Pictures ---------------------------------------------------------------------------------------------------------

    def _name(self, point: int) -> str:
        place = self.atlas.frame.iloc[point]
        return escaped(f"{point}: {place[self.colour]}")

    def _show_ends(self) -> None:
        """Rings and a line on the map, and the images between the two."""
        ends = [point for point in (self.before, self.point) if point is not None]
        frame = self.atlas.frame.iloc[ends]
        with self.chart.batch_update():
            self.chart.data[1].x, self.chart.data[1].y = frame["x"].tolist(), frame["y"].tolist()
        self.about.value = (
            " to ".join(self._name(point) for point in ends) or "click a point, then another one"
        )
        if len(ends) == 2:
            sheet = image_grid(self.between(), columns=STRIP, padding=0)
            self.strip.value = png_bytes(sheet, size=64 * STRIP)

    def _looks(self) -> tuple[np.ndarray, Any]:
        """Colour number and symbol of each point: colours first, then other symbols."""
        codes, names = self.codes()
        symbols = np.array(SYMBOLS)[codes // len(PALETTE) % len(SYMBOLS)]
        return codes % len(PALETTE), SYMBOLS[0] if len(names) <= len(PALETTE) else symbols.tolist()

    def _show_colours(self) -> None:
        _, names = self.codes()
        with self.chart.batch_update():
            self.chart.data[0].marker.color, self.chart.data[0].marker.symbol = self._looks()
        entries = [
            f"<span style='color:{PALETTE[i % len(PALETTE)]}'>{GLYPHS[i // len(PALETTE) % len(GLYPHS)]}</span> {escaped(name)}"
            for i, name in enumerate(names[:NAMED])
        ]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        self.legend.value = (
            f"<p style='font-size:12px;line-height:1.4'>{' &nbsp; '.join(entries)}{more}</p>"
        )

    def _show_selection(self) -> None:
        counts = class_counts(self.selection, self.colour)
        if not len(counts):
            self.counted.value = "draw around points: what is in there?"
            return
        rows = "".join(
            f"<tr><td>{escaped(str(name))}</td><td style='text-align:right;padding:0 8px'>{count}</td>"
            f"<td><div style='background:{PALETTE[0]};height:9px;width:{120 * share:.0f}px'></div></td></tr>"
            for name, count, share in counts.head(10).itertuples(index=False)
        )
        self.counted.value = (
            f"<b>{len(self.selection)} points</b><table style='font-size:12px'>{rows}</table>"
        )
        mean = self.selected_mean()
        if mean is not None:
            self.pictures["mean"].show(picture_of(mean))


def _steps(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    """A colour scale that has colour i exactly at i / (n - 1), without blends that a whole number could meet."""
    last = len(colours) - 1
    return [(index / last, colour) for index, colour in enumerate(colours)]
