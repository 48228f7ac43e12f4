"""A map of pictures: hover shows an image, a click decodes its latent, a lasso sums up."""

import asyncio
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from maetok_lab.analysis.maps import REAL, decode_between, make_atlas, mean_image
from maetok_lab.analysis.preprocess import take_rows
from maetok_lab.analysis.projection import Projection
from maetok_lab.data.images import ImageSource
from maetok_lab.inference import device_of
from maetok_lab.pictures import to_uint8
from maetok_lab.plots.curves import class_colours
from maetok_lab.plots.masks import heat_picture, picture_of
from maetok_lab.plots.projection import METHODS, plot_projection, quality_line
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.widgets.front import PanelStudio, as_png, take_images
from maetok_lab.widgets.panel import panel

OVERLAID = ("pca", "umap")  # methods that can place overlays
MAX_LEGEND = 24  # classes in the twin's legend
STRIP = 9  # images between two points
NEAR = 8  # neighbours that are shown
THUMBNAILS = 5000  # at most, on one sheet of so many columns
SHEET_COLUMNS = 64
THUMBNAIL_LOOKS = ((32, 55), (32, 35), (24, 35))  # px and WebP's quality, the best first
STORED_BYTES = 700_000  # for thumbnails and, at about so many bytes a point, places and colours
POINT_BYTES = 12
RAMP = 64  # colours of a column of numbers
PAGES_OWN = ("method", "colour", "point", "clicks", "lasso", "hovered")
ABOUT = {
    "label": "map of latents: + and - zoom, arrows move, the field above takes a point's number",
    "near_title": "Nearest latents",
    "hint": "Click another point to see what is decoded between the two.",
}


