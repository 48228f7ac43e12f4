"""A small notebook for the tests of runs and sweeps, and a pool that answers at once."""

from pathlib import Path

import pytest

from maetok_lab.files import write_json
from maetok_lab.workflow.pool import Outcome
from maetok_lab.workflow.run import prepare_call

PARAMETERS = """\
preset = "tiny"  # sizes
seed = 0  # of every draw
scale = 1.0  # of the answer
steps = 10  # how long
runs = None  # folder"""


@pytest.fixture
def make_notebook():
    """`make_notebook(path, *code)`: a notebook with five parameters and one section a piece of code; -> its path."""
    nbformat = pytest.importorskip("nbformat")
    v4 = nbformat.v4

    def make(path: Path, *code: str) -> Path:
        cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        for number, source in enumerate(code, start=1):
            cells += [v4.new_markdown_cell(f"## Part {number}"), v4.new_code_cell(source)]
        nbformat.write(v4.new_notebook(cells=cells), path)
        return path

    return make


class InstantPool:
    """Stands in for worker processes: `answer(parameters)` gives the numbers an entry reports, or raises.

    What it leaves on disk is what `run_notebook` leaves. `started` lists the parameters of every job, in order.
    """

    def __init__(self, answer, *, places: int = 2):
        self.answer, self.places = answer, places
        self.started, self._ended = [], []
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
            stored = {"numbers": numbers, "runs": [], "seconds": 1.0, "ended": "now", "parents": {}}
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
