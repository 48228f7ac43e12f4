"""How much memory a step needs, counted on the device: and so in how many parts a batch fits."""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOM = 0.8  # share of the free memory that may be asked for: what is cut up is not all usable


def fewest_parts(
    size: int, pass_bytes: Callable[[int], tuple[float, float]], *, room: float
) -> int:
    """The fewest equal parts of `size` images of which each fits into `room` bytes.

    `pass_bytes(parts)` makes the forward and backward pass of one of so many parts; -> (held, peak)
    of `count_memory`. As many parts as images where not even one image fits.
    """
    if size == 1:
        return 1
    # Lines through one image and two or three. Whichever rises faster fills the memory: of few
    # images the peak is that of the gradients, which no image adds to.
    few = math.ceil(size / (size // 2))
    held_of_one, peak_of_one = pass_bytes(size)
    held, peak = pass_bytes(size // 2)
    held_slope = (held - held_of_one) / (few - 1)
    slope = max(held_slope, (peak - peak_of_one) / (few - 1))
    for parts in range(1, size):
        needed = max(held_of_one - held_slope + slope * size / parts, peak_of_one)
        if size % parts == 0 and needed <= room:
            return parts
    return size


@contextlib.contextmanager
def count_memory(device: torch.device) -> Iterator[list[float]]:
    """Yields [held, peak]: the most bytes of tensors made inside.

    Held is that at a moment when a forward pass kept something for the backward pass, peak that at
    any time.
    """
    # held grows with the batch from the start; of few images, peak is only gradients and optimizer
    memory = [0.0, 0.0]
    with _CudaMemory(device) if device.type == "cuda" else _Storages() as counted:

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            memory[0] = max(memory[0], counted.now)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield memory
        memory[1] = counted.peak


class _CudaMemory(contextlib.AbstractContextManager):
    """What torch holds on a GPU, beyond what it held before."""

    def __init__(self, device: torch.device):
        self.device = device
        self._before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)

    def __exit__(self, *exception: object) -> None:
        """Nothing is to be undone."""

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device) - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self._before


class _Storages(TorchDispatchMode):
    """Counts the bytes of storages that live, on the CPU."""

    # The process's own size would say little: memory that torch frees stays with it (`device.py`).

    def __init__(self):
        super().__init__()
        self.now = 0
        self.peak = 0
        self._counted: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        # views, and what is changed in place, share a storage
        if storage in self._counted:
            return
        self._counted.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
