"""Image tensors to pictures on disk: what training, evaluation and plots share."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maetok_lab.files import write_bytes


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Clamp and round, the protocol of every number and picture. float in [-1, 1] -> uint8 of the same shape"""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(
    images: torch.Tensor | Sequence[torch.Tensor],
    *,
    columns: int | None = None,
    padding: int = 2,
    background: float = 1.0,
) -> np.ndarray:
    """Lay images (B, 3, H, W) out in reading order, or a list of rows (b_i, 3, H, W) row by row -> uint8 (H, W, 3).

    background is the colour between them, on the images' own scale (-1 black, 1 white).
    """
    if isinstance(images, torch.Tensor):
        if images.ndim != 4:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        columns = columns or math.ceil(math.sqrt(len(images)))
        rows = list(images.split(columns))
    else:
        rows = list(images)
        columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("no images to lay out")
    height, width = rows[0].shape[-2:]
    tall, wide = height + padding, width + padding
    shape = (len(rows) * tall + padding, columns * wide + padding, 3)
    sheet = np.full(shape, round((background + 1) * 127.5), np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(to_uint8(row).movedim(-3, -1).cpu().numpy()):
            top, left = padding + i * tall, padding + j * wide
            sheet[top : top + height, left : left + width] = image
    return sheet


def save_png(path: str | Path, pixels: np.ndarray, *, scale: int = 1) -> None:
    """Write a uint8 (height, width, 3) picture atomically, each pixel `scale` times as large."""
    if pixels.dtype != np.uint8:
        raise TypeError(f"save_png wants uint8 (H, W, 3), got {pixels.dtype}; image_grid makes it")
    picture = Image.fromarray(pixels)
    if scale != 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
