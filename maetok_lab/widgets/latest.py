"""Work for a burst of quick moves: done at once for the first, then only for the last."""

import asyncio
from collections.abc import Callable

SETTLE = 0.05  # seconds of quiet that end a burst of moves
LONGEST = 0.2  # seconds between two answers to a burst that goes on


class Latest:
    """Call `ask()` at each move: `work` runs at the first of a burst, and once when it settles.

    A burst that goes on is answered every `LONGEST` seconds. Without a running event loop, where
    nothing can run later, `work` runs at every call.
    """

    def __init__(self, work: Callable[[], None]):
        self.work = work
        self._timer: asyncio.TimerHandle | None = None  # of the answer that waits
        self._waiting_since = 0.0
        self._last_run = float("-inf")  # the end of it, by the loop's clock

    def ask(self) -> None:
        """Something moved."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.work()
            return
        now = loop.time()
        if self._timer is None:
            # the first move after a quiet time is answered without delay
            if now - self._last_run >= SETTLE:
                self._run(loop)
                return
            self._waiting_since = now
        else:
            # each further move puts the answer off, though never past LONGEST
            self._timer.cancel()
        due = min(now + SETTLE, self._waiting_since + LONGEST)
        self._timer = loop.call_at(due, self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            self.work()
        finally:
            self._last_run = loop.time()
