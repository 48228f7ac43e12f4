"""The one parallel reader of pictures: other processes decode ahead, in the order of requests."""

import itertools
import pickle
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maetok_lab.data.images import ImageSource, Pictures
from maetok_lab.rng import generator


class Request(NamedTuple):
    """One batch to be read: the arguments of `ImageSource.read`."""

    indices: Tensor  # (B,) into the source
    flip: Tensor | None = None  # (B,) bool: mirrored left to right
    scale_crops: Tensor | None = None  # (B, 3) of (scale, down, across): cut anew


def read_ahead(
    images: ImageSource, requests: Iterable[Request], *, workers: int, seed: int = 0
) -> Iterator[Pictures]:
    """Pictures of every request, in order; `workers` processes decode ahead where that takes time.

    The number of workers changes nothing but the speed. Broken pictures are named and counted
    here; too many raise ValueError (see `ImageSource`).
    """
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return

    # pictures that lie in memory are there sooner than another process could send them
    if images.in_memory and first.scale_crops is None:
        workers = 0
    loader = DataLoader(
        _Reader(images),
        batch_size=None,
        # bytes, because tensors would travel to the workers as shared memory, an open file each
        sampler=map(pickle.dumps, itertools.chain([first], requests)),
        num_workers=workers,
        # without its own generator the loader would draw from torch's global one
        generator=generator(seed, "loader"),
    )

    # the workers' copies of the source are not ours, so only here is anything counted
    for pictures in loader:
        images.count_broken(pictures.broken)
        yield pictures


class _Reader(Dataset):
    """[request] -> 8-bit pixels: they travel between processes at a quarter of a float's size."""

    def __init__(self, images: ImageSource):
        self.images = images

    def __getitem__(self, packed: bytes) -> Pictures:
        indices, flip, scale_crops = pickle.loads(packed)
        return self.images.read(indices, flip=flip, scale_crops=scale_crops)
