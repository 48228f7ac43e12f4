"""What ends or saves a training between two steps: a signal, the time, whoever takes its records.

A step is never cut in two: what comes during one is heard after it, by every process at once.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from enum import IntEnum

import torch
from accelerate import Accelerator

# What ^C, `kill` and Slurm send. Slurm kills 30 seconds later.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Wish(IntEnum):
    """What is done after a step; of several wishes the highest counts."""

    NONE = 0
    SAVE = 1
    STOP = 2  # with a checkpoint


class Signals:
    """Remembers a signal until the step that it came in is done."""

    def __init__(self):
        self.number: int | None = None  # the first that came
        self._before: dict[int, object] = {}  # by signal: who handled it before

    def hear(self, number: int, frame: object) -> None:
        """The handler. A second ^C does not wait: the step may hang."""
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def pass_on(self) -> None:
        """Let whoever handled a signal before this training have it now, if one came."""
        if self.number is not None:
            self.restore()
            signal.raise_signal(self.number)

    def restore(self) -> None:
        """Handle signals as they were handled before, unless somebody else does by now."""
        while self._before:
            number, handler = self._before.popitem()
            # a training that was left standing may be forgotten long after its notebook's cell
            if signal.getsignal(number) == self.hear:
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Hear signals from here on: those that nobody ignores, in the main thread."""
        # Python lets the main thread alone set handlers
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self.hear)


@contextlib.contextmanager
def heard_signals() -> Iterator[Signals]:
    """Inside, signals are remembered instead of ending the process."""
    signals = Signals()
    signals.take_over()
    try:
        yield signals
    finally:
        # a generator may be closed in another thread, where nothing can be set
        if threading.current_thread() is threading.main_thread():
            signals.restore()


def is_due(step: int, interval: int, num_steps: int) -> bool:
    """Whether something that is done every `interval` steps is done after `step`."""
    return step % interval == 0 or step == num_steps


class BetweenSteps:
    """Lets all processes of a training do after a step what one of them is asked to."""

    def __init__(self, engine: Accelerator, signals: Signals, *, save_minutes: float):
        self._signals = signals
        self._seconds = 60 * save_minutes
        self._saved = time.monotonic()  # the last checkpoint
        self._group = None
        self._alone = engine.num_processes == 1
        if not self._alone:
            # On the hosts: asking the GPUs would wait for all that they still have to do.
            self._group = torch.distributed.new_group(backend="gloo")

    def agree(self, *, asked: bool, is_saved: bool) -> Wish:
        """The highest wish of all processes; this one's is to stop if it is `asked` or got a
        signal, and to save if its last checkpoint is old. `is_saved`: one was just written.
        """
        now = time.monotonic()
        wish = Wish.NONE
        if now - self._saved >= self._seconds:
            wish = Wish.SAVE
        if asked or self._signals.number is not None:
            wish = Wish.STOP
        if not self._alone:
            highest = torch.tensor(int(wish))
            operation = torch.distributed.ReduceOp.MAX
            torch.distributed.all_reduce(highest, operation, group=self._group)
            wish = Wish(int(highest))
        if wish or is_saved:
            self._saved = now
        return wish

    def wait_for_all(self) -> None:
        """Go on when every process has come here: none leaves before the first has saved."""
        if not self._alone:
            torch.distributed.barrier(group=self._group)
