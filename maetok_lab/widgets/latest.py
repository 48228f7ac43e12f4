"""Work that many quick moves ask for: done at once after a quiet time, then only for the last of them."""

import asyncio
from collections.abc import Callable

SETTLE, LONGEST = (
    0.05,
    0.2,
)  # seconds of quiet that end a burst, and between two answers to one that goes on


class Latest:
    """`ask()` runs `work` now, or for a burst of moves: once now, and once when they settle for `SETTLE` seconds.

    A burst that goes on is answered every `LONGEST` seconds. Without a running event loop, where nothing can follow by
    itself, every `ask` works at once.
    """

    def __init__(self, work: Callable[[], None]):
        self.work = work
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since = 0.0
        self._worked = float("-inf")

    def ask(self) -> None:
        """Something moved."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.work()
            return
        now = loop.time()
        if self._timer is None:
            if now - self._worked >= SETTLE:
                self._run(loop)
                return
            self._waiting_since = now
        else:
            self._timer.cancel()
        due = min(now + SETTLE, self._waiting_since + LONGEST)
        self._timer = loop.call_at(due, self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            self.work()
        finally:
            self._worked = loop.time()
