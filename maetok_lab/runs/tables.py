"""Runs side by side: which there are, how their configs differ, how a loss fell, what they left."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.files import read_record
from maetok_lab.runs.ending import read_ending
from maetok_lab.runs.names import runs_root
from maetok_lab.runs.run import Run

COUNTERS = {"step", "images", "split", "skipped"}  # columns of the metrics that are no measurement


def list_runs(root: str | Path | None = None) -> pd.DataFrame:
    """One row a run under `root`: name, class, state, start, fingerprint, its summary's numbers.

    What is wrong with a run is in `problem`; of one whose config cannot be read `kind` is empty.
    """
    rows = []
    for path in sorted(runs_root(root).glob("*/config.json")):
        # whatever one folder is like, the others are listed
        row = {"run": path.parent.name, "kind": None, "finished": False}
        problems: list[str] = []
        try:
            _describe(Run(path.parent), row, problems)
        except (OSError, ValueError) as problem:
            problems.append(str(problem))
        if problems:
            row["problem"] = "; ".join(problems)
        rows.append(row)
    return pd.DataFrame(rows)


def _describe(run: Run, row: dict[str, Any], problems: list[str]) -> None:
    """Put what is known of a run into its row."""
    row["kind"] = run.class_name
    row["fingerprint"] = run.fingerprint
    ending = read_ending(run.folder)
    if ending and ending.problem:
        problems.append(ending.problem)
    row["finished"] = ending is not None and not ending.problem
    steps = run.checkpoint_steps()
    row["step"] = steps[-1] if steps else None  # of the newest checkpoint
    # a summary may hold text, lists and tables too
    numbers = ending.numbers if row["finished"] else {}
    try:
        row["started"] = run.provenance.get("started")
    except (OSError, ValueError) as problem:
        problems.append(str(problem))
    for name, value in numbers.items():
        if isinstance(value, int | float):
            row[name] = value


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
    pictures = {}
    for path in sorted((run.folder / "samples").glob("step-*.png")):
        # others, such as step-0000020-best.png, are a person's own
        if path.stem[5:].isdecimal():
            pictures[int(path.stem[5:])] = path
    return pictures


def notebooks_of(run: Run, root: str | Path | None = None) -> list[Path]:
    """The executed notebooks that reported this run, as HTML pages where there are some."""
    pages = []
    for path in sorted((runs_root(root) / "notebooks").glob("*/summary.json")):
        try:
            folders = read_record(path, needs=["runs"])["runs"]
        except (OSError, ValueError):  # that notebook is run again by whoever needs it
            continue
        # a notebook's summary names its runs relative to its own folder
        reported = {os.path.normpath(path.parent / folder) for folder in folders}
        if os.path.normpath(run.folder) not in reported:
            continue
        # the page where the export worked, else the notebook
        for name in ("notebook.html", "notebook.ipynb"):
            if path.with_name(name).exists():
                pages.append(path.with_name(name))
                break
    return pages
