"""What can be freed: superseded checkpoints of finished runs, and leftovers of kills."""

import os
import re
import shutil
from pathlib import Path

import pandas as pd

from maetok_lab.runs.checkpoints import STEP_FOLDER, step_folder
from maetok_lab.runs.locks import RunLocked, lock_folder
from maetok_lab.runs.names import runs_root
from maetok_lab.runs.run import Run

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
    any run what a killed process left half-written. Runs that are being written are left alone;
    what could not be looked at is in `.attrs["left_alone"]`, a line each.
    """
    rows = []
    left_alone = []
    for folder in _folders(runs_root(root)):
        # Under the lock nobody else writes there: what is half-written was left by a kill.
        try:
            with lock_folder(folder):
                rows += _of_folder(folder)
        except RunLocked:
            continue
        except (OSError, ValueError) as problem:
            left_alone.append(f"{folder}: {problem}")
    table = pd.DataFrame(rows, columns=["run", "what", "bytes", "path"])
    table.attrs["left_alone"] = left_alone
    return table


def prune(table: pd.DataFrame) -> tuple[int, list[str]]:
    """Free what `prunable` lists, run by run under the run's lock.

    -> bytes freed, and a line for each path that was left alone: somebody writes there by now, or
    it cannot be removed
    """
    freed = 0
    left_alone = []
    for path, size in zip(map(Path, table["path"]), table["bytes"]):
        # the lock is the run's, wherever in it the file lies
        folder = path.parent
        if folder.name in INSIDE:
            folder = folder.parent
        try:
            with lock_folder(folder):
                _remove(path, folder)
            freed += size
        except (RunLocked, OSError, ValueError) as problem:
            left_alone.append(f"{path}: {problem}")
    return freed, left_alone


def _of_folder(folder: Path) -> list[tuple[str, str, int, str]]:
    """The rows of one folder."""
    rows = []
    for path in _leftovers(folder):
        rows.append((folder.name, "left by a kill", _size(path), str(path)))
    if (folder / "config.json").exists() and (run := Run(folder)).finished:
        for step in run.superseded(keep=1):
            path = step_folder(folder, step)
            rows.append((folder.name, f"checkpoint {step}", _size(path), str(path)))
    return rows


def _remove(path: Path, folder: Path) -> None:
    # a checkpoint goes in one step, so that a reader never meets half of it
    if match := STEP_FOLDER.fullmatch(path.name):
        Run(folder).remove_checkpoint(int(match[1]))
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:  # of a link only itself goes
        path.unlink(missing_ok=True)


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
    """Bytes on disk of a file or link, or of all files below a folder."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    size = 0
    for place, _, names in os.walk(path):
        size += sum((Path(place) / name).lstat().st_size for name in names)
    return size
