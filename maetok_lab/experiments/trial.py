"""A training loop run for some seconds on this device, with growing batches: its time, memory and work, and what follows."""

import contextlib
import dataclasses
import gc
import math
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from maetok_lab.config import override
from maetok_lab.device import free_memory
from maetok_lab.runs import Run
from maetok_lab.training.loop import StepRecord

Train = Callable[[Any, Run], Iterator[StepRecord]]
ENDLESS = 10**9  # no step of a measurement logs, saves or is the last
GROWTH = 4  # from one batch size to the next
SMALL_BYTES = 1e8  # a training whose weights need less starts with more than one image
MOST_STEPS = 20  # of one batch size
ROOM = 0.8  # share of the free memory that a measurement may ask for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A training on this device. `batch` images a step were measured at most, the recipe has `recipe_batch` and sees
    `images` in all. Bytes of both passes without an image and for each one more, and of the optimizer's update, which needs
    them at another time; FLOP an image; NaN where not even one image fitted.
    """

    stage: str
    batch: int
    recipe_batch: int
    images: int
    images_per_second: float
    fixed_bytes: float
    bytes_per_image: float
    least_bytes: float
    flop_per_image: float
    free_bytes: float

    def memory(self, batch: int | None = None) -> float:
        """Bytes that a step with `batch` images needs; the recipe's batch by default."""
        passes = self.fixed_bytes + self.bytes_per_image * (
            self.recipe_batch if batch is None else batch
        )
        return max(passes, self.least_bytes)

    @property
    def hours(self) -> float:
        """To the recipe's end, at the measured speed."""
        return self.images / self.images_per_second / 3600

    def largest_batch(self, memory: float) -> int:
        """The most images a step for which `memory` bytes are enough; 0 if none."""
        if not self.memory(1) <= memory:
            return 0
        return int((memory - self.fixed_bytes) / max(self.bytes_per_image, 1))

    def verdict(self) -> str:
        """One line: whether the recipe's batch fits here, and what to do if not."""
        largest = self.largest_batch(self.free_bytes)
        free = gigabytes(self.free_bytes)
        if largest >= self.recipe_batch:
            return f"{self.stage}: fits, a batch of {self.recipe_batch} takes {gigabytes(self.memory())} of {free}"
        if largest == 0:
            need = f"weights, gradients, optimizer and averages alone take {gigabytes(self.fixed_bytes)} or more"
            return f"{self.stage}: does not fit: {need}, and {free} are free"
        parts = math.ceil(self.recipe_batch / largest)
        told = (
            f"a batch of {self.recipe_batch} needs {gigabytes(self.memory())}, and {free} are free"
        )
        return f"{self.stage}: fits in parts: {told}; up to {largest} images at once fit, so {parts} parts or processes"


def try_training(
    stage: str, config: Any, train: Train, *, weights: int, device: torch.device, seconds: float
) -> Measured:
    """Run `train(config, run)` with growing batches, until the recipe's batch or the end of time or memory.

    `weights` are the bytes of all that no image adds to: where they do not fit nothing is run, and the numbers are NaN.
    """
    end, free = time.perf_counter() + seconds, free_memory(device)
    recipe = config.batch_size
    size = (
        0 if weights > ROOM * free else max(1, recipe // GROWTH**2) if weights < SMALL_BYTES else 1
    )
    tried: list[Trial] = []
    while size:
        try:
            tried.append(
                try_batch(
                    config, size, train, device=device, seconds=(end - time.perf_counter()) / 2
                )
            )
        except torch.OutOfMemoryError:
            break
        size = next_size(
            tried, recipe, weights=weights, room=ROOM * free, left=end - time.perf_counter()
        )
    fixed, slope = line([(each.batch, each.held) for each in tried], at_least=weights)
    _, grown = line([(each.batch, each.peak) for each in tried], at_least=weights)
    last = tried[-1] if tried else Trial(0, math.nan, weights, math.nan, math.nan)
    return Measured(
        stage=stage,
        batch=last.batch,
        recipe_batch=recipe,
        images=recipe * config.num_steps,
        images_per_second=last.batch / last.seconds,
        fixed_bytes=fixed,
        bytes_per_image=max(slope, grown),
        least_bytes=tried[0].peak if tried else weights,
        flop_per_image=line([(each.batch, each.work) for each in tried], at_least=0)[1],
        free_bytes=free,
    )


@dataclasses.dataclass(frozen=True)
class Trial:
    """A step with `batch` images: bytes held when a forward pass ends, and at most, FLOP, and the median of its seconds."""

    batch: int
    held: float
    peak: float
    work: float
    seconds: float


def try_batch(
    config: Any, batch: int, train: Train, *, device: torch.device, seconds: float
) -> Trial:
    """Two steps for counting memory and work, then steps for the clock, two at least, for some seconds."""
    endless = dict.fromkeys(("num_steps", "log_every", "save_every", "picture_every"), ENDLESS)
    sized = override(config, {"batch_size": batch, **endless})
    taken: list[float] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run = stack.enter_context(Run.open("trial", sized, root=folder))
        steps = stack.enter_context(contextlib.closing(train(sized, run)))
        with count_memory(device) as memory:
            with FlopCounterMode(display=False) as counter:
                next(steps)
            next(steps)  # now with the optimizer's state
        end = time.perf_counter() + seconds
        while len(taken) < 2 or (len(taken) < MOST_STEPS and time.perf_counter() < end):
            begin = time.perf_counter()
            next(steps)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begin)
    gc.collect()
    return Trial(batch, *memory, counter.get_total_flops(), statistics.median(taken))


def next_size(
    tried: Sequence[Trial], recipe: int, *, weights: float, room: float, left: float
) -> int:
    """The next batch, or 0: a few of its steps must fit into the time that is left, and into memory.

    A second batch is tried whatever the time, but a small one: one point makes no line.
    """
    last = tried[-1]
    grown = [min(GROWTH * last.batch, recipe)] if 4 * last.seconds * GROWTH < left else []
    for size in grown + [2 * last.batch] * (len(tried) == 1):
        if size > last.batch and weights + max(last.peak - weights, 0) * size / last.batch < room:
            return size
    return 0


def line(points: Sequence[tuple[int, float]], *, at_least: float) -> tuple[float, float]:
    """(value at 0, slope) of the line through the last two points, or through the last and `at_least` at 0 where two
    make no rising line. Without points the slope is NaN.
    """
    if not points:
        return at_least, math.nan
    (b, high), slope = points[-1], 0.0
    if len(points) > 1:
        slope = (high - points[-2][1]) / (b - points[-2][0])
    return (high - slope * b, slope) if slope > 0 else (at_least, max(high - at_least, 0) / b)


@contextlib.contextmanager
def count_memory(device: torch.device) -> Iterator[list[float]]:
    """Yields [held, peak]: bytes of tensors made inside, at most while a forward pass kept something, and at any time.

    The first grows with the batch from the start; of a few images the second is only gradients and optimizer.
    """
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
        self.device, self._before = device, torch.cuda.memory_allocated(device)
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
    """Counts the bytes of storages that live: a process's own size says little, as freed memory is kept (`device.py`)."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def gigabytes(value: float) -> str:
    """Bytes in words: 2.5e9 -> "2.5 GB"."""
    return f"{value / 1e9:.3g} GB"
