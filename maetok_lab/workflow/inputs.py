"""What a notebook read beside its code: runs, weights and images, each with a hash of its content.

A stored result is stale when one of them is another one now. Paths are relative to the result's
folder, so that a runs folder can be moved as a whole.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maetok_lab.files import read_json
from maetok_lab.identity import fingerprint_of
from maetok_lab.runs import Run, runs_root
from maetok_lab.walking import walk


def content_of_inputs(
    values: Mapping[str, Any], made_runs: Iterable[Path], folder: Path
) -> dict[str, str]:
    """Path relative to `folder` -> content, of all that a notebook with parameters `values` read.

    That is what its parameters name, and the parents on record of the runs it made; not those runs.
    """
    places = set()
    for name, value in values.items():
        if name != "runs":  # says where, not what
            places |= _places(value, values.get("runs"))
    # What a run took from another one is on its record, whatever the notebook's parameters were.
    for run in made_runs:
        record = run / "provenance.json"
        if record.exists():
            places |= {run.parent / parent["run"] for parent in read_json(record)["parents"]}

    contents = {}
    for place in sorted(places.difference(made_runs)):
        if os.path.exists(place):  # unlike Path.exists, never raises: a value may be any text
            contents[os.path.relpath(place, folder)] = content(place)
    return contents


def changed_inputs(contents: Mapping[str, str], folder: Path) -> list[Path]:
    """The inputs whose content is another now than `contents` (of `content_of_inputs`) says.

    One that is gone does not count as changed: what it gave is in the stored result.
    """
    changed = []
    for relative, stored in contents.items():
        place = Path(os.path.normpath(folder / relative))
        if place.exists() and content(place) != stored:
            changed.append(place)
    return changed


def content(place: Path) -> str:
    """A run's fingerprint and weights, or a hash over the files of anything else."""
    if (place / "provenance.json").exists():
        run = Run(place)
        return f"{run.fingerprint} {run.checkpoint_hash()}"
    # Sizes and times, not bytes: ImageNet is 150 GB. So a file that is only touched counts too.
    facts = []
    for name in walk(place).paths() if place.is_dir() else ["."]:
        status = (place / name).stat()
        facts.append([name, status.st_size, status.st_mtime_ns])
    return fingerprint_of(facts)


def _places(value: Any, runs: str | None) -> set[Path]:
    """Where what a parameter names may be: runs, files and folders, and what is shipped."""
    if isinstance(value, list):
        return set().union(*(_places(item, runs) for item in value))
    if not isinstance(value, str) or not value:
        return set()
    # Kernels work in the folder that holds runs/ and data/. Absolute paths stay what they are.
    home = runs_root().absolute().parent
    return {
        runs_root(runs).absolute() / value,
        home / os.path.expanduser(value),
        home / "data" / f"{value}.parquet",  # "emoji"
        home / "data" / value.replace("shipped/", "pretrained/"),  # "shipped/tokenizer"
    }
