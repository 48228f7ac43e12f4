"""What can be freed: superseded checkpoints of finished runs, and leftovers of kills."""

import os
import re
import shutil
from pathlib import Path

import pandas as pd

from maetok_lab.runs.checkpoints import step_folder
from maetok_lab.runs.locks import RunLocked, lock_folder
from maetok_lab.runs.run import Run, runs_root

# Names under which a killed process leaves what it was writing.
TEMPORARY = re.compile(
    r"\.step-\d+\.(tmp|removed)"  # checkpoints
    r"|\..+\.\d+\.[0-9a-f]{8}"  # files.atomic_path
    r"|lock\.break\..+|lock\.json"  # filelock's, and the lock of the first edition
)

INSIDE = ("checkpoints", "samples", "latents")  # folders of a run that are written while it runs


def prunable(root: str | Path | None = None) -> pd.DataFrame:
    """What `prune` would free, one row a file or folder: run, what, bytes, path.

    Of a finished run every checkpoint but the newest and the milestones (`Run.keep_milestones`); of
    any run what a killed process left half-written. Runs that are being written are left alone.
    """
    rows = []
    for folder in _folders(runs_root(root)):
        # Under the lock nobody else writes there: what is half-written was left by a kill.
        try:
            lock = lock_folder(folder)
        except RunLocked:
            continue
        try:
            for path in _leftovers(folder):
                rows.append((folder.name, "left by a kill", _size(path), str(path)))
            if (folder / "config.json").exists() and (run := Run(folder)).finished:
                for step in run.superseded(keep=1):
                    path = step_folder(folder, step)
                    rows.append((folder.name, f"checkpoint {step}", _size(path), str(path)))
        finally:
            lock.release()
    return pd.DataFrame(rows, columns=["run", "what", "bytes", "path"])


def prune(table: pd.DataFrame) -> int:
    """Free what `prunable` lists, run by run under the run's lock; -> bytes freed.

    Raises RunLocked if somebody writes there by now.
    """
    freed = 0
    for path, size in zip(map(Path, table["path"]), table["bytes"]):
        # the lock is the run's, wherever in it the file lies
        folder = path.parent
        if folder.name in INSIDE:
            folder = folder.parent
        lock = lock_folder(folder)
        try:
            # a checkpoint goes in one step, so that a reader never meets half of it
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
    """Runs, and what is no run but written under the same kind of lock: notebooks and sweeps."""
    folders = [path.parent for path in root.glob("*/config.json")]
    for kind in ("notebooks", "sweeps"):
        folders += [path for path in (root / kind).glob("*") if path.is_dir()]
    return sorted(folders)


def _leftovers(folder: Path) -> list[Path]:
    """Half-written files and folders, wherever a run writes."""
    paths = []
    for inside in ("", *INSIDE):
        for path in sorted((folder / inside).glob("*")):
            if TEMPORARY.fullmatch(path.name):
                paths.append(path)
    return paths


def _size(path: Path) -> int:
    """Bytes on disk of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    size = 0
    for place, _, names in os.walk(path):
        size += sum(os.path.getsize(Path(place) / name) for name in names)
    return size
