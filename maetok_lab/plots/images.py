"""Sheets of images on matplotlib axes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from maetok_lab.pictures import image_grid

TITLE_SIZE = 9  # points


def show_sheet(sheet: np.ndarray, *, ax=None):
    """Draw a uint8 (H, W, 3) sheet without axes or blur, on new axes of its own shape if none are given -> Axes."""
    if ax is None:
        plt = _pyplot()
        inches = min(12.0, max(3.0, sheet.shape[1] / 64))
        _, ax = plt.subplots(
            figsize=(inches, inches * sheet.shape[0] / sheet.shape[1]), layout="constrained"
        )
    ax.imshow(sheet, interpolation="nearest" if sheet.shape[1] < 1500 else "antialiased")
    ax.set_axis_off()
    return ax


def plot_images(
    images: torch.Tensor,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    padding: int = 2,
    ax=None,
):
    """Draw images (B, 3, H, W) in reading order, each with a title above it where titles are given -> Axes."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    if titles is None:
        return show_sheet(image_grid(images, columns=columns, padding=padding), ax=ax)
    if len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")
    height, width = images.shape[-2:]
    room = max(1, round(0.3 * height))  # blank pixels above each row, for the words
    spaced = torch.nn.functional.pad(images.detach().float().cpu(), (0, 0, room, 0), value=1.0)
    if ax is None:  # wide enough for the words
        rows = math.ceil(len(images) / columns)
        size = (columns * 1.1, rows * 1.1 * (height + room) / width)
        _, ax = _pyplot().subplots(figsize=size, layout="constrained")
    show_sheet(image_grid(spaced, columns=columns, padding=padding), ax=ax)
    for i, title in enumerate(titles):
        x = padding + (i % columns) * (width + padding) + width / 2
        y = padding + (i // columns) * (height + room + padding) + 0.85 * room
        ax.text(x, y, title, ha="center", va="bottom", fontsize=TITLE_SIZE)
    return ax


def plot_rows(rows: Mapping[str, torch.Tensor], *, padding: int = 2, ax=None):
    """Draw one row of images (b_i, 3, H, W) for each name, the name at its left -> Axes."""
    sheet = image_grid(list(rows.values()), padding=padding)
    ax = show_sheet(sheet, ax=ax)
    tall = (sheet.shape[0] - padding) / len(rows)
    for i, name in enumerate(rows):
        place = {
            "xy": (0, padding + (i + 0.5) * tall),
            "xytext": (-4, 0),
            "textcoords": "offset points",
        }
        ax.annotate(name, **place, ha="right", va="center", fontsize=TITLE_SIZE)
    return ax


def plot_reconstructions(
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
    *,
    columns: int | None = None,
    padding: int = 2,
    ax=None,
):
    """Draw originals (B, 3, H, W) above their reconstructions, pair of rows after pair of rows -> Axes."""
    if originals.shape != reconstructions.shape:
        shapes = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"originals and reconstructions must have one shape, got {shapes}")
    columns = min(len(originals), columns or 8)
    pairs = zip(originals.cpu().split(columns), reconstructions.cpu().split(columns))
    return show_sheet(image_grid([row for pair in pairs for row in pair], padding=padding), ax=ax)


def _pyplot():
    """Import matplotlib's pyplot where it is used; it is an extra."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'maetok-lab[notebooks]'") from error
    return plt
