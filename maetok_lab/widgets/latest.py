"""Work that many quick moves ask for: done at once after a quiet time, then only for the last of them."""

import asyncio
from collections.abc import Callable


class Latest:
    """`ask()` runs `work` now, or for a burst of moves: once now, and once when they settle for `settle` seconds.

    A burst that goes on is answered every `longest` seconds. Without a running event loop, where nothing can follow by
    itself, every `ask` works at once.
    """

    def __init__(self, work: Callable[[], None], *, settle: float = 0.05, longest: float = 0.2):
        self.work, self.settle, self.longest = work, settle, longest
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
            if now - self._worked >= self.settle:
                self._run(loop)
                return
            self._waiting_since = now
        else:
            self._timer.cancel()
        due = min(now + self.settle, self._waiting_since + self.longest)
        self._timer = loop.call_at(due, self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            self.work()
        finally:
            self._worked = loop.time()
