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
    requests = itertools.chain([first], requests)
    if workers == 0 or (images.in_memory and first.scale_crops is None):
        reader = (_read(images, request) for request in requests)
    else:
        reader = DataLoader(
            _Reader(images),
            batch_size=None,
            # bytes: tensors would travel to the workers as shared memory, an open file each
            sampler=map(pickle.dumps, requests),
            num_workers=workers,
            # without its own generator the loader would draw from torch's global one
            generator=generator(seed, "loader"),
        )

    # the workers' copies of the source are not ours, so only here is anything counted
    for pictures in reader:
        images.count_broken(pictures.broken)
        yield pictures


def _read(images: ImageSource, request: Request) -> Pictures:
    return images.read(request.indices, flip=request.flip, scale_crops=request.scale_crops)


class _Reader(Dataset):
    """[request] -> 8-bit pixels: they travel between processes at a quarter of a float's size."""

    def __init__(self, images: ImageSource):
        self.images = images

    def __getitem__(self, packed: bytes) -> Pictures:
        return _read(self.images, Request(*pickle.loads(packed)))
