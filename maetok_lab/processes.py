"""Work shared by the processes of a `torch.distributed` group, as torchrun starts them.

Two ways: with `share_rows` each process computes some rows, and all get all rows; with `own_share`
each writes some files, and all find them on disk. Outside of a group one process does everything.
"""

import atexit
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maetok_lab.device import pick_device

LAST_SECONDS = 0.5  # for the threads of an exchange, before Python shuts down


def process_group() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside of a group."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def join_group(*, cpu: bool) -> tuple[int, int]:
    """`process_group()`, after joining the group that torchrun prepared, if it did."""
    # accelerate picks the backend, and a GPU for each process, as it will for a training
    from accelerate.state import AcceleratorState, PartialState

    device = PartialState(cpu=cpu).device.type
    # It keeps the first device that a process asked for. A notebook may train on the CPU first and
    # then on its GPU.
    wanted = pick_device("cpu" if cpu else "auto").type
    if device != wanted and process_group()[1] == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=cpu)
    if process_group()[1] > 1:
        _leave_time_at_the_end()
    return process_group()


@functools.cache  # once
def _leave_time_at_the_end() -> None:
    """Let a script's last exchange end before its process does."""
    # gloo's threads drop the tensors of an exchange after they have said that it is done. One that
    # asks Python for that during Python's shutdown aborts the process: one start in 30 of two.
    atexit.register(time.sleep, LAST_SECONDS)


def wait_for_all() -> None:
    """Go on when every process has come here; outside of a group, at once."""
    if process_group()[1] > 1:
        torch.distributed.barrier()


def own_share(count: int) -> range:
    """Which of 0 .. count - 1 are this process's: every n-th one, of n processes."""
    rank, processes = process_group()
    # no contiguous parts: where one process had begun alone, the first of several that go on would
    # find its whole part done
    return range(rank, count, processes)


def share_rows(count: int, work: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
    """`work(rows (r,)) -> {name: tensor (r, ...) or a fact}` of 0 .. count - 1, in every process.

    Each process works on its share of the rows. An error of one process is raised in every one.
    """
    rank, processes = process_group()
    if processes == 1:
        return work(torch.arange(count))

    # neighbouring rows together, so that the parts can be joined in order
    rows = torch.arange(count).tensor_split(processes)[rank]
    result: Any = None  # stays None without rows: there may be more processes than rows
    if len(rows):
        try:
            result = work(rows)
        except Exception as problem:
            result = problem

    # errors are sent too: else the other processes would wait for ever for the one that failed
    results: list[Any] = [None] * processes
    torch.distributed.all_gather_object(results, result)

    parts = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        if result is not None:
            parts.append(result)
    if not parts:
        raise ValueError("no rows to share among processes: there must be at least one")
    return join_rows(parts)


def join_rows(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors of all parts by name, one behind the other; facts are the same in every part."""
    joined = dict(parts[0])
    for name, value in joined.items():
        if isinstance(value, Tensor):
            joined[name] = torch.cat([part[name] for part in parts])
    return joined


def share_images(images: Any, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """`work(images)`, shared as `share_rows` does: a tensor (n, 3, H, W) or `Images`.

    Batches that only come one after another are not shared: every process goes through all.
    """
    if not (isinstance(images, Tensor) or hasattr(images, "batch")) or process_group()[1] == 1:
        return work(images)
    return share_rows(len(images), lambda rows: work(Subset(images, rows)))


class Subset:
    """Some images of a tensor or of `Images`, as `Images`."""

    def __init__(self, images: Any, rows: Tensor):
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices (B,) among the rows -> images (B, 3, H, W), labels (B,)."""
        rows = self.rows[indices]
        if isinstance(self.images, Tensor):
            return self.images[rows], rows  # a tensor has no labels, and nobody uses these
        return self.images.batch(rows)
