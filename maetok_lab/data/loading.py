"""The one parallel reader of pictures: other processes decode ahead, in the order of requests."""

import atexit
import collections
import itertools
import pickle
import signal
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maetok_lab.data.batches import Pictures
from maetok_lab.data.images import ImageSource
from maetok_lab.device import keep_freed_memory, usable_cores
from maetok_lab.processes import Subset
from maetok_lab.protocols import Images
from maetok_lab.rng import generator

MOST_WORKERS = 16  # more wait for the disk, or for the device that takes what they decode
PIECE = 16  # pictures that a worker is sent at once: whole batches would leave some with nothing


class Request(NamedTuple):
    """One batch to be read: the arguments of `ImageSource.read`."""

    indices: Tensor  # (B,) into the source
    flip: Tensor | None = None  # (B,) bool: mirrored left to right
    scale_crops: Tensor | None = None  # (B, 3) of (scale, down, across): cut anew

    def split(self, size: int) -> "list[Request]":
        """The same in pieces of at most `size` pictures."""
        count = max(1, -(-len(self.indices) // size))
        fields = [[None] * count if part is None else part.split(size) for part in self]
        return [Request(*parts) for parts in zip(*fields)]


def read_ahead(
    images: ImageSource, requests: Iterable[Request], *, workers: int | None = None, seed: int = 0
) -> Iterator[Pictures]:
    """Pictures of every request, in order; `workers` processes decode ahead where that takes time.

    None are as many as there are cores. Their number changes nothing but the speed. Broken pictures
    are named and counted here; too many raise ValueError (see `ImageSource`).
    """
    if workers is None:
        workers = min(usable_cores(), MOST_WORKERS)
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return

    # pictures that lie in memory are there sooner than another process could send them
    requests = itertools.chain([first], requests)
    if workers == 0 or (images.in_memory and first.scale_crops is None):
        for request in requests:
            yield _counted(images, [_read(images, request)])
        return

    # the loader takes requests from here, some ahead of what it gives back
    counts: collections.deque[int] = collections.deque()

    def pieces() -> Iterator[bytes]:
        """All requests in pieces, packed: tensors would travel as shared memory, a file each."""
        for request in requests:
            parts = request.split(PIECE)
            counts.append(len(parts))
            yield from map(pickle.dumps, parts)

    reader = iter(
        DataLoader(
            _Reader(images),
            batch_size=None,
            sampler=pieces(),
            num_workers=workers,
            worker_init_fn=_begin,
            # two whole requests ahead, however many pieces these are
            prefetch_factor=2 + 2 * len(first.indices) // (PIECE * workers),
            # without its own generator the loader would draw from torch's global one
            generator=generator(seed, "loader"),
        )
    )
    # a process that ends before would wait for its workers, which hear no signal, without an end
    end = atexit.register(reader._shutdown_workers)
    try:
        for piece in reader:
            rest = itertools.islice(reader, counts.popleft() - 1)
            yield _counted(images, [piece, *rest])
    finally:
        atexit.unregister(end)


def _counted(images: ImageSource, parts: list[Pictures | Exception]) -> Pictures:
    """The pieces of one request as one, after the broken pictures among them were counted."""
    # the workers' copies of the source are not ours, so only here is anything counted
    for part in parts:
        if isinstance(part, Exception):
            raise part
        images.count_broken(part.broken)
    if len(parts) == 1:
        return parts[0]
    return Pictures(
        torch.cat([part.pixels for part in parts]),
        torch.cat([part.indices for part in parts]),
        tuple(message for part in parts for message in part.broken),
    )


def batches_in_order(
    images: Images, batch_size: int, *, workers: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images (B, 3, H, W) in [-1, 1] and labels (B,), decoded ahead as `read_ahead` does it."""
    # of a part of a source, or of a part of that, the source itself is read
    source = images
    rows = torch.arange(len(images))
    while isinstance(source, Subset):
        rows = source.rows[rows]
        source = source.images
    if not isinstance(source, ImageSource) or source.in_memory:
        for indices in torch.arange(len(images)).split(batch_size):
            yield images.batch(indices)
        return
    requests = (Request(indices) for indices in rows.split(batch_size))
    for pictures in read_ahead(source, requests, workers=workers):
        yield pictures.images, source.labels[pictures.indices]


def _begin(worker: int) -> None:
    """A worker decodes a quarter more when the memory of its pictures stays with it."""
    keep_freed_memory()
    # What is sent to all processes of a group, as ^C is, is for the one that reads: it may still
    # need a batch, and its workers end with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _read(images: ImageSource, request: Request) -> Pictures:
    return images.read(request.indices, flip=request.flip, scale_crops=request.scale_crops)


class _Reader(Dataset):
    """[request] -> 8-bit pixels: they travel between processes at a quarter of a float's size."""

    def __init__(self, images: ImageSource):
        self.images = images

    def __getitem__(self, packed: bytes) -> Pictures | Exception:
        # raised here, it would come with the traces of two processes
        try:
            return _read(self.images, Request(*pickle.loads(packed)))
        except (ValueError, OSError) as problem:
            return problem
