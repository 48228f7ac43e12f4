"""Runs side by side: which there are, how their configs differ, how a loss fell, what they left."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.files import read_json
from maetok_lab.runs.run import Run, runs_root

COUNTERS = {"step", "images", "split", "skipped"}  # columns of the metrics that are no measurement


def list_runs(root: str | Path | None = None) -> pd.DataFrame:
    """One row a run under `root`: name, class, state, start, fingerprint, its summary's numbers."""
    rows = []
    for path in sorted(runs_root(root).glob("*/config.json")):
        run = Run(path.parent)
        steps = run.checkpoint_steps()
        row = {
            "run": run.name,
            "kind": run.class_name,
            "finished": run.finished,
            "step": steps[-1] if steps else None,  # of the newest checkpoint
            "started": run.provenance.get("started"),
            "fingerprint": run.fingerprint,
        }
        # a summary may hold text, lists and tables too
        for name, value in run.summary.items():
            if isinstance(value, int | float):
                row[name] = value
        rows.append(row)
    return pd.DataFrame(rows)


def config_differences(runs: Iterable[Run]) -> pd.DataFrame:
    """The fields in which the runs' configs are not all alike: one row a field, one column a run.

    "" where a run's config has no such field.
    """
    columns = {run.name: {"class": run.class_name} | dict(_leaves(run.config)) for run in runs}
    table = pd.DataFrame(columns).fillna("")
    return table[table.nunique(axis=1) > 1]


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """(dotted path, text) of every value that is not nested any further."""
    # an empty list is a value: without it "no targets" would look like "no such field"
    if isinstance(value, Mapping) and value:
        parts = value.items()
    elif isinstance(value, list) and value:
        parts = enumerate(value)
    else:
        yield path, str(value)
        return
    for key, part in parts:
        yield from _leaves(part, f"{path}.{key}" if path else str(key))


def loss_lines(runs: Iterable[Run], column: str) -> dict[str, pd.DataFrame]:
    """`step`, `images` and one training loss of each run that logged it, by the run's name."""
    lines = {}
    for run in runs:
        table = run.metrics("train")
        # losses of auxiliary targets are logged by the runs that have them only
        if column in table:
            names = [name for name in ("step", "images", column) if name in table]
            lines[run.name] = table[names].dropna().reset_index(drop=True)
    return lines


def logged_columns(runs: Iterable[Run], *, split: str = "train") -> list[str]:
    """Every measurement that some run logged; those that most runs have come first."""
    counts = Counter()
    for run in runs:
        counts.update(run.metrics(split).columns)
    # with as many runs, the totals ("pixel") before their parts ("auxiliary/hog")
    return sorted(counts.keys() - COUNTERS, key=lambda name: (-counts[name], "/" in name, name))


def sample_pictures(run: Run) -> dict[int, Path]:
    """The pictures a run left while it trained, by step."""
    paths = sorted((run.folder / "samples").glob("step-*.png"))
    return {int(path.stem[5:]): path for path in paths}


def notebooks_of(run: Run, root: str | Path | None = None) -> list[Path]:
    """The executed notebooks that reported this run, as HTML pages where there are some."""
    pages = []
    for path in sorted((runs_root(root) / "notebooks").glob("*/summary.json")):
        # a notebook's summary names its runs relative to its own folder
        reported = {
            os.path.normpath(path.parent / folder) for folder in read_json(path).get("runs", [])
        }
        if os.path.normpath(run.folder) not in reported:
            continue
        # the page where the export worked, else the notebook
        for name in ("notebook.html", "notebook.ipynb"):
            if path.with_name(name).exists():
                pages.append(path.with_name(name))
                break
    return pages
