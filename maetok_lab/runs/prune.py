"""What can be freed: superseded checkpoints of finished runs, and leftovers of processes that were killed."""

import os
import re
import shutil
from pathlib import Path

import pandas as pd

from maetok_lab.runs.locks import RunLock, RunLocked
from maetok_lab.runs.run import Run, runs_root

TEMPORARY = re.compile(
    r"\.step-\d+\.(tmp|removed)|\..+\.\d+\.[0-9a-f]{8}"
)  # of checkpoints, and of files.atomic_path


def prunable(root: str | Path | None = None) -> pd.DataFrame:
    """What `prune` would free, one row a file or folder: run, what, bytes, path.

    Of a finished run every checkpoint but the newest and the milestones (`Run.keep_milestones`); of any run that nobody is
    writing what a killed process left half-written. Runs being written are left alone.
    """
    rows = []
    for folder in _folders(runs_root(root)):
        try:
            lock = RunLock(folder / "lock.json")
        except RunLocked:
            continue
        try:
            rows += [
                (folder.name, "left by a kill", _size(path), str(path))
                for path in _leftovers(folder)
            ]
            if (folder / "config.json").exists() and (run := Run(folder)).finished:
                paths = [
                    (step, folder / "checkpoints" / f"step-{step:07d}")
                    for step in run.superseded(1)
                ]
                rows += [
                    (folder.name, f"checkpoint {step}", _size(path), str(path))
                    for step, path in paths
                ]
        finally:
            lock.release()
    return pd.DataFrame(rows, columns=["run", "what", "bytes", "path"])


def prune(found: pd.DataFrame) -> int:
    """Free what `prunable` found, run by run under the run's lock; -> bytes freed. Raises RunLocked if somebody writes there."""
    freed = 0
    for path, size in zip(map(Path, found["path"]), found["bytes"]):
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        lock = RunLock(folder / "lock.json")
        try:
            if path.name.startswith("step-"):
                Run(folder).remove_checkpoint(int(path.name[5:]))
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            freed += size
        finally:
            lock.release()
    return freed


def _folders(root: Path) -> list[Path]:
    """Runs, the folders of executed notebooks, and sweeps."""
    runs = [path.parent for path in root.glob("*/config.json")]
    return sorted(
        [
            *runs,
            *(
                path
                for kind in ("notebooks", "sweeps")
                for path in (root / kind).glob("*")
                if path.is_dir()
            ),
        ]
    )


def _leftovers(folder: Path) -> list[Path]:
    places = [folder, folder / "checkpoints", folder / "samples", folder / "latents"]
    return [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if TEMPORARY.fullmatch(path.name)
    ]


def _size(path: Path) -> int:
    """Bytes on disk of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        os.path.getsize(Path(place) / name) for place, _, names in os.walk(path) for name in names
    )
