"""A run's checkpoints: where tensors are written and read back.

    runs/NAME/checkpoints/step-0000100/  model.safetensors ema.safetensors ... state.json

One safetensors file a group of tensors; `state.json` holds what is no tensor, and the hash of each
file. Nothing that is loaded can execute code.
"""

import dataclasses
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from maetok_lab.files import not_written, read_json, write_json
from maetok_lab.identity import file_hash
from maetok_lab.runs.weights import write_tensors


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
    # what is half-written or half-deleted has a dot before its name
    folders = (run_folder / "checkpoints").glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def write_checkpoint(
    run_folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write one checkpoint under a temporary name, then rename it: it is there whole or not at all.

    Raises OSError when it cannot be written (a full disk), which names the last good checkpoint.
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
        record = {"step": step, "state": dict(state), "sha256": hashes}
        write_json(temporary / "state.json", record)
    # safetensors has an error of its own for a full disk
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(temporary, ignore_errors=True)  # frees what the half-written files took
        remains = "there is none before it"
        if steps := steps_on_disk(run_folder):
            remains = f"the last good one is that of step {steps[-1]}"
        size = 0
        for group in tensors.values():
            size += sum(value.nbytes for value in group.values())
        subject = f"the checkpoint of step {step}"
        raise not_written(subject, run_folder, size, problem, remains) from problem

    # a damaged checkpoint of this step may be there: it goes as a whole before the new one comes
    if folder.exists():
        delete_checkpoint(run_folder, step)
    os.replace(temporary, folder)
    return folder


def read_checkpoint(run_folder: Path, step: int, groups: Collection[str] | None) -> Checkpoint:
    """The checkpoint of a step with the named groups (None: all), each file checked by its hash.

    Raises ValueError when there is none, or when it is damaged.
    """
    folder = step_folder(run_folder, step)
    if not (folder / "state.json").exists():
        raise ValueError(
            f"run {run_folder.name} has no checkpoint of step {step}; "
            f"it has {steps_on_disk(run_folder)}"
        )
    record = read_json(folder / "state.json")
    tensors = {}
    for name, expected in record["sha256"].items():
        file = folder / name
        # a damaged file of a group that is not read does not matter
        if groups is not None and file.stem not in groups:
            continue
        if not file.exists() or file_hash(file) != expected:
            raise ValueError(f"checkpoint file {file} is damaged")
        tensors[file.stem] = load_file(file)
    return Checkpoint(folder, step, tensors, record["state"])


def delete_checkpoint(run_folder: Path, step: int) -> None:
    """Delete a checkpoint; it stops counting at once, so that a half-deleted one is never read."""
    folder = step_folder(run_folder, step)
    grave = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(grave, ignore_errors=True)
    os.replace(folder, grave)
    shutil.rmtree(grave)
