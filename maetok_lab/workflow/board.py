"""What a sweep knows of its entries: states, numbers and errors as a table, live and on disk."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maetok_lab.files import read_json, write_bytes
from maetok_lab.hints import printable
from maetok_lab.runs.provenance import clock
from maetok_lab.workflow.printing import table_text, terminal_width
from maetok_lab.workflow.run import NotebookCall, NotebookResult, stored_result
from maetok_lab.workflow.spec import SweepSpec

MAX_ROWS = 40  # of a live table; the file has all
SECONDS_BETWEEN_TABLES = 2.0


@dataclasses.dataclass
class Entry:
    """One set of parameters: what will run, how far it is, and what came of it."""

    number: int  # stays the same for as long as entries are only added behind
    parameters: dict[str, Any]  # the swept ones
    call: NotebookCall
    log: Path
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    error: str | None = None
    tries: int = 0  # that failed
    not_before: float = 0.0  # on the monotonic clock
    result: NotebookResult | None = None

    def look(self) -> bool:
        """Look for a valid stored result, take it, and say whether there was one."""
        self.result = stored_result(self.call, tell=False)
        if self.result is None:
            return False
        self.state = "done"
        self.error = None
        return True

    @property
    def numbers(self) -> dict[str, Any]:
        """What it reported; {} while it is not done."""
        return self.result.numbers if self.result else {}

    def activity(self) -> str:
        """What it does just now, from its heartbeat, or what went wrong."""
        if self.state == "running":
            try:
                beat = read_json(self.call.folder / "heartbeat.json")
            except (OSError, ValueError):  # not there yet, or no more
                return ""
            return f"{clock(beat['seconds'])} {beat['section']}"
        return self.error or ""


def table(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row an entry.

    Its swept parameters, state, seconds, every number it reported, error, folder and log.
    """
    rows = []
    for entry in entries:
        row = {"entry": entry.number, **entry.parameters, "state": entry.state, "seconds": None}
        if entry.result:
            row["seconds"] = entry.result.seconds
        for name, value in entry.numbers.items():
            # a number may have the name of a parameter
            row[f"reported {name}" if name in row else name] = value
        last = {"error": entry.error, "folder": str(entry.call.folder), "log": str(entry.log)}
        rows.append(row | last)
    frame = pd.DataFrame(rows).set_index("entry")
    # entries that are not done have no numbers: theirs would come last
    first = [name for name in frame.columns if name not in last]
    return frame[[*first, *last]]


class Board:
    """Shows the table: rewritten in place in a notebook or terminal, else one line an event."""

    def __init__(self, spec: SweepSpec, path: Path):
        self.spec = spec
        self.path = path
        self._last_update = float("-inf")
        self._lines = 0  # of the table on the terminal
        self._display = _notebook_display()
        self._terminal = self._display is None and sys.stdout.isatty()

    def tell(self, entry: Entry, entries: Sequence[Entry]) -> None:
        """An entry changed its state: write the table down, and show it."""
        write_bytes(self.path, table(entries).to_csv().encode())
        if self._display is None and not self._terminal:
            print(self._line(entry, entries), flush=True)
        self.show(entries, now=True)

    def show(self, entries: Sequence[Entry], *, now: bool = False) -> None:
        """Draw the live table anew, at most every two seconds unless `now`."""
        if time.monotonic() - self._last_update < SECONDS_BETWEEN_TABLES and not now:
            return
        self._last_update = time.monotonic()
        if self._display is not None:
            self._display.update(self.frame(entries))
        elif self._terminal:
            frame = self.frame(entries).reset_index()
            if len(frame) > MAX_ROWS:  # the first and the last
                frame = pd.concat([frame[: MAX_ROWS // 2], frame[-MAX_ROWS // 2 :]])
            text, _ = table_text(frame, terminal_width())
            if self._lines:  # up to where the last table began, and erase what is below
                text = f"\x1b[{self._lines}F\x1b[J{text}"
            print(text, flush=True)
            self._lines = len(text.splitlines())

    def frame(self, entries: Sequence[Entry]) -> pd.DataFrame:
        """The live table: what was swept and scored, and what each entry does just now."""
        whole = table(entries)
        # only columns that exist: those of numbers come with the first entry that is done
        columns = [*self.spec.swept, "state", "seconds", self.spec.quality, self.spec.speed]
        short = whole[[name for name in columns if name in whole]].astype(object)
        return short.assign(now=[entry.activity()[:70] for entry in entries]).fillna("")

    def _line(self, entry: Entry, entries: Sequence[Entry]) -> str:
        """Such as "[3/8 done] entry 2 (scale=3.0): done in 0:12, best_kid 0.24"."""
        num_done = sum(each.state == "done" for each in entries)
        parameters = ", ".join(f"{name}={value!r}" for name, value in entry.parameters.items())
        line = (
            f"[{num_done}/{len(entries)} done] entry {entry.number} ({parameters}): {entry.state}"
        )
        if entry.state == "done":
            line += f" in {clock(entry.result.seconds)}"
            for name in (self.spec.quality, self.spec.speed):
                value = entry.numbers.get(name)
                if isinstance(value, int | float):
                    line += f", {name} {value:.4g}"
        return printable(line + (f", {entry.error}" if entry.error else ""))


def _notebook_display() -> Any:
    """A display that can be rewritten, in a notebook; else None."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    if get_ipython() is None or not hasattr(get_ipython(), "kernel"):
        return None
    return display("", display_id=True)
