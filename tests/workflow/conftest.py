"""A pool that answers at once, for the tests of sweeps."""

import pytest

from maetok_lab.files import write_json
from maetok_lab.workflow.pool import Outcome
from maetok_lab.workflow.run import prepare_call


class InstantPool:
    """Stands in for worker processes.

    `answer(parameters)` gives the numbers an entry reports, or raises. What is left on disk is what
    `run_notebook` leaves. `started` lists the parameters of every job, in order.
    """

    def __init__(self, answer, *, places: int = 2):
        self.answer = answer
        self.places = places
        self.started = []
        self._ended = []
        self.closed = False

    def free(self) -> int:
        return self.places - len(self._ended)

    def start(self, jobs) -> None:
        assert len(jobs) <= self.free()
        for job in jobs:
            self.started.append(job.parameters)
            try:
                numbers = self.answer(job.parameters)
            except Exception as problem:
                kind = "locked" if "RunLocked" in str(problem) else "failed"
                self._ended.append(Outcome(job.number, kind, str(problem)))
                continue
            call = prepare_call(job.notebook, None, job.parameters)
            call.folder.mkdir(parents=True, exist_ok=True)
            write_json(call.folder / "notebook.ipynb", {"cells": []})
            (call.folder / "notebook.html").touch()
            stored = {"numbers": numbers, "runs": [], "seconds": 1.0, "ended": "now", "inputs": {}}
            write_json(call.folder / "summary.json", {**stored, **call.identity})
            self._ended.append(Outcome(job.number, "done", None))

    def wait(self, seconds: float) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def instant_pool():
    return InstantPool
