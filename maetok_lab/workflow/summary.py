"""How a notebook hands over its final numbers: `report` in its last cell, `collect` afterwards.

The numbers travel in the cell's output under a MIME type of their own, so the same line works in
JupyterLab, under plain papermill and in `run_notebook`.
"""

import html
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maetok_lab.hints import printable
from maetok_lab.runs import Run

MIME = "application/vnd.maetok-lab.summary+json"


def report(*runs: Run | str | Path, **numbers: float | int | str | bool | None) -> None:
    """Show a notebook's final `numbers` as a table, and the `runs` it made.

    Numbers may be tensors or numpy values of one element. Raises TypeError for anything that is no
    single value.
    """
    plain = {name: _scalar(name, value) for name, value in numbers.items()}
    folders = [str(getattr(run, "folder", run)) for run in runs]
    text = as_text(plain, folders)
    # Without IPython, or outside of a kernel, there is nobody to hand data to.
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return print(text)
    if get_ipython() is None:
        return print(text)
    # Absolute, since whoever reads the notebook works in another folder.
    data = {"numbers": plain, "runs": [os.path.abspath(folder) for folder in folders]}
    display({MIME: data, "text/html": _as_html(plain, folders), "text/plain": text}, raw=True)


def collect(cells: list[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What the `report` calls of an executed notebook said: all numbers, folders of all runs."""
    numbers: dict[str, Any] = {}
    runs: list[str] = []
    for cell in cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(MIME)
            if data:
                numbers |= data["numbers"]
                runs += data["runs"]
    return numbers, list(dict.fromkeys(runs))  # a run may be reported twice


def as_text(numbers: Mapping[str, Any], runs: list[str]) -> str:
    """The numbers as aligned lines of text, then one line a run."""
    width = max(map(len, numbers), default=0)
    lines = []
    for name, value in numbers.items():
        lines.append(f"  {name.replace('_', ' '):<{width}}  {_as_word(value)}")
    lines += [f"  run {folder}" for folder in runs]
    return "\n".join(map(printable, lines))


def _as_html(numbers: Mapping[str, Any], runs: list[str]) -> str:
    lines = ["<table>"]
    for name, value in numbers.items():
        title = html.escape(name.replace("_", " "))
        word = html.escape(_as_word(value))
        lines.append(f"<tr><th style='text-align:left'>{title}</th><td>{word}</td></tr>")
    lines.append("</table>")
    if runs:
        # a page is read elsewhere: names, not places on this machine
        items = [f"<li><code>{html.escape(Path(run).name)}</code></li>" for run in runs]
        lines += ["<p>Runs:</p><ul>", *items, "</ul>"]
    return "".join(lines)


def _scalar(name: str, value: Any) -> Any:
    # of a tensor or a numpy value
    if hasattr(value, "item") and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    if not isinstance(value, str | bool | int | float | None):
        raise TypeError(
            f"report needs one number or string for {name!r}, not {type(value).__name__}"
        )
    return value


def _as_word(value: Any) -> str:
    if value is None:
        return "no finite number"  # nan and infinity, or what was not measured
    return f"{value:.4g}" if isinstance(value, float) else str(value)
