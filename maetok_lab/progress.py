"""A line now and then about work that takes long: how much is done, how long the rest takes."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

QUIET = 5.0  # seconds: what is done by then says nothing
EVERY = 10.0  # seconds between two lines

Item = TypeVar("Item")


def track(items: Sequence[Item], title: str) -> Iterator[Item]:
    """The items one after the other; a line when they take over five seconds, then every ten."""
    start = time.monotonic()
    due = start + QUIET
    for number, item in enumerate(items):
        now = time.monotonic()
        if number and now >= due:
            left = (now - start) / number * (len(items) - number)
            print(f"{title}: {number} of {len(items)}, about {left:.0f} s left", flush=True)
            due = now + EVERY
        yield item
