"""Runs side by side: how their configs differ, how a loss fell, which pictures they left, which notebook made them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.files import read_json
from maetok_lab.runs.run import Run, runs_root


def config_differences(runs: Iterable[Run]) -> pd.DataFrame:
    """The fields in which the runs' configs are not all alike: one row a field, one column a run; "" where one has it not."""
    flat = {run.name: {"class": run.class_name} | dict(_leaves(run.config)) for run in runs}
    fields = dict.fromkeys(field for values in flat.values() for field in values)
    rows = {field: [str(values.get(field, "")) for values in flat.values()] for field in fields}
    different = {field: values for field, values in rows.items() if len(set(values)) > 1}
    return pd.DataFrame.from_dict(different, orient="index", columns=list(flat))


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    parts = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if parts is None or not value:
        yield path, value
        return
    for key, part in parts:
        yield from _leaves(part, f"{path}.{key}" if path else str(key))


def loss_lines(
    runs: Iterable[Run], column: str, *, split: str = "train"
) -> dict[str, pd.DataFrame]:
    """`step`, `images` and one logged column of each run that has it, by the run's name."""
    found = {}
    for run in runs:
        table = run.metrics(split)
        if column in table:
            kept = [name for name in ("step", "images", column) if name in table]
            found[run.name] = table[kept].dropna().reset_index(drop=True)
    return found


def logged_columns(runs: Iterable[Run], *, split: str = "train") -> list[str]:
    """Every column that some run logged, those most runs have first, without counters."""
    tables = [run.metrics(split) for run in runs]
    counts: dict[str, int] = {}
    for name in (name for table in tables for name in table.columns):
        counts[name] = counts.get(name, 0) + 1
    left_out = {"step", "images", "split", "skipped"}
    return sorted(
        (name for name in counts if name not in left_out),
        key=lambda name: (-counts[name], "/" in name, name),
    )


def sample_pictures(run: Run) -> dict[int, Path]:
    """The pictures a run left while it trained, by step."""
    return {
        int(path.stem[5:]): path for path in sorted((run.folder / "samples").glob("step-*.png"))
    }


def notebooks_of(run: Run, root: str | Path | None = None) -> list[Path]:
    """The executed notebooks that reported this run, as pages where there are some."""
    found = []
    for path in sorted((runs_root(root) / "notebooks").glob("*/summary.json")):
        made = {
            os.path.normpath(path.parent / folder) for folder in read_json(path).get("runs", [])
        }
        if os.path.normpath(run.folder) in made:
            pages = [path.with_name(name) for name in ("notebook.html", "notebook.ipynb")]
            found += [page for page in pages if page.exists()][:1]
    return found
