"""What a sweep knows of its entries: states, numbers and errors as one table, shown live and kept on disk."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maetok_lab.files import read_json, write_bytes
from maetok_lab.workflow.execute import clock
from maetok_lab.workflow.run import NotebookCall, NotebookResult, stored_result
from maetok_lab.workflow.spec import SweepSpec

State = Literal["waiting", "running", "done", "failed"]
SHOWN_ROWS = 40  # of a live table; the file has all
SECONDS_BETWEEN_TABLES = 2.0


@dataclasses.dataclass
class Entry:
    """One set of parameters: what will run, how far it is, and what came of it."""

    number: int
    parameters: dict[str, Any]
    call: NotebookCall
    log: Path
    state: State = "waiting"
    error: str | None = None
    tries: int = 0
    not_before: float = 0.0
    result: NotebookResult | None = None

    def look(self) -> bool:
        """Take the stored result if there is a valid one; whether there is."""
        self.result = stored_result(self.call, tell=False)
        if self.result is not None:
            self.state, self.error = "done", None
        return self.result is not None

    def where(self) -> str:
        """What it does just now, from its heartbeat, or what went wrong."""
        heartbeat = self.call.folder / "heartbeat.json"
        if self.state == "running" and heartbeat.exists():
            try:
                beat = read_json(heartbeat)
            except (OSError, ValueError):
                return ""
            return f"{clock(beat['seconds'])} {beat['section']}"
        return self.error or ""


def table(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row an entry: swept parameters, state, seconds, every number it reported, error, its folder and its log."""
    rows = []
    for entry in entries:
        numbers = entry.result.numbers if entry.result else {}
        row = {"entry": entry.number, **entry.parameters, "state": entry.state}
        row |= {"seconds": entry.result.seconds if entry.result else None}
        row |= {
            f"reported {name}" if name in row else name: value for name, value in numbers.items()
        }
        rows.append(
            row | {"error": entry.error, "folder": str(entry.call.folder), "log": str(entry.log)}
        )
    frame = pd.DataFrame(rows).set_index("entry")
    last = [name for name in ("error", "folder", "log") if name in frame]
    return frame[[name for name in frame.columns if name not in last] + last]


class Board:
    """Shows the table as it changes: rewritten in place in a notebook or terminal, else one line an event."""

    def __init__(self, spec: SweepSpec, path: Path):
        self.spec, self.path = spec, path
        self._shown = float("-inf")
        self._lines = 0
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
        if time.monotonic() - self._shown < SECONDS_BETWEEN_TABLES and not now:
            return
        self._shown = time.monotonic()
        if self._display is not None:
            self._display.update(self.frame(entries))
        elif self._terminal:
            text = self.frame(entries).to_string(max_rows=SHOWN_ROWS, line_width=None)
            up = f"\x1b[{self._lines}F\x1b[J" if self._lines else ""
            print(up + text, flush=True)
            self._lines = len(text.splitlines())

    def frame(self, entries: Sequence[Entry]) -> pd.DataFrame:
        """The live table: swept parameters, state, seconds, quality and speed, and what each does just now."""
        whole = table(entries)
        wanted = [*self.spec.swept, "state", "seconds", self.spec.quality, self.spec.speed]
        short = whole[[name for name in wanted if name in whole]]
        return short.astype(object).assign(now=[entry.where()[:70] for entry in entries]).fillna("")

    def _line(self, entry: Entry, entries: Sequence[Entry]) -> str:
        done = sum(other.state == "done" for other in entries)
        given = ", ".join(f"{name}={value!r}" for name, value in entry.parameters.items())
        said = f"[{done}/{len(entries)} done] entry {entry.number} ({given}): {entry.state}"
        if entry.result and entry.state == "done":
            numbers = {
                name: entry.result.numbers.get(name)
                for name in (self.spec.quality, self.spec.speed)
                if name
            }
            said += f" in {clock(entry.result.seconds)}"
            said += "".join(
                f", {name} {value:.4g}"
                for name, value in numbers.items()
                if isinstance(value, int | float)
            )
        return said + (f", {entry.error}" if entry.error else "")


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
