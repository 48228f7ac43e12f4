"""A CPU's cores: parts of a work side by side, in one thread each, alike on any number of them.

torch divides every operation among its threads, which then wait for each other: in small models
these waits cost more than the second core gives, and where an operation is divided decides the last
bits of its result. Here each core has a part of the work to itself. Who splits a work into parts
does so by the work alone, never by the number of cores.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from maetok_lab.device import usable_cores


class Cores:
    """The calling thread and others beside it, each of which lets torch use one core only."""

    def __init__(self, count: int):
        self.count = count
        self._others = None
        if count > 1:
            self._others = ThreadPoolExecutor(
                count - 1, "maetok-core", initializer=torch.set_num_threads, initargs=(1,)
            )

    def each(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        """Yield `work(part)` of every part, in order; as many at once as there are cores.

        What the caller says of gradients holds inside; autocast `work` enters itself. Raises the
        first error.
        """
        # torch keeps these two switches for each thread
        inference = torch.is_inference_mode_enabled()
        gradients = torch.is_grad_enabled()

        def alike(part: Any) -> Any:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                return work(part)

        # parts are taken as they are needed: they may be more than fit into memory
        parts = iter(parts)
        while together := list(itertools.islice(parts, self.count)):
            futures = [self._others.submit(alike, part) for part in together[1:]]
            yield work(together[0])
            for future in futures:
                yield future.result()

    def map(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
        """All that `each` yields."""
        return list(self.each(work, parts))

    def close(self) -> None:
        """End the threads; what has not begun does not begin."""
        if self._others:
            self._others.shutdown(cancel_futures=True)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[int]:
    """The calling thread lets torch use one core; yields how many it used before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def every_core() -> Iterator[Cores]:
    """As many cores as torch would use threads; inside, the calling thread too uses one only."""
    with (
        one_torch_thread() as threads,
        contextlib.closing(Cores(min(threads, usable_cores()))) as cores,
    ):
        yield cores


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, and for the libraries under numpy and scikit-learn.

    For what is not worth splitting, and must be the same bits on any number of cores.
    """
    with one_torch_thread(), threadpool_limits(1):
        yield


def each_part(
    work: Callable[[Any], Any], parts: Iterable[Any], *, device: torch.device
) -> Iterator[Any]:
    """Yield `work(part)` of every part, in order: on a CPU side by side, elsewhere in turn."""
    if device.type != "cpu":
        yield from map(work, parts)
        return
    with every_core() as cores:
        yield from cores.each(work, parts)
