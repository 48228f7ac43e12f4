"""A training loop run for some seconds with growing batches: its time, memory and work here.

All three are lines in the batch size, so two batches give what the recipe's own would need.
"""

import contextlib
import dataclasses
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from maetok_lab.config import override
from maetok_lab.device import free_memory
from maetok_lab.runs import Run
from maetok_lab.training.memory import ROOM, count_memory
from maetok_lab.training.task import StepRecord

Train = Callable[[Any, Run], Iterator[StepRecord]]
ENDLESS = 10**9  # no step of a measurement logs, saves or is the last
GROWTH = 4  # from one batch size to the next
SMALL_BYTES = 1e8  # a training whose weights need less starts with more than one image
MOST_STEPS = 20  # of one batch size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A training on this device; NaN where not even one image fitted."""

    stage: str  # "tokenizer" or "diffusion"
    batch: int  # images a step, the most that were tried
    recipe_batch: int  # images a step in the recipe
    images: int  # that the recipe sees in all
    images_per_second: float
    fixed_bytes: float  # of a forward and backward pass without an image
    bytes_per_image: float  # on top of that
    least_bytes: float  # of the optimizer's update, which needs them at another time
    flop_per_image: float
    free_bytes: float  # on the device, before anything ran

    def memory(self, batch: int | None = None) -> float:
        """Bytes that a step with `batch` images needs; the recipe's batch by default."""
        if batch is None:
            batch = self.recipe_batch
        return max(self.fixed_bytes + self.bytes_per_image * batch, self.least_bytes)

    @property
    def hours(self) -> float:
        """To the recipe's end, at the measured speed."""
        return self.images / self.images_per_second / 3600

    def largest_batch(self, memory: float) -> int:
        """The most images a step for which `memory` bytes are enough; 0 if none."""
        # "not <=" because NaN fits nowhere
        if not self.memory(1) <= memory:
            return 0
        return int((memory - self.fixed_bytes) / max(self.bytes_per_image, 1))

    def verdict(self) -> str:
        """One line: whether the recipe's batch fits here, and what to do if not."""
        largest = self.largest_batch(self.free_bytes)
        need = gigabytes(self.memory())
        free = gigabytes(self.free_bytes)
        if largest >= self.recipe_batch:
            return f"{self.stage}: fits, a batch of {self.recipe_batch} takes {need} of {free}"
        if largest == 0:
            return (
                f"{self.stage}: does not fit: weights, gradients, optimizer and averages alone "
                f"take {gigabytes(self.fixed_bytes)} or more, and {free} are free"
            )
        parts = math.ceil(self.recipe_batch / largest)
        return (
            f"{self.stage}: fits in parts: a batch of {self.recipe_batch} needs {need}, and {free} "
            f"are free; up to {largest} images at once fit, so {parts} parts or processes"
        )


