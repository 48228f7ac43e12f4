"""Sheets of images on matplotlib axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from maetok_lab.pictures import image_grid
from maetok_lab.plots.curves import axes, drawable

TITLE_SIZE = 9  # points
PADDING = 2  # pixels between images


def show_sheet(sheet: np.ndarray, *, ax: Any = None) -> Any:
    """Draw a uint8 (H, W, 3) sheet without axes or blur -> Axes, new ones of its shape if None."""
    height, width = sheet.shape[:2]
    inches = min(12.0, max(3.0, width / 64))
    ax = axes(ax, size=(inches, inches * height / width))
    # a sheet with more pixels than the figure would lose some of them to "nearest"
    ax.imshow(sheet, interpolation="nearest" if width < 1500 else "antialiased")
    ax.set_axis_off()
    return ax


def plot_images(
    images: Tensor,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw images (B, 3, H, W) in reading order, each with its title above it if any -> Axes."""
    if titles is None:
        return show_sheet(image_grid(images, columns=columns), ax=ax)
    if len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")

    # blank pixels above each image, for its words
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[-2:]
    blank = max(1, round(0.3 * height))
    spaced = pad(images.float(), (0, 0, blank, 0), value=1.0)
    # a new figure is wide enough for the words, whatever the number of pixels
    rows = math.ceil(len(images) / columns)
    size = (1.1 * columns, 1.1 * rows * (height + blank) / width)
    ax = axes(ax, size=size)
    show_sheet(image_grid(spaced, columns=columns, padding=PADDING), ax=ax)
    # a title stands in the middle of the blank pixels above its image
    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        x = PADDING + column * (width + PADDING) + width / 2
        y = PADDING + row * (height + blank + PADDING) + 0.85 * blank
        ax.text(x, y, drawable(title), ha="center", va="bottom", fontsize=TITLE_SIZE)
    return ax


def plot_rows(rows: Mapping[str, Tensor], *, padding: int = PADDING, ax: Any = None) -> Any:
    """Draw one row of images (b_i, 3, H, W) for each name, the name at its left -> Axes."""
    sheet = image_grid(list(rows.values()), padding=padding)
    ax = show_sheet(sheet, ax=ax)
    # names stand outside the sheet, at the height of their row's middle
    row_height = (len(sheet) - padding) / len(rows)
    offset = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    for i, name in enumerate(rows):
        middle = padding + (i + 0.5) * row_height
        ax.annotate(drawable(name), (0, middle), fontsize=TITLE_SIZE, **offset)
    return ax


def plot_reconstructions(
    originals: Tensor, reconstructions: Tensor, *, columns: int = 8, ax: Any = None
) -> Any:
    """Draw originals (B, 3, H, W) above their reconstructions, two rows after two rows -> Axes.

    Raises ValueError where they differ in shape.
    """
    if originals.shape != reconstructions.shape:
        shapes = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"originals and reconstructions must have one shape, got {shapes}")
    # a row of originals, then the row of their reconstructions, and so on
    rows = []
    for pair in zip(originals.split(columns), reconstructions.split(columns)):
        rows.extend(pair)
    return show_sheet(image_grid(rows), ax=ax)
