"""A CPU's cores: parts of a work side by side, in one thread each, alike on any number of them.

torch divides every operation among its threads, which then wait for each other: in small models
these waits cost more than the second core gives, and where an operation is divided decides the last
bits of its result. Here each core has a part of the work to itself. Who splits a work into parts
does so by the work alone, never by the number of cores.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from maetok_lab.device import usable_cores


class Cores:
    """As many threads as there are usable cores, each of which lets torch use one core only."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool

    def map(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
        """`[work(part) for part in parts]`, as many at once as there are cores.

        What the caller's thread says of gradients holds inside; autocast `work` enters itself.
        Raises the first part's error.
        """
        # torch keeps these two switches for each thread
        inference = torch.is_inference_mode_enabled()
        gradients = torch.is_grad_enabled()

        def alike(part: Any) -> Any:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                return work(part)

        futures: list[Future] = [self._pool.submit(alike, part) for part in parts]
        return [future.result() for future in futures]


@contextlib.contextmanager
def every_core() -> Iterator[Cores]:
    """The cores for as long as the context lasts; the calling thread, too, uses one core then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(
        usable_cores(), "maetok-core", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield Cores(pool)
    finally:
        # after an interrupt, what has not begun does not begin
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
