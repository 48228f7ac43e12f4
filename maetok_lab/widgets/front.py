"""What all widgets share: is a person looking, pictures as bytes, captions, and the two controls that ipywidgets lacks."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

HERE = Path(__file__).parent
UPLOAD_LIMIT = (
    8 << 20
)  # bytes; Jupyter's server cuts connections that send more than 10 MiB at once


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

    What is to be seen at first must be given here: voila's page is made from what the figure was when it was made.
    """
    try:
        import plotly.graph_objects as plotly
    except ImportError as problem:
        raise ImportError(
            "widgets need plotly and anywidget: pip install 'maetok-lab[notebooks]'"
        ) from problem
    room = {"l": 52, "r": 16, "t": 30, "b": 42}
    return plotly.FigureWidget(
        list(traces),
        layout={"template": "plotly_white", "margin": room, "font": {"size": 12}} | layout,
    )


def is_live() -> bool:
    """Whether a person can touch what is displayed: JupyterLab, Notebook and VS Code say that they take input, and voila
    marks the kernels it starts. False for papermill, nbconvert, scripts and terminals.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    asked = kernel.get_parent("shell").get("content", {})
    return bool(asked.get("allow_stdin")) or _started_by_voila()


@functools.cache
def _started_by_voila() -> bool:
    # nbclient, which both voila and papermill use, looks the same from here but for this
    return psutil.Process().environ().get("SERVER_SOFTWARE", "").startswith("voila")


class Studio:
    """A view that displays itself where a person can touch it, and its static twin elsewhere.

    Subclasses build `view` (an ipywidget) when it is first asked for, and `twin()` (a matplotlib figure, or None where there
    is nothing to draw yet).
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


def png_bytes(pixels: np.ndarray, *, size: int) -> bytes:
    """A uint8 picture (h, w, 3 or 4) as PNG, each pixel as many times as large as brings its longer side nearest to `size`."""
    scale = max(1, round(size / max(pixels.shape[:2])))
    if scale > 1:
        pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


BLANK = png_bytes(np.zeros((1, 1, 4), np.uint8), size=1)  # one clear pixel


def png_image(**layout: str) -> Any:
    """An ipywidgets Image with nothing to see yet: one clear pixel, as browsers draw a torn page for no bytes at all."""
    return ipywidgets().Image(format="png", value=BLANK, layout=layout)


class Picture:
    """A picture in a box of its own size under a caption, so that nothing moves when it changes. `.box` is the widget."""

    def __init__(self, title: str, *, size: int):
        package = ipywidgets()
        self.size = size
        self.caption = package.HTML(caption(title))
        fixed = {"width": f"{size}px", "height": f"{size}px", "object_fit": "contain"}
        self.image = png_image(**fixed)
        self.box = package.VBox(
            [self.caption, self.image], layout={"margin": "0 10px 0 0", "overflow": "hidden"}
        )
        self._shown: np.ndarray | None = None

    def show(self, pixels: np.ndarray, title: str | None = None) -> None:
        """A uint8 (h, w, 3) picture, and a new caption where one is given."""
        if self._shown is None or not np.array_equal(
            pixels, self._shown
        ):  # encoding costs more than comparing
            self.image.value, self._shown = png_bytes(pixels, size=self.size), pixels
        if title is not None:
            self.caption.value = caption(title)


def caption(text: str) -> str:
    """HTML of a picture's title."""
    return f"<b style='font-size:12px'>{text}</b>"


def escaped(text: str) -> str:
    """Text as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def take_images(images: Any, indices: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) of an `ImageSource`, or of a tensor of them."""
    return images[indices] if isinstance(images, torch.Tensor) else images.batch(indices)[0]


def image_names(images: Any) -> list[str]:
    """A numbered name for each: a source's captions, where it has them."""
    captions = getattr(images, "captions", None) or [
        f"image {index}" for index in range(len(images))
    ]
    return [f"{index}: {name}" for index, name in enumerate(captions)]


@functools.cache
def _classes() -> dict[str, type]:
    """The two controls, defined when first used: anywidget is an extra."""
    try:
        import anywidget
        import traitlets
    except ImportError as problem:
        raise ImportError(
            "widgets need anywidget: pip install 'maetok-lab[notebooks]'"
        ) from problem

    class Grid(anywidget.AnyWidget):
        _esm = HERE / "grid.js"
        picture = traitlets.Bytes(b"").tag(sync=True)
        rows, columns, size = (traitlets.Int(default).tag(sync=True) for default in (1, 1, 240))
        hidden, chosen = (traitlets.List(traitlets.Int()).tag(sync=True) for _ in range(2))
        last = traitlets.Int(-1).tag(sync=True)
        mode = traitlets.Enum(["brush", "pick"], "brush").tag(sync=True)
        label = traitlets.Unicode("").tag(sync=True)

    class Upload(anywidget.AnyWidget):
        _esm = HERE / "upload.js"
        label, name = (traitlets.Unicode("").tag(sync=True) for _ in range(2))
        limit = traitlets.Int(UPLOAD_LIMIT).tag(sync=True)
        length, serial = (traitlets.Int(0).tag(sync=True) for _ in range(2))
        content = traitlets.CBytes(b"").tag(
            sync=True
        )  # a memoryview comes from the browser: Bytes refuses it

    return {"grid": Grid, "upload": Upload}


def cell_grid(rows: int, columns: int, *, size: int, label: str, mode: str = "brush") -> Any:
    """A picture under a grid of cells that are brushed (trait `hidden`) or picked (`chosen`, `last`); see grid.js.

    `picture` takes PNG bytes. Cells are numbered row by row; `size` is the longer side in pixels.
    """
    return _classes()["grid"](rows=rows, columns=columns, size=size, label=label, mode=mode)


def upload_control(label: str) -> Any:
    """A file picker: `serial` counts up after `name`, `length` and `content` (empty for a file over `limit`) are set."""
    return _classes()["upload"](label=label)
