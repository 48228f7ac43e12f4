"""The images of every training step, in an order that the seed alone decides; workers decode ahead where that takes time."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from maetok_lab.data.images import ImageSource, Pictures
from maetok_lab.rng import generator
from maetok_lab.training.common import batch_indices


class BatchConfig(Protocol):
    """The part of a training config that its batches depend on (on all but `workers`)."""

    seed: int
    batch_size: int
    num_steps: int
    crop: Literal["center", "scale"]
    workers: int


class TrainingBatch(NamedTuple):
    """One step's images (B, 3, H, W) in [-1, 1], labels (B,), and indices (B,) into the source."""

    step: int
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def training_batches(
    images: ImageSource, config: BatchConfig, *, start_step: int = 0, rows: slice = slice(None)
) -> Iterator[TrainingBatch]:
    """The batches of steps `start_step` .. `config.num_steps - 1`, alike for any number of workers and after any restart.

    `rows` are those of the global batch that this process has. A source in memory is read directly; one that is decoded when
    asked, or cropped anew, is read ahead by `config.workers` processes. Broken pictures are named and counted here, in one
    place, and an index is that of the picture that took a broken one's place; too many raise ValueError (see `ImageSource`).
    """
    if images.in_memory and config.crop == "center":
        for step in range(start_step, config.num_steps):
            indices, flip, _ = _draw(images, config, step, rows)
            yield TrainingBatch(step, *images.batch(indices, flip=flip), indices)
        return
    loader = DataLoader(
        _Steps(images, config, rows),
        batch_size=None,
        sampler=range(start_step, config.num_steps),
        num_workers=config.workers,
        generator=generator(
            config.seed, "loader"
        ),  # else the loader would draw from torch's global generator
    )
    for step, pictures in enumerate(loader, start_step):
        images.count_broken(pictures.broken)
        yield TrainingBatch(
            step, pictures.images, images.labels[pictures.indices], pictures.indices
        )


class _Steps(Dataset):
    """[step] -> its pictures as 8-bit pixels, which travel between processes at a quarter of the size of floats."""

    def __init__(self, images: ImageSource, config: BatchConfig, rows: slice):
        self.images, self.config, self.rows = images, config, rows

    def __getitem__(self, step: int) -> Pictures:
        indices, flip, crops = _draw(self.images, self.config, step, self.rows)
        return self.images.read(indices, flip=flip, scale_crops=crops)


def _draw(
    images: ImageSource, config: BatchConfig, step: int, rows: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Draw the step's global batch, and take the rows: indices (B,), flip (B,) bool, and crops (B, 3) or None."""
    seed, size = config.seed, config.batch_size
    flip = torch.rand(size, generator=generator(seed, "flip", step)) < 0.5
    crops = None
    if config.crop == "scale":
        crops = draw_scale_crops(size, generator=generator(seed, "crop", step))[rows]
    return batch_indices(seed, step, size, len(images))[rows], flip[rows], crops


def draw_scale_crops(count: int, *, generator: torch.Generator) -> torch.Tensor:
    """Rows of (scale, down, across) for `readers.scale_crop`, as the release draws them: the short side is uniform in
    1 to 1.25 times the crop, so scale is in [0.8, 1]. -> (count, 3)
    """
    draws = torch.rand(count, 3, generator=generator)
    draws[:, 0] = 1 / (1 + 0.25 * draws[:, 0])
    return draws
