"""What the benchmarks share: calls timed in turns in one process, and their memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch


def seconds_in_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """The median seconds of every call over `repeats` rounds; one more round warms up.

    In each round every call has its turn.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            wait_for(device)
            begin = time.perf_counter()
            call()
            wait_for(device)
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gigabytes(device: torch.device) -> float:
    """The most memory so far in GB: on a GPU of torch, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def as_markdown(rows: list[Mapping[str, object]]) -> str:
    """Rows with the same columns as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
