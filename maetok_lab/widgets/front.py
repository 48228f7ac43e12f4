"""What all widgets share: whether a person is looking, pictures as bytes, and two controls."""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from maetok_lab.widgets.panel import still

HERE = Path(__file__).parent
UPLOAD_LIMIT = 8 << 20  # bytes; Jupyter's server cuts connections that send over 10 MiB at once
# rows of boxes wrap, so that a view of 1160 px also fits a narrower page
WRAP = {"flex_flow": "row wrap", "align_items": "flex-start", "max_width": "1160px"}


def ipywidgets() -> ModuleType:
    """The package. Raises ImportError that names the extra."""
    try:
        import ipywidgets as package
    except ImportError as problem:
        raise ImportError(
            "widgets need ipywidgets: pip install 'maetok-lab[notebooks]'"
        ) from problem
    return package


def figure_widget(traces: Sequence[dict[str, Any]] = (), **layout: Any) -> Any:
    """A plotly FigureWidget of `traces` on white. Raises ImportError that names the extra.

    What is to be visible at first must be given here: voila's page is made from the figure as it
    was when it was made.
    """
    try:
        import plotly.graph_objects as plotly
    except ImportError as problem:
        raise ImportError(
            "widgets need plotly and anywidget: pip install 'maetok-lab[notebooks]'"
        ) from problem
    # plotly's own margins would take a third of so small a chart
    margin = {"l": 52, "r": 16, "t": 30, "b": 42}
    look = {"template": "plotly_white", "margin": margin, "font": {"size": 12}}
    return plotly.FigureWidget(list(traces), layout=look | layout)


def is_live() -> bool:
    """Whether a person can touch what is displayed; False for papermill, nbconvert and scripts.

    JupyterLab, Notebook and VS Code say that they take input; voila marks the kernels it starts.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    request = kernel.get_parent("shell").get("content", {})
    return bool(request.get("allow_stdin")) or _started_by_voila()


@functools.cache
def _started_by_voila() -> bool:
    # nbclient, which both voila and papermill use, looks the same from here but for this; "True" in
    # kernels that were started before anybody came, else "False"
    return "VOILA_PREHEAT" in psutil.Process().environ()


class Studio:
    """A view that displays itself where a person can touch it, and its static twin elsewhere.

    Subclasses build `view` (an ipywidget) when it is first read, and `twin()` (a matplotlib
    figure, or None where there is nothing to draw yet).
    """

    view: Any

    def twin(self) -> Any:
        """The same as a picture."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if is_live():
            display(self.view)
            return
        figure = self.twin()
        if figure is not None:
            display(figure)
            from matplotlib import pyplot

            pyplot.close(figure)  # else the notebook's backend shows it a second time


class PanelStudio(Studio):
    """A studio whose `view` is a panel: beside it lies a still, for when its kernel is gone."""

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        if is_live():
            display(self.view)
        # voila stores no notebook
        if not _started_by_voila():
            display(HTML(still(self.view, figure_bytes(self.twin()))))


def figure_bytes(figure: Any) -> bytes:
    """A matplotlib figure as PNG; it is closed."""
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    pyplot.close(figure)  # else the notebook's backend shows it a second time
    return file.getvalue()


