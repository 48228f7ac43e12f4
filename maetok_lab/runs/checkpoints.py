"""A run's checkpoints: where tensors are written and read back.

    runs/NAME/checkpoints/step-0000100/  model.safetensors ema.safetensors ... state.json

One safetensors file a group of tensors; `state.json` holds what is no tensor, the hash of each file
and the fingerprint of the run's config. Nothing that is loaded can execute code. Folders with other
names beside them ("step-0000100-best") are a person's own.
"""

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from maetok_lab.files import (
    check_fence,
    is_full,
    no_room,
    read_json,
    read_record,
    sync_folder,
    write_json,
)
from maetok_lab.identity import file_hash
from maetok_lab.runs.weights import write_tensors

STEP_FOLDER = re.compile(r"step-(\d{7,})")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One saved step: named groups of tensors ("model", "ema", "optimizer"...) and a JSON state."""

    folder: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def step_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or goes."""
    return run_folder / "checkpoints" / f"step-{step:07d}"


def steps_on_disk(run_folder: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    try:
        names = os.listdir(run_folder / "checkpoints")
    except FileNotFoundError:
        return []
    # what is half-written or half-deleted has a dot before its name
    matches = map(STEP_FOLDER.fullmatch, names)
    return sorted(int(match[1]) for match in matches if match)


def write_checkpoint(
    run_folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    *,
    fingerprint: str,
) -> Path:
    """Write one checkpoint under a temporary name, then rename it: it is there whole or not at all.

    `fingerprint` is that of the run's config. Raises OSError when it cannot be written (a full
    disk), which names the last good checkpoint.
    """
    folder = step_folder(run_folder, step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # as a kill left it

    hashes = {}
    try:
        temporary.mkdir(parents=True)
        for group in sorted(tensors):
            file = temporary / f"{group}.safetensors"
            write_tensors(file, tensors[group])
            hashes[file.name] = file_hash(file)
        record = {"step": step, "run": fingerprint, "state": dict(state), "sha256": hashes}
        write_json(temporary / "state.json", record)
    except OSError as problem:
        shutil.rmtree(temporary, ignore_errors=True)  # frees what the half-written files took
        remains = "there is none before it"
        if steps := steps_on_disk(run_folder):
            remains = f"the last good one is that of step {steps[-1]}"
        size = 0
        for group in tensors.values():
            size += sum(value.nbytes for value in group.values())
        subject = f"the checkpoint of step {step} was not written to {run_folder}; {remains}"
        if is_full(problem, run_folder):
            raise no_room(subject, run_folder, problem, size) from problem
        raise OSError(problem.errno, f"{subject}: {problem}") from problem

    # a damaged checkpoint of this step may be there: it goes as a whole before the new one comes
    check_fence(folder)
    if folder.exists():
        delete_checkpoint(run_folder, step)
    os.replace(temporary, folder)
    sync_folder(folder.parent)
    return folder


def read_checkpoint(run_folder: Path, step: int, groups: Collection[str] | None) -> Checkpoint:
    """The checkpoint of a step with the named groups (None: all), each file checked by its hash.

    Raises ValueError when there is none, or when it is damaged.
    """
    folder = step_folder(run_folder, step)
    record = read_state(run_folder, step)
    tensors = {}
    for name, expected in record["sha256"].items():
        file = folder / name
        # a damaged file of a group that is not read does not matter
        if groups is not None and file.stem not in groups:
            continue
        if not _is_whole(file, expected):
            raise ValueError(f"checkpoint file {file} is damaged")
        tensors[file.stem] = load_file(file)
    return Checkpoint(folder, step, tensors, record["state"])


def read_state(run_folder: Path, step: int) -> dict[str, Any]:
    """A checkpoint's record: `step`, `run`, `state`, and `sha256` of each file of tensors.

    Raises ValueError when there is none, or when it is damaged.
    """
    path = step_folder(run_folder, step) / "state.json"
    if not path.exists():
        raise ValueError(
            f"run {run_folder.name} has no checkpoint of step {step}; "
            f"it has {steps_on_disk(run_folder)}"
        )
    record = read_record(path, needs=("state", "sha256"))
    if not isinstance(record["sha256"], dict) or not isinstance(record["state"], dict):
        raise ValueError(f"{path} is damaged: it lists no files")
    return record


def read_milestones(run_folder: Path) -> list[int]:
    """Steps whose checkpoints stay; all that there are where the list of them is damaged."""
    path = run_folder / "milestones.json"
    if not path.exists():
        return []
    try:
        steps = read_json(path)
    except ValueError:
        steps = None
    if isinstance(steps, list) and all(isinstance(step, int) for step in steps):
        return steps
    warnings.warn(f"{path} is no list of steps: all checkpoints are kept", stacklevel=3)
    return steps_on_disk(run_folder)


def damaged_file(run_folder: Path, step: int) -> Path | None:
    """The first file of a checkpoint that is not as it was written; None where all are whole.

    Raises ValueError as `read_state` does.
    """
    for name, expected in read_state(run_folder, step)["sha256"].items():
        file = step_folder(run_folder, step) / name
        if not _is_whole(file, expected):
            return file
    return None


def _is_whole(file: Path, expected: str) -> bool:
    return file.exists() and file_hash(file) == expected


def delete_checkpoint(run_folder: Path, step: int) -> None:
    """Delete a checkpoint; it stops counting at once, so that a half-deleted one is never read."""
    folder = step_folder(run_folder, step)
    grave = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(grave, ignore_errors=True)
    os.replace(folder, grave)
    shutil.rmtree(grave)
