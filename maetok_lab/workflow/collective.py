"""One sum across processes, timed: what `doctor` starts under torchrun.

It imports torch alone, to start fast.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist

NUMBERS = 1_000_000  # 4 MB: large enough to measure the speed, not the delay
REPEATS = 5


def main() -> None:
    """Sum over all processes; the first one prints how many there were and how fast it was."""
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("nccl" if on_gpus else "gloo")
    # torchrun has put ranks and a place to meet into the environment
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")

    # 1 + 2 + ... + world_size; the first sum also makes the connections, and is not timed
    values = torch.full((NUMBERS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == world_size * (world_size + 1) / 2).all())
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    if on_gpus:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started

    if rank == 0:
        facts = {
            "processes": world_size,
            "backend": dist.get_backend(),
            "right": right,
            "bytes_per_second": REPEATS * values.nbytes / seconds,
        }
        json.dump(facts, sys.stdout)
    dist.destroy_process_group()
    # at once: Python's shutdown meets gloo's threads, and then aborts (see `processes`)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