def token_grid(count: int, *, wide: bool = False) -> tuple[int, int]:
    """Rows and columns for `count` cells: as square as it goes, or twice as wide as high."""
    rows = math.isqrt(count // 2 if wide else count)
    while count % rows:
        rows -= 1
    return rows, count // rows


def png_bytes(pixels: np.ndarray, *, size: int) -> bytes:
    """A uint8 picture (h, w, 3 or 4) as PNG, enlarged by whole pixels.

    The factor is the one that brings its longer side nearest to `size`; it is never made smaller.
    """
    scale = max(1, round(size / max(pixels.shape[:2])))
    if scale > 1:
        pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    file = io.BytesIO()
    # level 1 of 9: an answer within 100 ms matters more than the bytes between kernel and page
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


BLANK = png_bytes(np.zeros((1, 1, 4), np.uint8), size=1)  # one clear pixel


def png_image(**layout: str) -> Any:
    """An ipywidgets Image of one clear pixel: without bytes browsers draw a broken image."""
    return ipywidgets().Image(format="png", value=BLANK, layout=layout)


class Picture:
    """A picture in a box of its own size under a caption, so that nothing moves when it changes.

    `.box` is the widget.
    """

    def __init__(self, title: str, *, size: int):
        package = ipywidgets()
        self.size = size
        self.caption = package.HTML(caption(title))
        self.image = png_image(width=f"{size}px", height=f"{size}px", object_fit="contain")
        self.box = package.VBox(
            [self.caption, self.image], layout={"margin": "0 10px 0 0", "overflow": "hidden"}
        )
        self._pixels: np.ndarray | None = None

    def show(self, pixels: np.ndarray, title: str | None = None) -> None:
        """A uint8 (h, w, 3) picture, and a new caption where there is one."""
        # encoding costs more than comparing
        if self._pixels is None or not np.array_equal(pixels, self._pixels):
            self.image.value = png_bytes(pixels, size=self.size)
            self._pixels = pixels
        if title is not None:
            self.caption.value = caption(title)


def caption(text: str) -> str:
    """HTML of a picture's title."""
    return f"<b style='font-size:12px'>{text}</b>"


def take_images(images: Any, indices: Any) -> torch.Tensor:
    """Images of an `ImageSource`, or of a tensor of them. indices (B,) -> (B, 3, H, W)"""
    indices = torch.as_tensor(indices)
    if isinstance(images, torch.Tensor):
        return images[indices]
    return images.batch(indices)[0]


def image_names(images: Any) -> list[str]:
    """A numbered name for each: a source's captions, where it has them."""
    captions = getattr(images, "captions", None) or ["image"] * len(images)
    return [f"{index}: {name}" for index, name in enumerate(captions)]


@functools.cache
def _controls() -> tuple[type, type]:
    """The two controls that ipywidgets lacks, defined when first used: anywidget is an extra."""
    try:
        import anywidget
        import traitlets
    except ImportError as problem:
        raise ImportError(
            "widgets need anywidget: pip install 'maetok-lab[notebooks]'"
        ) from problem

    class Grid(anywidget.AnyWidget):
        _esm = HERE / "grid.js"
        picture = traitlets.Bytes().tag(sync=True)  # PNG, drawn under the cells
        rows = traitlets.Int().tag(sync=True)
        columns = traitlets.Int().tag(sync=True)
        size = traitlets.Int().tag(sync=True)  # of the longer side, px
        hidden = traitlets.List(traitlets.Int()).tag(sync=True)  # cells, numbered row by row
        selection = traitlets.List(traitlets.Int()).tag(sync=True)  # cells in the same numbers
        last = traitlets.Int(-1).tag(sync=True)  # the cell that was clicked last
        mode = traitlets.Enum(["brush", "pick"], "brush").tag(sync=True)
        label = traitlets.Unicode().tag(sync=True)

    class Upload(anywidget.AnyWidget):
        _esm = HERE / "upload.js"
        label = traitlets.Unicode().tag(sync=True)
        name = traitlets.Unicode().tag(sync=True)
        limit = traitlets.Int(UPLOAD_LIMIT).tag(sync=True)  # bytes
        length = traitlets.Int().tag(sync=True)  # bytes, also of a file that was not sent
        serial = traitlets.Int().tag(sync=True)
        # a memoryview comes from the browser: Bytes refuses it
        content = traitlets.CBytes().tag(sync=True)

    return Grid, Upload


def cell_grid(rows: int, columns: int, *, size: int, label: str, mode: str = "brush") -> Any:
    """A picture under a grid of cells that are brushed (trait `hidden`) or picked (`selection`).

    `picture` takes PNG bytes, `last` is the last clicked cell; see grid.js. Cells are numbered
    row by row; `size` is the longer side in pixels.
    """
    grid, _ = _controls()
    return grid(rows=rows, columns=columns, size=size, label=label, mode=mode)


def picked_cell(grid: Any) -> int | None:
    """The cell of a `cell_grid` that was picked last; None where none is selected."""
    if grid.last in grid.selection:
        return grid.last
    return grid.selection[-1] if grid.selection else None


def upload_control(label: str) -> Any:
    """A file picker: `serial` counts up after `name`, `length` and `content` are set.

    `content` is empty for a file over `limit`.
    """
    _, upload = _controls()
    return upload(label=label)
