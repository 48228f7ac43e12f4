"""Run a notebook over many sets of parameters, each in a process of its own, and see what came of it.

    runs/sweeps/NAME/  sweep.json table.csv summary.json pareto.png gallery.png logs/ pictures/  and, while running, lock
                       slurm/ of jobs on a cluster; runs/ with `separate_runs`

The results themselves are those of `run_notebook`, addressed by what they are made from: the notebook's code, its
parameters and its parents. So whatever is done is skipped, also by another sweep or after a stop at any moment.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maetok_lab.config import fingerprint_of, to_json
from maetok_lab.files import write_bytes, write_json
from maetok_lab.runs import runs_root
from maetok_lab.runs.locks import lock_folder
from maetok_lab.runs.provenance import now
from maetok_lab.workflow.board import Board, Entry, table
from maetok_lab.workflow.gallery import write_summary
from maetok_lab.workflow.pool import Job, LocalPool, Outcome, Pool
from maetok_lab.workflow.run import prepare_call
from maetok_lab.workflow.spec import SweepSpec, read_spec

LOCKED_SECONDS = 5.0  # until an entry whose run somebody else is writing is tried again
POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep left: its folder, the table of all entries (see `board.table`), and what it was asked."""

    folder: Path
    table: pd.DataFrame
    spec: SweepSpec

    @property
    def failed(self) -> pd.DataFrame:
        """The entries that failed, with their errors and logs."""
        return self.table[self.table["state"] == "failed"]

    @property
    def best(self) -> pd.Series | None:
        """The entry of the best quality; None when none is known."""
        return best_row(self.table, self.spec)


def sweep(
    spec: SweepSpec | str | Path,
    *,
    runs: str | Path | None = None,
    on: Literal["local", "slurm"] = "local",
    pool: Pool | None = None,
) -> SweepResult:
    """Run every entry that has no result yet; failures are recorded and the rest goes on.

    Call it again to continue one that was stopped, to try failed entries anew, or after adding entries. Raises ValueError
    or TypeError for a wrong parameter of any entry before anything starts, RunLocked when another process runs this sweep.
    """
    spec = spec if isinstance(spec, SweepSpec) else read_spec(spec)
    runs = spec.fixed.get("runs") if runs is None else runs
    folder = runs_root(runs).absolute() / "sweeps" / spec.name
    first = make_entries(spec, folder, runs, spec.halving.values[0] if spec.halving else None)
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    board = Board(spec, folder / "table.csv")
    try:
        write_json(folder / "sweep.json", to_json(spec))
        with contextlib.closing(pool or _pool(on, spec, folder)) as place:
            entries = _halve(
                first,
                spec,
                folder,
                runs,
                lambda each, shown: _run(each, shown, place, spec.retries, board),
            )
        frame = table(entries)
        write_bytes(folder / "table.csv", frame.to_csv().encode())
        result = SweepResult(folder, frame, spec)
        write_summary(folder, frame, spec)
        write_json(folder / "summary.json", summarise(result))
        return result
    finally:
        lock.release()


def make_entries(
    spec: SweepSpec, folder: Path, runs: str | Path | None, rung: Any, *, start: int = 0
) -> list[Entry]:
    """The sweep's entries with all parameters checked, without repetitions; `rung` is the value of halving's parameter."""
    chosen = [dict(parameters) for parameters in spec.entries]
    if spec.halving:
        chosen = [parameters | {spec.halving.parameter: rung} for parameters in chosen]
    return _entries(chosen, spec, folder, runs, start)


def _entries(
    chosen: list[dict[str, Any]], spec: SweepSpec, folder: Path, runs: str | Path | None, start: int
) -> list[Entry]:
    found: dict[Path, Entry] = {}
    for parameters in chosen:
        asked = {**spec.fixed, **parameters}
        if spec.separate_runs:
            asked["runs"] = str(
                folder / "runs" / fingerprint_of({"parameters": repr(sorted(asked.items()))})
            )
        elif runs is not None:
            asked["runs"] = str(Path(runs).absolute())
        call = prepare_call(spec.notebook, None, asked)
        number = start + len(found)
        found.setdefault(
            call.folder,
            Entry(number, parameters, call, folder / "logs" / f"{call.folder.name}.log"),
        )
    return list(found.values())


