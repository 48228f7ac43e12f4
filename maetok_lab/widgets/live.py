"""Follow a training: a line with losses, speed and time left, at most every few seconds."""

import time
from collections.abc import Callable

from maetok_lab.training.common import StepRecord


class LiveTraining:
    """`live.update(record)` after every step; prints when losses came in and `every` seconds have passed, and at the end."""

    def __init__(self, title: str, *, every: float = 10.0, write: Callable[[str], None] = print):
        self.title, self.every, self.write = title, every, write
        self._start: tuple[float, StepRecord] | None = None
        self._told = 0.0

    def update(self, record: StepRecord) -> None:
        """Take a record; the speed is measured from the first one on, so a continued run counts its own steps only."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, record
            if record.step > 1:
                self.write(f"{self.title}: continues at step {record.step} of {record.num_steps}")
        done = record.step == record.num_steps
        if record.losses and (done or now - self._told >= self.every):
            self._told = now
            self.write(self._line(record, now))

    def _line(self, record: StepRecord, now: float) -> str:
        start, first = self._start
        seconds = max(now - start, 1e-9)
        steps = max(record.step - first.step, 1)
        left = seconds / steps * (record.num_steps - record.step)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in record.losses.items() if "/t" not in name)
        speed = (record.images - first.images) / seconds
        return f"{self.title}: step {record.step}/{record.num_steps}, {losses}; {speed:.0f} images/s, {left:.0f} s left"
