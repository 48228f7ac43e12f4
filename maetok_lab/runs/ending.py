"""A run's end: summary.json, written last, and the files that its numbers rest on."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maetok_lab.files import read_record, sync_folder, write_json
from maetok_lab.runs.provenance import now


@dataclasses.dataclass(frozen=True)
class Ending:
    """What summary.json says, and what keeps it from being true."""

    numbers: dict[str, Any]  # with "ended", the time
    problem: str | None = None  # None: the run is finished


def write_ending(folder: Path, numbers: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write summary.json, once everything that it names is on disk."""
    # a power cut must not leave the word without the work: files are synced as they are written
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        with open(metrics, "rb+") as file:
            os.fsync(file.fileno())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    sync_folder(folder)
    write_json(folder / "summary.json", {**numbers, "ended": now(), "files": sizes})


def read_ending(folder: Path) -> Ending | None:
    """How a run ended, None where it did not; its files are looked for, not read."""
    try:
        numbers = read_record(folder / "summary.json", needs=["ended"])
    except FileNotFoundError:
        return None
    except ValueError as problem:
        return Ending({}, str(problem))

    # those of the first edition name none
    sizes = numbers.pop("files", {})
    for name, size in sizes.items():
        file = os.path.join(folder, name)  # a Path each would take longer than the look at it
        try:
            actual = os.stat(file).st_size
        except FileNotFoundError:
            return Ending(numbers, f"{file} is gone")
        if actual != size:
            return Ending(numbers, f"{file} is damaged: it has {actual} bytes, not {size}")
    return Ending(numbers)
