"""One sum across processes, timed: what `doctor` starts under torchrun. It imports torch alone, to start fast."""

import json
import sys
import time

import torch
import torch.distributed as dist

NUMBERS = 1_000_000
REPEATS = 5


def main() -> None:
    """Sum over all processes; the first one prints how many there were, whether the sum is right, and the speed."""
    backend = "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend)
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    values = torch.full((NUMBERS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == world * (world + 1) / 2).all())
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    if backend == "nccl":
        torch.cuda.synchronize()
    speed = REPEATS * 4 * NUMBERS / (time.perf_counter() - started)
    if rank == 0:
        json.dump(
            {"processes": world, "backend": backend, "right": right, "bytes_per_second": speed},
            sys.stdout,
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
