"""Which items each step takes, in an order that the seed alone decides; which rows are whose."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from accelerate import Accelerator

from maetok_lab.data.batches import Blocks
from maetok_lab.data.images import ImageSource
from maetok_lab.data.loading import Request, read_ahead
from maetok_lab.rng import generator


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of a step's global batch that this process has, or one of their equal parts."""

    engine: Accelerator
    step: int
    size: int  # of the global batch
    index: int = 0  # of the part
    num_parts: int = 1

    @property
    def rows(self) -> slice:
        """Rows of the global batch: dealt out to the processes one by one, like cards."""
        stride = self.engine.num_processes
        return slice(self.engine.process_index + stride * self.index, None, stride * self.num_parts)

    @property
    def local(self) -> slice:
        """The same rows, counted in what this process has of the batch."""
        return slice(self.index, None, self.num_parts)

    def parts(self, count: int) -> "list[Share]":
        """This process's rows in `count` equal parts."""
        return [dataclasses.replace(self, index=index, num_parts=count) for index in range(count)]

    @property
    def is_last(self) -> bool:
        """Whether it is the last part."""
        return self.index + 1 == self.num_parts

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over processes."""
        return self.engine.reduce(value, "mean") if self.engine.num_processes > 1 else value


@functools.lru_cache(maxsize=4)  # a batch may hold the end of an epoch and the next one's start
def epoch_order(
    seed: int,
    epoch: int,
    count: int,
    device: torch.device | str = "cpu",
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """The order in which epoch `epoch` visits `count` items, kept on `device`. -> (count,)"""
    # Drawn on the CPU: other devices have other generators, and would visit in another order.
    draws = generator(seed, "order", epoch)
    order = torch.randperm(count, generator=draws)
    if blocks is not None:
        # blocks come in a random order, some of them together, whose items are mixed: a stable sort
        # leaves the items of each group of blocks in the order that was drawn above
        turn = torch.randperm(int(blocks.number.max()) + 1, generator=draws)
        group = turn[blocks.number] // blocks.at_once
        order = order[group[order].argsort(stable=True)]
    return order.to(device)


def batch_indices(
    seed: int,
    step: int,
    batch_size: int,
    count: int,
    device: torch.device | str = "cpu",
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Which items the global batch of `step` holds, as `blocks` ask for it. -> (batch_size,)

    Batches are consecutive pieces of the epochs' orders, so one may hold the end of an epoch and
    the beginning of the next.
    """
    pieces = []
    place = step * batch_size
    end = place + batch_size
    while place < end:
        epoch, first = divmod(place, count)
        pieces.append(epoch_order(seed, epoch, count, device, blocks)[first : first + end - place])
        place += len(pieces[-1])
    return torch.cat(pieces)


class ReadingConfig(Protocol):
    """The part of a training's config that says which pictures are read, and by whom."""

    seed: int
    batch_size: int
    num_steps: int
    crop: Literal["center", "scale"]
    workers: int


class ImageBatch(NamedTuple):
    """One step's pixels (B, 3, H, W) uint8, labels (B,), and indices (B,) into the source."""

    step: int
    pixels: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def image_batches(
    images: ImageSource, config: ReadingConfig, *, start_step: int = 0, rows: slice = slice(None)
) -> Iterator[ImageBatch]:
    """The batches of steps `start_step` .. `config.num_steps - 1`, alike for any number of workers.

    `rows` are those of the global batch that this process has. An index is that of the picture
    that took a broken one's place. Raises ValueError for too many broken pictures.
    """
    steps = range(start_step, config.num_steps)
    requests = (image_request(config, step, images, rows) for step in steps)
    reader = read_ahead(images, requests, workers=config.workers, seed=config.seed)
    for step, pictures in zip(steps, reader):
        labels = images.labels[pictures.indices]
        yield ImageBatch(step, pictures.pixels, labels, pictures.indices)


def image_request(config: ReadingConfig, step: int, images: ImageSource, rows: slice) -> Request:
    """What a process reads at a step: drawn for the global batch, then the process's rows of it."""
    size = config.batch_size
    flip = torch.rand(size, generator=generator(config.seed, "flip", step)) < 0.5
    scale_crops = None
    if config.crop == "scale":
        draws = generator(config.seed, "crop", step)
        scale_crops = draw_scale_crops(size, generator=draws)[rows]
    blocks = getattr(images, "blocks", None)  # images that are drawn have none
    indices = batch_indices(config.seed, step, size, len(images), blocks=blocks)
    return Request(indices[rows], flip[rows], scale_crops)


def draw_scale_crops(count: int, *, generator: torch.Generator) -> torch.Tensor:
    """Rows of (scale, down, across), each in [0, 1], for `readers.scale_crop`. -> (count, 3)"""
    crops = torch.rand(count, 3, generator=generator)
    # The release makes the short side 1 to 1.25 times the crop, uniformly: scale is in [0.8, 1].
    crops[:, 0] = 1 / (1 + 0.25 * crops[:, 0])
    return crops


def join_parts(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The terms of a whole batch: means of () over its equal parts, (b,) one behind the other."""
    terms = {}
    for name, first in parts[0].items():
        values = [part[name].detach() for part in parts]
        terms[name] = torch.cat(values) if first.ndim else torch.stack(values).mean(0)
    return terms
