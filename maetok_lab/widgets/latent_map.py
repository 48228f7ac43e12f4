"""A map of latents: points show their images, a click decodes, a lasso sums up, two make a line."""

import functools
import html
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
    WRAP,
    Picture,
    Studio,
    figure_widget,
    ipywidgets,
    png_bytes,
    png_image,
    take_images,
)

METHODS = ("pca", "umap", "tsne")  # the last cannot place overlays
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "pentagon", "x", "star")
GLYPHS = "●■◆✚▲⬟✖★"  # the same in a legend
MAX_LEGEND = 24  # classes in the legend, most frequent first
STRIP = 9  # images between two points


class LatentMap(Studio):
    """Latents of the images of `source` (a `LatentDataset` or raw (n, N, C)) on a map.

    `tokenizer` decodes. `overlays` are more latents by name, such as generated ones: raw, of the
    same tokenizer. Attributes to read: `atlas`, `point` and `previous` (the last two clicked
    points), `selection` (a DataFrame of what the lasso holds).
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
        self.source = source
        self.tokenizer = tokenizer.eval()
        self.device = device_of(tokenizer)
        # a map takes seconds (umap a minute): each is made once, when it is first looked at
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
        self.method = method
        self.atlas = self._make(method)
        if colour not in self.colours:
            raise ValueError(f"unknown colour {colour!r}; choose one of {self.colours}")
        self.colour = colour
        self.point: int | None = None  # a row of atlas.frame, as everywhere here
        self.previous: int | None = None
        self.selection: pd.DataFrame = self.atlas.frame.iloc[:0]

    # State ----------------------------------------------------------------------------------------

    @property
    def colours(self) -> list[str]:
        """The columns that can colour the map."""
        return [name for name in self.atlas.frame if name not in ("x", "y", "row")]

    def codes(self) -> tuple[np.ndarray, list[str]]:
        """The number of each point's class in the present colour, and the classes.

        Most frequent first: they get the colours that are easiest to tell apart.
        """
        values = self.atlas.frame[self.colour]
        order = values.value_counts().index.tolist()
        codes = pd.Categorical(values, categories=order).codes.astype(np.int32)
        return codes, list(map(str, order))

    @torch.inference_mode()
    def decoded(self, point: int) -> Tensor:
        """What the tokenizer decodes from a point's latent. -> (3, H, W)"""
        latent = self.atlas.latent(point)[None].to(self.device)  # (1, N, C)
        return self.tokenizer.decode(latent)[0].float().cpu()

    def original(self, point: int) -> Tensor:
        """The image of a point; for an overlay, which has none, what is decoded. -> (3, H, W)"""
        place = self.atlas.frame.iloc[point]
        if place["run"] != REAL:
            return self.decoded(point)
        return take_images(self.source, [int(place["row"])])[0]

    def click(self, point: int) -> None:
        """Take a point; the previous one becomes the other end of the line."""
        if not 0 <= point < len(self.atlas.frame):
            raise ValueError(f"points are 0 .. {len(self.atlas.frame) - 1}, not {point}")
        self.previous = self.point
        self.point = point

    def between(self) -> Tensor:
        """Images on the line from the previous point to the last one. -> (9, 3, H, W)"""
        start = self.atlas.latent(self.previous).to(self.device)
        end = self.atlas.latent(self.point).to(self.device)
        return decode_between(self.tokenizer, start, end, steps=STRIP).cpu()

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
        # axis titles are in the frame's attrs, which a selection of columns loses
        frame = self.atlas.frame[["x", "y"]].copy()
        frame.attrs = self.atlas.projection.frame.attrs
        return plot_projection(frame, labels=codes, class_names=names, legend=MAX_LEGEND).figure

    # View -----------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package = ipywidgets()
        overlaid = len(self.atlas.latents) > 1
        return SimpleNamespace(
            method=package.Dropdown(
                options=METHODS[:2] if overlaid else METHODS, value=self.method, description="map"
            ),
            colour=package.Dropdown(options=self.colours, value=self.colour, description="colour"),
            # the map without a pointer: the number of a point does what a click does
            point=package.BoundedIntText(
                value=0,
                min=0,
                max=len(self.atlas.frame) - 1,
                description="point",
                continuous_update=False,
            ),
        )

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package = ipywidgets()
        controls = self.controls
        self.chart = self._chart()
        self.legend = package.HTML()
        self.about = package.HTML()  # the names of the two ends
        self.counted = package.HTML()  # the classes of the selection
        self.pictures = {
            "near": Picture("under the pointer", size=128),
            "original": Picture("clicked: image", size=128),
            "decoded": Picture("clicked: decoded", size=128),
            "mean": Picture("lasso: mean image", size=128),
        }
        self.strip = png_image(width=f"{64 * STRIP}px", height="64px")
        controls.method.observe(self._on_method, "value")
        controls.colour.observe(self._on_colour, "value")
        controls.point.observe(lambda change: self._on_click(change["new"]), "value")

        # the map and its legend on the left, what belongs to points on the right
        *points, mean = [picture.box for picture in self.pictures.values()]
        chart = package.Box([self.chart], layout={"width": "540px"})
        left = package.VBox([chart, self.legend], layout={"width": "550px"})
        selection = package.HBox([mean, self.counted])
        right = package.VBox(
            [package.HBox(points), self.about, self.strip, selection], layout={"width": "600px"}
        )
        head = package.HBox([controls.method, controls.colour, controls.point], layout=WRAP)
        self._show_colours()
        return package.VBox([head, package.HBox([left, right], layout=WRAP)])

    def _chart(self) -> Any:
        frame = self.atlas.frame
        numbers, symbols = self._looks()
        # the fewer points, the larger: 9000 is the area that they cover, about
        dots = {
            "size": float(np.clip(9000 / max(len(frame), 1), 3, 8)),
            "opacity": 0.75,
            "cmin": 0,
            "cmax": len(PALETTE) - 1,
            "colorscale": _scale(PALETTE),
            "color": numbers,
            "symbol": symbols,
        }
        # scattergl: with scatter, fifty thousand points would be as many elements of the page
        points = {
            "type": "scattergl",
            "mode": "markers",
            "hoverinfo": "none",
            "marker": dots,
            "x": frame["x"].to_numpy(),
            "y": frame["y"].to_numpy(),
        }
        # rings around the two ends and a line between them, empty at first
        ring = {"width": 3, "color": "black"}
        line = {
            "type": "scatter",
            "mode": "markers+lines",
            "hoverinfo": "skip",
            "marker": {"size": 15, "color": "rgba(0,0,0,0)", "line": ring},
            "line": {"width": 1, "color": "black"},
        }
        chart = figure_widget(
            [points, line],
            dragmode="lasso",
            showlegend=False,
            hovermode="closest",
            width=530,
            height=480,
            xaxis={"showticklabels": False, "title": self._axis_title(1)},
            yaxis={"showticklabels": False, "title": self._axis_title(2)},
        )
        # plotly calls with (trace, points, state); a click beside every point has no numbers
        trace = chart.data[0]
        trace.on_hover(lambda _, at, __: at.point_inds and self._on_hover(at.point_inds[0]))
        trace.on_click(lambda _, at, __: at.point_inds and self._take(at.point_inds[0]))
        trace.on_selection(lambda _, at, __: self._on_select(list(at.point_inds)))
        trace.on_deselect(lambda *_: self._on_select([]))
        return chart

    def _axis_title(self, number: int) -> str:
        return f"{self.method} {number} (no unit)"

    def _on_method(self, change: Any) -> None:
        self.method = change["new"]
        self.about.value = f"making the {self.method} map ..."
        self.atlas = self._make(self.method)
        points = self.chart.data[0]
        layout = self.chart.layout
        with self.chart.batch_update():
            points.x = self.atlas.frame["x"].to_numpy()
            points.y = self.atlas.frame["y"].to_numpy()
            layout.xaxis.title.text = self._axis_title(1)
            layout.yaxis.title.text = self._axis_title(2)
        self._show_ends()

    def _on_colour(self, change: Any) -> None:
        self.colour = change["new"]
        self._show_colours()
        self._show_selection()

    def _on_hover(self, point: int) -> None:
        self.pictures["near"].show(picture_of(self.original(point)), self._name(point))

    def _take(self, point: int) -> None:
        # a click on the map is a number in the control, so that both do the same; the control
        # says nothing when it stands on that number already
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

    # Pictures -------------------------------------------------------------------------------------

    def _name(self, point: int) -> str:
        place = self.atlas.frame.iloc[point]
        return html.escape(f"{point}: {place[self.colour]}")

    def _show_ends(self) -> None:
        """Rings and a line on the map, and the images between the two."""
        ends = [point for point in (self.previous, self.point) if point is not None]
        frame = self.atlas.frame.iloc[ends]
        line = self.chart.data[1]
        with self.chart.batch_update():
            line.x = frame["x"].tolist()
            line.y = frame["y"].tolist()
        words = " to ".join(map(self._name, ends))
        self.about.value = words or "click a point, then another one"
        if len(ends) == 2:
            sheet = image_grid(self.between(), columns=STRIP, padding=0)
            self.strip.value = png_bytes(sheet, size=64 * STRIP)

    def _looks(self) -> tuple[np.ndarray, Any]:
        """Colour number and symbol of each point: all colours first, then other symbols."""
        codes, names = self.codes()
        numbers = codes % len(PALETTE)
        if len(names) <= len(PALETTE):
            return numbers, SYMBOLS[0]
        return numbers, np.array(SYMBOLS)[codes // len(PALETTE) % len(SYMBOLS)].tolist()

    def _show_colours(self) -> None:
        marker = self.chart.data[0].marker
        with self.chart.batch_update():
            marker.color, marker.symbol = self._looks()
        _, names = self.codes()
        entries = []
        for i, name in enumerate(names[:MAX_LEGEND]):
            glyph = GLYPHS[i // len(PALETTE) % len(GLYPHS)]
            colour = PALETTE[i % len(PALETTE)]
            entries.append(f"<span style='color:{colour}'>{glyph}</span> {html.escape(name)}")
        text = " &nbsp; ".join(entries)
        if len(names) > MAX_LEGEND:
            text += f" and {len(names) - MAX_LEGEND} more"
        self.legend.value = f"<p style='font-size:12px;line-height:1.4'>{text}</p>"

    def _show_selection(self) -> None:
        counts = class_counts(self.selection, self.colour)
        if not len(counts):
            self.counted.value = "draw around points: what is in there?"
            return
        # a table with bars: the ten most frequent classes of the selection
        rows = ""
        for name, count, share in counts.head(10).itertuples(index=False):
            bar = f"background:{PALETTE[0]};height:9px;width:{120 * share:.0f}px"
            rows += (
                f"<tr><td>{html.escape(str(name))}</td>"
                f"<td style='text-align:right;padding:0 8px'>{count}</td>"
                f"<td><div style='{bar}'></div></td></tr>"
            )
        head = f"<b>{len(self.selection)} points</b>"
        self.counted.value = f"{head}<table style='font-size:12px'>{rows}</table>"
        mean = self.selected_mean()
        if mean is not None:
            self.pictures["mean"].show(picture_of(mean))


def _scale(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    # plotly blends between the stops of a scale; whole numbers never fall between these
    last = len(colours) - 1
    return [(index / last, colour) for index, colour in enumerate(colours)]
