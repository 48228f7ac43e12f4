"""Image tensors to pictures on disk: what training, evaluation and plots share."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from maetok_lab.files import write_bytes

# How floats become bytes: the nearest one, or the one below, as in ADM's and DiT's scripts.
Rounding = Literal["uint8", "truncated"]


def to_uint8(images: torch.Tensor, rounding: Rounding = "uint8") -> torch.Tensor:
    """Clamp and round: float in [-1, 1] -> uint8 of the same shape.

    Pixels that were bytes before stay what they were, under either rule.
    """
    # the protocol of every number and picture, in this order
    levels = images.detach().float().add(1).mul(127.5)
    # 1e-4: a byte, as a float in [-1, 1] and back, can come out that little below itself
    levels = (levels + 1e-4).floor() if rounding == "truncated" else levels.round()
    return levels.clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: torch.Tensor, *, device: torch.device | str | None = None) -> torch.Tensor:
    """8-bit pixels as float32 in [-1, 1], on `device` or where they are; the same shape.

    They travel as they are, at a quarter of a float's size; to a GPU while it still works.
    """
    device = torch.device(device or pixels.device)
    if device.type == "cuda" and pixels.device.type == "cpu":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True).float().div_(127.5).sub_(1)


def image_grid(
    images: torch.Tensor | Sequence[torch.Tensor],
    *,
    columns: int | None = None,
    padding: int = 2,
    background: float = 1.0,
) -> np.ndarray:
    """Lay images (B, 3, H, W) out in reading order, or a list of rows (b, 3, H, W) row by row.

    -> uint8 (H, W, 3). `background` is the colour between them, from -1, black, to 1, white.
    """
    if isinstance(images, torch.Tensor):
        if images.ndim != 4:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        columns = columns or math.ceil(math.sqrt(len(images)))  # about a square
        rows = list(images.split(columns))
    else:
        rows = list(images)
        columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("no images to lay out")

    # an empty sheet, then each image in its place: rows may be of different lengths
    height, width = rows[0].shape[-2:]
    step_down = height + padding
    step_across = width + padding
    shape = (len(rows) * step_down + padding, columns * step_across + padding, 3)
    sheet = np.full(shape, round((background + 1) * 127.5), np.uint8)
    for i, row in enumerate(rows):
        top = padding + i * step_down
        for j, image in enumerate(to_uint8(row).movedim(-3, -1).cpu().numpy()):
            left = padding + j * step_across
            sheet[top : top + height, left : left + width] = image
    return sheet


def save_png(path: str | Path, pixels: np.ndarray, *, scale: int = 1) -> None:
    """Write a uint8 (height, width, 3) picture atomically, each pixel `scale` times as large."""
    if pixels.dtype != np.uint8:
        raise TypeError(f"save_png wants uint8 (H, W, 3), got {pixels.dtype}; image_grid makes it")
    picture = Image.fromarray(pixels)
    if scale != 1:
        # nearest: a small image is to be seen pixel by pixel
        size = (picture.width * scale, picture.height * scale)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
