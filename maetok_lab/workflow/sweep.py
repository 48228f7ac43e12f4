"""Run a notebook over many sets of parameters, each in a process, and see what came of it.

    runs/sweeps/NAME/
        sweep.json table.csv summary.json pareto.png gallery.png logs/ pictures/
        while running: lock; slurm/ of jobs on a cluster

The results themselves are those of `run_notebook`, addressed by what they are made from: the
notebook's code, its parameters, what it read. So whatever is done is skipped, also by another sweep
or after a stop at any moment.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maetok_lab.config import to_json
from maetok_lab.files import write_bytes, write_json
from maetok_lab.runs import runs_root
from maetok_lab.runs.provenance import now
from maetok_lab.workflow.board import Board, Entry, table
from maetok_lab.workflow.gallery import write_pictures
from maetok_lab.workflow.pool import Job, LocalPool, Outcome, Pool
from maetok_lab.workflow.run import hold_folder, prepare_call
from maetok_lab.workflow.spec import SweepSpec, read_spec

LOCKED_SECONDS = 5.0  # until an entry whose run somebody else is writing is tried again
POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep left."""

    folder: Path
    table: pd.DataFrame  # of all entries; see `board.table`
    spec: SweepSpec

    @property
    def failed(self) -> pd.DataFrame:
        """The entries that failed, with their errors and logs."""
        return self.table[self.table["state"] == "failed"]

    @property
    def best(self) -> pd.Series | None:
        """The row of the best quality; None where no entry reported it."""
        quality = self.spec.quality
        if quality not in self.table:
            return None
        finished = self.table[self.table["state"] == "done"]
        values = pd.to_numeric(finished[quality], errors="coerce").dropna()
        if values.empty:
            return None
        number = values.idxmax() if self.spec.larger_is_better else values.idxmin()
        return self.table.loc[number]


def sweep(
    spec: SweepSpec | str | Path,
    *,
    runs: str | Path | None = None,  # the folder of runs, also for the notebooks
    on: Literal["local", "slurm"] = "local",
    pool: Pool | None = None,  # instead of the one that `on` names
) -> SweepResult:
    """Run every entry that has no result yet; one that fails is recorded and the others go on.

    Call it again to continue one that was stopped, to try failed entries anew, or after adding
    entries. Raises ValueError or TypeError for a wrong parameter of any entry before anything
    starts, RunLocked when another process runs this sweep.
    """
    if not isinstance(spec, SweepSpec):
        spec = read_spec(spec)
    if runs is None:
        runs = spec.fixed.get("runs")
    # All parameters are checked here, before a folder is made.
    folder = runs_root(runs).absolute() / "sweeps" / spec.name
    entries = make_entries(spec, folder, runs)

    lock = hold_folder(
        folder,
        "choose a folder for runs that can be written: --runs FOLDER on a command line, "
        "runs=FOLDER in Python",
    )
    board = Board(spec, folder / "table.csv")
    try:
        write_json(folder / "sweep.json", to_json(spec))
        # Also after ^C the pool is closed: its workers and their kernels end.
        with contextlib.closing(pool or _pool(on, spec, folder)) as pool:
            _run(entries, pool, spec.retries, board)
        frame = table(entries)
        write_bytes(folder / "table.csv", frame.to_csv().encode())
        result = SweepResult(folder, frame, spec)
        write_pictures(folder, frame, spec)
        write_json(folder / "summary.json", summarise(result))
        return result
    finally:
        lock.release()


def make_entries(spec: SweepSpec, folder: Path, runs: str | Path | None) -> list[Entry]:
    """The sweep's entries with all parameters checked, without repetitions."""
    entries: dict[Path, Entry] = {}
    for swept in spec.entries:
        parameters = {**spec.fixed, **swept}
        if runs is not None:
            parameters["runs"] = str(Path(runs).absolute())
        call = prepare_call(spec.notebook, None, parameters)
        log = folder / "logs" / f"{call.folder.name}.log"
        # two entries with one folder are one: the same values, perhaps written as 1 and 1.0
        entries.setdefault(call.folder, Entry(len(entries), dict(swept), call, log))
    return list(entries.values())


def _run(entries: list[Entry], pool: Pool, retries: int, board: Board) -> None:
    """Bring every entry to "done" or "failed"."""
    # What this sweep or any other made is not made again.
    for entry in entries:
        if entry.look():
            board.tell(entry, entries)

    by_number = {entry.number: entry for entry in entries}
    try:
        while any(entry.state in ("waiting", "running") for entry in entries):
            # As many as the pool takes, in their order; an entry that met a lock waits a while.
            jobs: list[Job] = []
            for entry in entries:
                due = entry.state == "waiting" and entry.not_before <= time.monotonic()
                if due and len(jobs) < pool.free():
                    entry.state = "running"
                    entry.error = None
                    board.tell(entry, entries)
                    call = entry.call
                    jobs.append(Job(entry.number, str(call.path), call.changes, str(entry.log)))
            pool.start(jobs)

            for outcome in pool.wait(POLL_SECONDS):
                entry = by_number[outcome.number]
                _settle(entry, outcome, retries)
                board.tell(entry, entries)
            board.show(entries)
    finally:
        # A stop ends the workers too: what was running waits for the next call.
        for entry in entries:
            if entry.state == "running":
                entry.state = "waiting"
                board.tell(entry, entries)


def _settle(entry: Entry, outcome: Outcome, retries: int) -> None:
    """What follows from how a job ended: done, failed, tried again, or waiting for a lock."""
    entry.state = "waiting"
    entry.error = outcome.error
    if outcome.outcome == "done":
        if not entry.look():
            entry.state = "failed"
            entry.error = f"no valid result in {entry.call.folder}"
    elif outcome.outcome == "locked":  # whoever writes the same run may be making the result
        entry.not_before = time.monotonic() + LOCKED_SECONDS
    else:
        entry.tries += 1
        if entry.tries > retries:
            entry.state = "failed"


def summarise(result: SweepResult) -> dict[str, Any]:
    """Counts, and the best entry's parameters and numbers, as plain JSON."""
    counts = result.table["state"].value_counts().to_dict()
    # JSON knows neither numpy's numbers nor NaN.
    best = {}
    if result.best is not None:
        best["entry"] = int(result.best.name)
        for name, value in result.best.items():
            if pd.api.types.is_list_like(value):  # a parameter may be a list
                best[name] = value
            elif pd.notna(value):  # it is missing where this entry did not report it
                best[name] = value.item() if hasattr(value, "item") else value
    return {"entries": len(result.table), **counts, "best": best, "ended": now()}


def _pool(on: str, spec: SweepSpec, folder: Path) -> Pool:
    if on == "slurm":
        from maetok_lab.workflow.cluster import SlurmPool

        return SlurmPool(spec.slurm, folder)
    if on != "local":
        raise ValueError(f"a sweep runs on 'local' or 'slurm', not {on!r}")
    return LocalPool(spec.workers)