def try_training(
    stage: str, config: Any, train: Train, *, weights: int, device: torch.device, seconds: float
) -> Measured:
    """Run `train(config, run)` with growing batches, to the recipe's or the end of time or memory.

    `weights` are the bytes of all that no image adds to: where they do not fit nothing is run, and
    the numbers are NaN.
    """
    end = time.perf_counter() + seconds
    free = free_memory(device)
    recipe_batch = config.batch_size
    if weights > ROOM * free:
        size = 0
    elif weights < SMALL_BYTES:
        size = max(1, recipe_batch // GROWTH**2)
    else:
        size = 1

    trials: list[Trial] = []
    while size:
        try:
            left = end - time.perf_counter()
            trials.append(try_batch(config, size, train, device=device, seconds=left / 2))
        except torch.OutOfMemoryError:
            break
        left = end - time.perf_counter()
        size = next_size(trials, recipe_batch, weights=weights, room=ROOM * free, left=left)

    # Lines through the last two batches. The peak of few images is mostly gradients and optimizer,
    # of many it is what the forward pass keeps: whichever grows faster fills the device.
    fixed, slope = line([(trial.batch, trial.held) for trial in trials], at_least=weights)
    _, peak_slope = line([(trial.batch, trial.peak) for trial in trials], at_least=weights)
    _, flop = line([(trial.batch, trial.work) for trial in trials], at_least=0)
    last = trials[-1] if trials else Trial(0, math.nan, weights, math.nan, math.nan)
    return Measured(
        stage=stage,
        batch=last.batch,
        recipe_batch=recipe_batch,
        images=recipe_batch * config.num_steps,
        images_per_second=last.batch / last.seconds,
        fixed_bytes=fixed,
        bytes_per_image=max(slope, peak_slope),
        least_bytes=trials[0].peak if trials else weights,
        flop_per_image=flop,
        free_bytes=free,
    )


@dataclasses.dataclass(frozen=True)
class Trial:
    """Steps with one batch size."""

    batch: int  # images
    held: float  # bytes when a forward pass ends
    peak: float  # bytes at most
    work: float  # FLOP of a step
    seconds: float  # of a step, their median


def try_batch(
    config: Any, batch: int, train: Train, *, device: torch.device, seconds: float
) -> Trial:
    """Two steps for counting memory and work, then steps for the clock, two at least."""
    with endless_steps(config, batch, train) as steps:
        with count_memory(device) as memory:
            with FlopCounterMode(display=False) as counter:
                next(steps)
            next(steps)  # now with the optimizer's state
        a_step = seconds_of_steps(steps, device=device, seconds=seconds)
    gc.collect()  # the model of this batch, before the next one is built
    return Trial(batch, *memory, counter.get_total_flops(), a_step)


@contextlib.contextmanager
def endless_steps(config: Any, batch: int, train: Train) -> Iterator[Iterator[StepRecord]]:
    """The steps of a training with batches of `batch`; nothing is kept."""
    endless = dict.fromkeys(("num_steps", "log_every", "save_every", "picture_every"), ENDLESS)
    sized = override(config, {"batch_size": batch, **endless})
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run = stack.enter_context(Run.open("trial", sized, root=folder))
        yield stack.enter_context(contextlib.closing(train(sized, run)))


def seconds_of_steps(steps: Iterator[StepRecord], *, device: torch.device, seconds: float) -> float:
    """The median time of a step, of two at least and of as many as `seconds` allow."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or (len(times) < MOST_STEPS and time.perf_counter() < end):
        begin = time.perf_counter()
        next(steps)
        # a GPU returns from a step before it has done it
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def next_size(
    trials: Sequence[Trial], recipe_batch: int, *, weights: float, room: float, left: float
) -> int:
    """The next batch, or 0 where none fits into `room` bytes and the seconds that are `left`."""
    last = trials[-1]
    sizes = []
    if 4 * last.seconds * GROWTH < left:  # four steps, as slow as they may get
        sizes.append(min(GROWTH * last.batch, recipe_batch))
    if len(trials) == 1:  # whatever the time: one point makes no line
        sizes.append(2 * last.batch)
    for size in sizes:
        needed = weights + max(last.peak - weights, 0) * size / last.batch
        if size > last.batch and needed < room:
            return size
    return 0


def line(points: Sequence[tuple[int, float]], *, at_least: float) -> tuple[float, float]:
    """(value at 0, slope) of the line through the last two points (batch, value).

    Through the last and `at_least` at 0 where two make no rising line. Without points the slope is
    NaN.
    """
    if not points:
        return at_least, math.nan
    batch, value = points[-1]
    if len(points) > 1:
        earlier_batch, earlier_value = points[-2]
        slope = (value - earlier_value) / (batch - earlier_batch)
        if slope > 0:
            return value - slope * batch, slope
    return at_least, max(value - at_least, 0) / batch


def gigabytes(value: float) -> str:
    """Bytes in words: 2.5e9 -> "2.5 GB"."""
    return f"{value / 1e9:.3g} GB"