class LatentMap(PanelStudio):
    """Latents of the images of `source` (a `LatentDataset` or raw (n, N, C)) on a map.

    `overlays` are more raw latents by name, such as generated ones; `values` numbers of each image
    that can colour the map; `projection` a map of `fit_projection`. Attributes to read: `atlas`,
    `point` and `previous` (the last two clicked), `selection` (a DataFrame).
    """

    def __init__(
        self,
        latents: Any,
        source: ImageSource,
        tokenizer: AnyTokenizer,
        *,
        method: str = "pca",
        colour: str = "class",
        projection: Projection | None = None,
        overlays: Mapping[str, Any] | None = None,
        values: Mapping[str, Sequence[float]] | None = None,
        components: int = 8,
        seed: int = 0,
        max_rows: int = 50_000,
    ):
        self.source = source
        self.tokenizer = tokenizer.eval()
        self.device = device_of(tokenizer)
        self.method = method if projection is None else projection.settings.method
        options = {
            "overlays": overlays,
            "values": values,
            "components": components,
            "seed": seed,
            "max_rows": max_rows if projection is None else projection.settings.max_rows,
        }
        # a map takes seconds (umap a minute): each is made once, when it is first looked at
        self._make = functools.cache(
            lambda method: make_atlas(
                latents,
                source,
                method=method,
                projection=projection if method == self._first else None,
                **options,
            )
        )
        self._first = self.method
        self.atlas = self._make(self.method)
        if colour not in self.colours:
            raise ValueError(f"unknown colour {colour!r}; choose one of {self.colours}")
        self.colour = colour
        self.point = 0  # a row of atlas.frame, as everywhere here
        self.previous: int | None = None
        self.selection: pd.DataFrame = self.atlas.frame.iloc[:0]

    # State ----------------------------------------------------------------------------------------

    @property
    def colours(self) -> list[str]:
        """The columns that can colour the map."""
        frame = self.atlas.frame
        names = [name for name in frame if name not in ("x", "y", "row")]
        if len(self.atlas.latents) == 1:
            names.remove("run")
        if "category" in names and (frame["category"] == frame["class"]).all():
            names.remove("category")
        return names

    def codes(self, column: str | None = None) -> tuple[np.ndarray, list[str]]:
        """The number of each point's class in a column, the present colour's, and the classes.

        Classes of images keep the source's order, so that they have their colour everywhere.
        """
        column = column or self.colour
        values = self.atlas.frame[column].astype(str)
        names = sorted(values.unique())
        if column == "class":
            order = {name: number for number, name in enumerate(map(str, self.source.class_names))}
            names.sort(key=lambda name: order.get(name, len(order)))
        codes = pd.Categorical(values, categories=names).codes.astype(np.int32)
        return codes, names

    @torch.inference_mode()
    def decoded(self, point: int) -> Tensor:
        """What the tokenizer decodes from a point's latent. -> (3, H, W)"""
        latent = self.atlas.latent(point)[None].to(self.device)  # (1, N, C)
        return self.tokenizer.decode(latent)[0].float().cpu()

    def original(self, point: int) -> Tensor:
        """The image of a point; for an overlay, which has none, what is decoded. -> (3, H, W)"""
        return self._images([point])[0]

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

    def near(self, point: int) -> list[int]:
        """The points whose latents are nearest, nearest first."""
        rows = self._rows
        far = (rows - rows[point]).square().sum(1)
        far[point] = torch.inf
        return far.topk(min(NEAR, len(rows) - 1), largest=False).indices.tolist()

    @functools.cached_property
    def _rows(self) -> Tensor:
        """Each point's latent in the principal components of the map. -> (points, dimensions)"""
        # the rows of other methods' maps are the same
        frame = self.atlas.frame
        parts = []
        for name in frame["run"].unique():
            indices = torch.tensor(frame.loc[frame["run"] == name, "row"].to_numpy())
            latents = take_rows(self.atlas.latents[name], indices)
            parts.append(self.atlas.projection.reducer.transform(latents).float().cpu())
        return torch.cat(parts)

    def select(self, points: Sequence[int]) -> None:
        """Take these points as the `selection`."""
        self.selection = self.atlas.frame.iloc[list(points)]

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
    def view(self) -> Any:
        """The widget."""
        frame = self.atlas.frame
        overlaid = len(self.atlas.latents) > 1
        # t-SNE cannot place overlays
        about = ABOUT | {"points": len(frame), "methods": list(OVERLAID if overlaid else METHODS)}
        view = panel(
            ["map.js"],
            {
                "about": about,
                "columns": {name: self.column(name) for name in self.colours},
                "overlays": (frame["run"] != REAL).to_numpy().astype(np.uint8).tobytes(),
                "thumbnails": self.thumbnails(),
                "places": self.places(),
                "inspected": self.inspected(),
                "mean": b"",
                "message": "",
                "method": self.method,
                "colour": self.colour,
                "point": self.point,
                "clicks": 0,
                "lasso": b"",
                "hovered": -1,
                "near": {"point": -1, "picture": b""},
            },
            pages_own=PAGES_OWN,
        )
        view.observe(self._on_method, "method")
        view.observe(self._on_colour, "colour")
        view.observe(self._on_click, "clicks")
        view.observe(self._on_lasso, "lasso")
        view.observe(self._on_hover, "hovered")
        return view

    def column(self, name: str) -> dict[str, Any]:
        """A colour for each point: of its class, or of its number, dark to bright."""
        values = self.atlas.frame[name]
        if values.dtype != float:
            codes, names = self.codes(name)
            colours = class_colours(len(names))
            return {"codes": codes.astype(np.uint16).tobytes(), "names": names, "colours": colours}

        # within the middle 98 %: an outlier would leave one colour for all
        low, high = np.nanpercentile(values, [1, 99])
        shares = ((values - low) / max(high - low, 1e-12)).clip(0, 1)
        codes = (shares * (RAMP - 1)).round().fillna(RAMP)  # the last: no number
        ramp = heat_picture(torch.linspace(0, 1, RAMP)[None], limit=1.0)[0]
        colours = ["#{:02x}{:02x}{:02x}".format(*ink) for ink in ramp] + ["#c8c8c8"]
        names = [""] * (RAMP + 1)
        names[0], names[RAMP - 1] = f"{low:.3g}", f"{high:.3g}"
        codes = codes.to_numpy().astype(np.uint16).tobytes()
        return {"codes": codes, "names": names, "colours": colours, "ramp": True}

    def places(self) -> dict[str, Any]:
        """Where the points are, from 0 to 1 with a margin, and what the map is worth."""
        places = {}
        for side in ("x", "y"):
            values = self.atlas.frame[side].to_numpy(np.float64)
            low, high = values.min(), values.max()
            shares = 0.03 + 0.94 * (values - low) / max(high - low, 1e-12)
            # y grows upwards on a map, downwards on a page
            upright = shares if side == "x" else 1 - shares
            places[side] = (65535 * upright).round().astype(np.uint16).tobytes()
        # only on principal components is a line between latents a line on the map
        quality = quality_line(self.atlas.projection.frame).strip()
        note = f"{METHODS[self.method]} map, no unit. Of the classes: {quality}"
        return places | {"note": note, "straight": self.method == "pca"}

    def thumbnails(self) -> dict[str, Any]:
        """Small pictures of evenly spaced points on one sheet, as good as a notebook can store."""
        frame = self.atlas.frame
        count = min(len(frame), THUMBNAILS)
        points = np.linspace(0, len(frame) - 1, count).round().astype(np.int32)
        limit = STORED_BYTES - POINT_BYTES * len(frame)
        looks = list(THUMBNAIL_LOOKS)
        side, quality = looks.pop(0)

        # every image is read once, whatever fits
        tiles = []
        for start in range(0, count, 256):
            for image in self._images(points[start : start + 256].tolist()):
                tile = Image.fromarray(picture_of(image))
                tiles.append(tile.resize((side, side), Image.Resampling.LANCZOS))

        # photographs take three times what drawings take: first smaller ones, then fewer
        sheet = _sheet(tiles, side, quality)
        while len(sheet) > limit:
            if looks:
                side, quality = looks.pop(0)
            else:
                points, tiles = points[::2], tiles[::2]
            sheet = _sheet(tiles, side, quality)
        return {"sheet": sheet, "points": points.tobytes(), "columns": SHEET_COLUMNS, "side": side}

    def _images(self, points: Sequence[int]) -> list[Tensor]:
        """The images of points: one reading for all that are images of the source."""
        rows = self.atlas.frame.iloc[list(points)]
        real = rows[rows["run"] == REAL]
        images = {}
        if len(real):
            pictures = take_images(self.source, torch.tensor(real["row"].to_numpy()))
            images = dict(zip(real.index, pictures))
        return [images[p] if p in images else self.decoded(p) for p in points]

    def inspected(self) -> dict[str, Any]:
        """The clicked point: image, decoded latent, neighbours, the line from the previous one."""
        near = self.near(self.point)
        tiles = [self.original(self.point), self.decoded(self.point), *self._images(near)]
        if self.previous is not None:
            tiles += list(self.between())
        pixels = torch.cat([to_uint8(tile).movedim(0, -1).cpu() for tile in tiles], dim=1)
        return {
            "point": self.point,
            "previous": self.previous,
            "title": self.name(self.point),
            "near": [self.name(point) for point in near],
            "near_points": near,
            "between": 0 if self.previous is None else STRIP,
            "side": tiles[0].shape[-1],
            "sheet": as_png(pixels.numpy()),
        }

    def name(self, point: int) -> str:
        """A point in words."""
        return f"{point}: {self.atlas.frame.iloc[point]['class']}"

    def _on_click(self, _: Any) -> None:
        self.click(self.view.point)
        self.view.inspected = self.inspected()
        self.moved()

    def _on_colour(self, change: Any) -> None:
        self.colour = change["new"]
        self.moved()

    def _on_hover(self, change: Any) -> None:
        # the page asks for pictures that it does not carry
        image = self.original(change["new"])
        self.view.near = {"point": change["new"], "picture": as_png(picture_of(image))}

    def _on_lasso(self, change: Any) -> None:
        self.select(np.frombuffer(bytes(change["new"]), np.int32))
        mean = self.selected_mean()
        self.view.mean = b"" if mean is None else as_png(picture_of(mean))
        self.moved()

    def _on_method(self, change: Any) -> None:
        method = change["new"]
        self.view.message = f"making the {METHODS[method]} map; the present one can be used on"
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._show_map(method, self._make(method))
            return
        # in a thread of its own: umap takes a minute the first time
        making = loop.run_in_executor(None, self._make, method)
        making.add_done_callback(lambda task: self._show_map(method, task.result()))

    def _show_map(self, method: str, atlas: Any) -> None:
        if method != self.view.method:  # another one was chosen meanwhile
            return
        self.method = method
        self.atlas = atlas
        self.view.places = self.places()
        self.view.message = ""
        self.moved()


def _sheet(tiles: Sequence[Image.Image], side: int, quality: int) -> bytes:
    """Pictures side by side, `SHEET_COLUMNS` in a row, as WebP."""
    rows = -(-len(tiles) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, rows * side))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, SHEET_COLUMNS)
        small = tile.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (column * side, row * side))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=quality, method=2)
    return file.getvalue()
