"""Ten visitors at once of the real demo: who is served, how soon, and what stands a minute later.

python tests/attack/studio.py
"""

import concurrent.futures
import contextlib
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from serving import Visitor, studio, wait_until  # noqa: E402

PATIENCE = 240  # seconds in which who waits asks again


def visit(address, full):
    """One visitor: asks, and again where told to wait, and connects. -> (numbers, visitor)

    Nobody leaves: those who wait give up when `full` is set.
    """
    visitor = Visitor(address)
    started = time.monotonic()
    status = visitor.page()[0]
    numbers = {"first_answer": status, "first_seconds": time.monotonic() - started}
    deadline = started + PATIENCE
    while status == 503 and time.monotonic() < deadline and not full.is_set():
        time.sleep(3)
        asked = time.monotonic()
        status = visitor.page()[0]
        if status == 200:
            numbers["page_seconds"] = time.monotonic() - asked
    numbers["seconds"] = time.monotonic() - started
    numbers["served"] = status == 200
    if status == 200:
        visitor.connect()
    return numbers, visitor


def memory_of(server):
    """Bytes of all kernels, what they share counted once, and how many kernels there are."""
    total = count = 0
    for kernel in server.kernels():
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(kernel).memory_full_info().pss
            count += 1
    return total, count


def ten_visitors(*, count=10, notebook=ROOT / "notebooks" / "mask_demo.ipynb") -> dict:
    """Numbers of `count` visitors at once, in seconds and GB; then all leave."""
    full = threading.Event()
    with tempfile.TemporaryDirectory() as folder, studio(notebook, Path(folder)) as server:
        limit = int(server.log.read_text().partition("at most ")[2].split()[0])
        server.wait_until_ready()
        most_bytes = most_kernels = 0
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            visits = [pool.submit(visit, server.address, full) for _ in range(count)]
            while not all(one.done() for one in visits):
                now, kernels = memory_of(server)
                most_bytes, most_kernels = max(most_bytes, now), max(most_kernels, kernels)
                if sum(one.done() for one in visits) >= min(limit, count):
                    full.set()
                time.sleep(0.5)
        answers = [one.result() for one in visits]
        now, kernels = memory_of(server)

        # half say that they leave, half are gone
        inside = [visitor for numbers, visitor in answers if numbers["served"]]
        for number, visitor in enumerate(inside):
            visitor.vanish()
            if number % 2:
                visitor.leave()
        left = time.monotonic()
        ended = wait_until(lambda: not server.kernels(), seconds=60)
        seconds = time.monotonic() - left

        numbers = [numbers for numbers, _ in answers]
        told = [it["first_seconds"] for it in numbers if it["first_answer"] == 503]
        served = [it["first_seconds"] for it in numbers if it["first_answer"] == 200]
        return {
            "visitors": count,
            "limit": limit,
            "served at once": len(served),
            "slowest page": round(max(served), 1),
            "told to wait": len(told),
            "slowest word to wait": round(max(told, default=0), 1),
            "served in the end": len(inside),
            "all of these within": round(max(it["seconds"] for it in numbers if it["served"]), 1),
            "slowest page after waiting": round(
                max((it.get("page_seconds", 0) for it in numbers), default=0), 1
            ),
            "most kernels": max(most_kernels, kernels),
            "most GB": round(max(most_bytes, now) / 1e9, 2),
            "GB a kernel": round(now / 1e9 / max(1, kernels), 2),
            "kernels a minute after": len(server.kernels()),
            "all ended after": round(seconds, 1) if ended else None,
        }


if __name__ == "__main__":
    for name, number in ten_visitors().items():
        print(f"{name}: {number}")
