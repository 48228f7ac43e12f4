"""How a notebook tells its final numbers: `report` shows them in its last cell, `run_notebook` finds them there.

The numbers travel in the cell's output under a MIME type of their own, so the same line works in JupyterLab, under
plain papermill and in `run_notebook`.
"""

import html
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maetok_lab.runs import Run

MIME = "application/vnd.maetok-lab.summary+json"


def report(*runs: Run | str | Path, **numbers: float | int | str | bool | None) -> None:
    """Show a notebook's final `numbers` as a table, and the `runs` it made; the last cell of a notebook calls it.

    Numbers may be tensors or numpy values of one element. Raises TypeError for anything that is no single value.
    """
    plain = {name: _scalar(name, value) for name, value in numbers.items()}
    folders = [str(getattr(run, "folder", run)) for run in runs]
    text = table(plain, folders)
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return print(text)
    if get_ipython() is None:
        return print(text)
    data = {"numbers": plain, "runs": [os.path.abspath(folder) for folder in folders]}
    display({MIME: data, "text/html": _html(plain, folders), "text/plain": text}, raw=True)


def table(numbers: Mapping[str, Any], runs: list[str]) -> str:
    """The numbers as aligned lines of text, then one line a run."""
    rows = [(name.replace("_", " "), _shown(value)) for name, value in numbers.items()]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(
        [f"  {name:<{width}}  {value}" for name, value in rows]
        + [f"  run {folder}" for folder in runs]
    )


def collect(cells: list[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What the `report` calls of an executed notebook said: all numbers, and the folders of all runs."""
    numbers: dict[str, Any] = {}
    runs: list[str] = []
    for cell in cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(MIME)
            if data:
                numbers |= data["numbers"]
                runs += [run for run in data["runs"] if run not in runs]
    return numbers, runs


def _scalar(name: str, value: Any) -> Any:
    if hasattr(value, "item") and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    if not isinstance(value, str | bool | int | float | None):
        raise TypeError(
            f"report needs one number or string for {name!r}, not {type(value).__name__}"
        )
    return value


def _shown(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else "not finite"
        if value is None
        else str(value)
    )


def _html(numbers: Mapping[str, Any], runs: list[str]) -> str:
    cells = [
        (html.escape(name.replace("_", " ")), html.escape(_shown(value)))
        for name, value in numbers.items()
    ]
    rows = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td>{value}</td></tr>" for name, value in cells
    )
    items = "".join(f"<li><code>{html.escape(run)}</code></li>" for run in runs)
    return f"<table>{rows}</table>" + (f"<p>Runs:</p><ul>{items}</ul>" if items else "")
