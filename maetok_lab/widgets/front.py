"""What all widgets share: whether a person is looking, pictures as bytes, and two controls."""

import asyncio
import contextlib
import functools
import io
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from maetok_lab.widgets.panel import panel, picture_still, still

UPLOAD_LIMIT = 8 << 20  # bytes; Jupyter's server cuts connections that send over 10 MiB at once
QUARTER = {"width": "23.5%", "margin": "0 1.5% 0 0", "flex": "none", "overflow": "hidden"}
FULL = {"width": "100%", "margin": "0"}  # of the page, or of the column
QUIET = 4.0  # seconds without a move before the stored state is taken anew


def ipywidgets() -> ModuleType:
    """The package. Raises ImportError that names the extra."""
    try:
        import ipywidgets as package
    except ImportError as problem:
        raise ImportError(
            "widgets need ipywidgets: pip install 'maetok-lab[notebooks]'"
        ) from problem
    return package


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
    figure, or None); they call `moved()` after each change. Beside a view its still is stored, for
    when the kernel is gone.
    """

    view: Any
    _stored: Any = None  # the display of the still
    _timer: asyncio.TimerHandle | None = None  # of the next one

    def twin(self) -> Any:
        """The same as a picture."""
        raise NotImplementedError

    def still(self) -> str:
        """HTML of the present state, for where no kernel is."""
        figure = self.twin()
        return "" if figure is None else picture_still(figure_bytes(figure))

    def first_still(self) -> str:
        """What is stored at once: light, so that a page that opens has little to do."""
        return self.still()

    def moved(self) -> None:
        """Take the still anew once nothing has moved for `QUIET` seconds."""
        if self._stored is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        # drawing a figure holds the kernel for some tenths of a second: not between two moves
        with contextlib.suppress(RuntimeError):  # no event loop: nothing can come later
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(QUIET, self._store)

    def _store(self) -> None:
        self._stored.update(html_output(self.still()))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if not is_live():
            self._display_twin()
            return
        display(self.view)
        # voila stores no notebook
        if not _started_by_voila():
            self._stored = display(html_output(self.first_still()), display_id=True)

    def _display_twin(self) -> None:
        from IPython.display import Image, display

        figure = self.twin()
        if figure is not None:
            display(Image(figure_bytes(figure)))


class PanelStudio(Studio):
    """A studio whose `view` is a panel: its still goes on without a kernel, as far as it can."""

    def still(self) -> str:
        return still(self.view, figure_bytes(self.twin()))

    def first_still(self) -> str:
        return super().still()

    def _ipython_display_(self) -> None:
        super()._ipython_display_()
        self.moved()

    def _display_twin(self) -> None:
        from IPython.display import display

        display(html_output(self.still()))


def html_output(text: str) -> Any:
    """HTML as a cell shows it."""
    from IPython.display import HTML

    return HTML(text)


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


def as_png(pixels: np.ndarray) -> bytes:
    """A uint8 picture (h, w, 3) as it is."""
    return png_bytes(pixels, size=1)


BLANK = png_bytes(np.zeros((1, 1, 4), np.uint8), size=1)  # one clear pixel


def png_image(**layout: str) -> Any:
    """An ipywidgets Image of one clear pixel: without bytes browsers draw a broken image."""
    return ipywidgets().Image(format="png", value=BLANK, layout=layout)


class Picture:
    """A uint8 picture (h, w, 3) in a box of its own size under one line of words.

    `.box` is the widget. Nothing moves when the picture changes.
    """

    def __init__(self, pixels: np.ndarray, title: str, number: str = "", *, size: int):
        package = ipywidgets()
        self.size = size
        self._pixels = pixels
        sides = {"width": "100%", "max_width": f"{size}px", "object_fit": "contain"}
        # the first picture is given here: one that came later would be lost on a busy page
        png = png_bytes(pixels, size=size)
        self.image = package.Image(format="png", value=png, layout=sides)
        self.caption = package.HTML(caption(title, number), layout=FULL)
        self.box = package.VBox(
            [self.caption, self.image], layout=QUARTER | {"max_width": f"{size}px"}
        )

    def show(self, pixels: np.ndarray, title: str, number: str = "") -> None:
        """Another picture and its words."""
        # encoding costs more than comparing
        if not np.array_equal(pixels, self._pixels):
            self.image.value = png_bytes(pixels, size=self.size)
            self._pixels = pixels
        self.caption.value = caption(title, number)


def caption(title: str, number: str = "") -> str:
    """HTML of one line over a picture: what it is, and a number at its right end."""
    row = "display:flex;justify-content:space-between;gap:8px;white-space:nowrap;font-size:12px"
    cut = "overflow:hidden;text-overflow:ellipsis"
    return f"<div style='{row}'><b style='{cut}'>{title}</b><span>{number}</span></div>"


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


def cell_grid(
    rows: int,
    columns: int,
    picture: bytes,
    *,
    hidden: Sequence[int] = (),
    size: int,
    label: str,
    mode: str = "brush",
) -> Any:
    """A PNG under a grid of cells that are brushed (trait `hidden`) or picked (`selection`).

    `last` is the last clicked cell; see grid.js. Cells are numbered row by row; `size` is the
    longer side in pixels.
    """
    state = {
        "rows": rows,
        "columns": columns,
        "size": size,
        "label": label,
        "mode": mode,
        "picture": picture,
        "hidden": list(hidden),
        "selection": [],
        "last": -1,
    }
    return panel(["grid.js"], state, pages_own=("selection", "last"))


def kernel_line() -> Any:
    """A line that says when the kernel is busy or gone."""
    return panel(["kernel_line.js"], {})


def picked_cell(grid: Any) -> int | None:
    """The cell of a `cell_grid` that was picked last; None where none is selected."""
    if grid.last in grid.selection:
        return grid.last
    return grid.selection[-1] if grid.selection else None


def upload_control(label: str) -> Any:
    """A file picker: `serial` counts up after `name`, `length` and `content` are set.

    `content` is empty for a file over `limit`.
    """
    state = {
        "label": label,
        "limit": UPLOAD_LIMIT,  # bytes
        "name": "",
        "length": 0,  # bytes, also of a file that was not sent
        "content": b"",
        "serial": 0,
    }
    return panel(["upload.js"], state, pages_own=("name", "length", "content", "serial"))