def _halve(
    entries: list[Entry],
    spec: SweepSpec,
    folder: Path,
    runs: str | Path | None,
    run: Callable[[list[Entry], list[Entry]], None],
) -> list[Entry]:
    """Run the entries, and with halving the best of them again at each further value; -> all entries there were."""
    run(entries, entries)
    everything = entries
    for value in spec.halving.values[1:] if spec.halving else []:
        ranked = [
            entry
            for entry in entries
            if entry.state == "done" and _quality(entry, spec) is not None
        ]
        ranked.sort(key=lambda entry: _quality(entry, spec), reverse=spec.larger_is_better)
        kept = sorted(
            ranked[: max(1, math.ceil(len(ranked) * spec.halving.keep))],
            key=lambda entry: entry.number,
        )
        chosen = [entry.parameters | {spec.halving.parameter: value} for entry in kept]
        entries = _entries(chosen, spec, folder, runs, len(everything))
        everything = everything + entries
        run(entries, everything)
    return everything


def _quality(entry: Entry, spec: SweepSpec) -> float | None:
    value = entry.result.numbers.get(spec.quality) if entry.result else None
    return value if isinstance(value, int | float) else None


def _run(entries: list[Entry], shown: list[Entry], pool: Pool, retries: int, board: Board) -> None:
    """Bring every entry to "done" or "failed"."""
    for entry in entries:
        if entry.look():
            board.tell(entry, shown)
    while any(entry.state in ("waiting", "running") for entry in entries):
        ready = [
            entry
            for entry in entries
            if entry.state == "waiting" and entry.not_before <= time.monotonic()
        ]
        starting = ready[: pool.free()]
        for entry in starting:
            entry.state, entry.error = "running", None
            board.tell(entry, shown)
        pool.start([Job(e.number, str(e.call.path), e.call.given, str(e.log)) for e in starting])
        for outcome in pool.wait(POLL_SECONDS):
            entry = next(entry for entry in entries if entry.number == outcome.number)
            _take(entry, outcome, retries)
            board.tell(entry, shown)
        board.show(shown)


def _take(entry: Entry, outcome: Outcome, retries: int) -> None:
    """What follows from how a job ended: done, tried again, failed, or wait for whoever writes the same run."""
    entry.state, entry.error = "waiting", outcome.error
    if outcome.outcome == "done":
        if not entry.look():
            entry.state, entry.error = "failed", f"no valid result in {entry.call.folder}"
    elif outcome.outcome == "locked":
        entry.not_before = time.monotonic() + LOCKED_SECONDS
    else:
        entry.tries += 1
        entry.state = "waiting" if entry.tries <= retries else "failed"


def best_row(frame: pd.DataFrame, spec: SweepSpec) -> pd.Series | None:
    """The row of the best quality among those done (of halving: at its last value); None when no quality is known."""
    if not spec.quality or spec.quality not in frame:
        return None
    done = frame[frame["state"] == "done"]
    if spec.halving:
        done = done[done[spec.halving.parameter] == spec.halving.values[-1]]
    values = pd.to_numeric(done[spec.quality], errors="coerce").dropna()
    if values.empty:
        return None
    return frame.loc[values.idxmax() if spec.larger_is_better else values.idxmin()]


def summarise(result: SweepResult) -> dict[str, Any]:
    """Counts, and the best entry's parameters and numbers, as plain JSON."""
    counts = result.table["state"].value_counts().to_dict()
    best = result.best
    known = (
        {}
        if best is None
        else {k: v for k, v in best.items() if not (pd.api.types.is_scalar(v) and pd.isna(v))}
    )
    told = {} if best is None else {"entry": int(best.name), **known}
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in told.items()}
    return {"entries": len(result.table), **counts, "best": plain, "ended": now()}


def _pool(on: str, spec: SweepSpec, folder: Path) -> Pool:
    if on == "slurm":
        from maetok_lab.workflow.cluster import SlurmPool

        return SlurmPool(spec.slurm, folder)
    if on != "local":
        raise ValueError(f"a sweep runs on 'local' or 'slurm', not {on!r}")
    return LocalPool(spec.workers)
