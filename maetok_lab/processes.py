"""Work shared by the processes of a `torch.distributed` group: each does its rows, and all get all rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def process_group() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside of a group."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share_rows(count: int, work: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
    """`work(rows (r,)) -> {name: tensor (r, ...) or a fact}` on this process's share of 0 .. count - 1; all rows come back.

    An error of one process is raised in every one.
    """
    rank, processes = process_group()
    if processes == 1:
        return work(torch.arange(count))
    rows = torch.arange(count).tensor_split(processes)[rank]
    try:
        mine = work(rows) if len(rows) else None
    except Exception as problem:  # the others would wait for this process for ever
        mine = problem
    gathered: list[Any] = [None] * processes
    torch.distributed.all_gather_object(gathered, mine)
    for part in gathered:
        if isinstance(part, Exception):
            raise part
    parts = [part for part in gathered if part is not None]
    if not parts:
        raise ValueError("nothing to do: no rows")
    return {
        key: torch.cat([part[key] for part in parts]) if isinstance(value, Tensor) else value
        for key, value in parts[0].items()
    }


def wait_for_all() -> None:
    """Go on when every process has come here; outside of a group at once."""
    if process_group()[1] > 1:
        torch.distributed.barrier()
