"""Own one run folder: config, provenance, metrics, checkpoints, lock.

    runs/NAME/config.json provenance.json metrics.jsonl checkpoints/step-0000100/ samples/ notebook.ipynb summary.json

Everything is written under a temporary name and renamed, so a reader never meets half a file; `summary.json` is written
last, and its presence means that the run finished. Nothing that is loaded from a run can execute code: safetensors and JSON.
"""

import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maetok_lab.config import differing_fields, fingerprint, fingerprint_of, from_json, to_json
from maetok_lab.runs.events import Events
from maetok_lab.files import finite, not_written, read_json, read_json_lines, sha256, write_json
from maetok_lab.hints import did_you_mean
from maetok_lab.runs.locks import RunLock
from maetok_lab.runs.provenance import now, provenance

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def runs_root(path: str | Path | None = None) -> Path:
    """Where runs live: `path`, or `runs/` in the checkout that holds the library, or `runs/` in the working directory."""
    if path is not None:
        return Path(path)
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One saved step: named groups of tensors ("model", "ema", "optimizer", ...) and a JSON state."""

    folder: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


class Run:
    """A run folder. `Run.open` makes or continues one and holds its lock; `Run(folder)` only reads."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "config.json").exists():
            siblings = [p.parent.name for p in self.folder.parent.glob("*/config.json")]
            hint = did_you_mean(self.folder.name, siblings) if siblings else ""
            raise FileNotFoundError(f"{self.folder} is not a run: it has no config.json{hint}")
        record = read_json(self.folder / "config.json")
        self.name = self.folder.name
        self.class_name, self.config, self.fingerprint = (
            record["class"],
            record["config"],
            record["fingerprint"],
        )
        self._lock: RunLock | None = None
        self._events = Events(self.folder / "tensorboard")

    @classmethod
    def open(
        cls,
        name: str,
        config: Any,
        *,
        root: str | Path | None = None,
        parents: Iterable["Run"] = (),
    ) -> "Run":
        """Make run `name` with a config dataclass, or continue it when its fingerprint is the same.

        Raises ValueError for a name that is no plain folder name or a run made with another config (listing the fields that
        differ), RunLocked when another live process writes it, and OSError for a folder that cannot be written.
        """
        folder = runs_root(root) / checked_name(name)
        record = {
            "class": type(config).__name__,
            "fingerprint": fingerprint(config),
            "config": to_json(config),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(folder / "lock.json")
        except OSError as problem:
            reason = f"cannot write the run {folder} ({problem.strerror}); choose a runs folder that can be written: runs=FOLDER"
            raise type(problem)(problem.errno, reason) from None
        try:
            if not (folder / "config.json").exists():
                write_json(
                    folder / "provenance.json",
                    provenance() | {"parents": [_parent(run) for run in parents]},
                )
                write_json(folder / "config.json", record)
            run = cls(folder)
            if run.fingerprint != record["fingerprint"]:
                lines = differing_fields(
                    json.loads(json.dumps(finite(record["config"]))), run.config
                )
                raise ValueError(
                    f"run {name} was made with another config; choose another name. It differs in:\n  "
                    + "\n  ".join(lines or [f"class: {record['class']}, not {run.class_name}"])
                )
        except BaseException:
            lock.release()
            raise
        run._lock = lock
        return run

    def load_config(self, config_class: type) -> Any:
        """The run's config as the dataclass it was made from; another class is an error."""
        if config_class.__name__ != self.class_name:
            raise ValueError(
                f"run {self.name} holds a {self.class_name}, not a {config_class.__name__}"
            )
        return from_json(config_class, self.config)

    # State ------------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    @property
    def summary(self) -> dict[str, Any]:
        """Final numbers; {} while the run is not finished."""
        return read_json(self.folder / "summary.json") if self.finished else {}

    @property
    def provenance(self) -> dict[str, Any]:
        return read_json(self.folder / "provenance.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the final numbers and give up the lock."""
        write_json(self.folder / "summary.json", {**summary, "ended": now()})
        self.close()

    def close(self) -> None:
        """Give up the lock; the run can be continued later."""
        self._events.close()
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Metrics ----------------------------------------------------------------------------------------------------------

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one event, at least {"step": ..., "split": ...}, to metrics.jsonl (and TensorBoard files: see `events`)."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(finite(dict(record))) + "\n")
        self._events.add(record)

    def metrics(self, split: str | None = None) -> pd.DataFrame:
        """All logged events as a table, or those of one split ("train", "val")."""
        path = self.folder / "metrics.jsonl"
        table = pd.DataFrame(read_json_lines(path) if path.exists() else [])
        return (
            table
            if split is None or table.empty
            else table[table["split"] == split].dropna(axis=1, how="all")
        )

    def rewind_metrics(self, step: int) -> None:
        """Drop events after `step`: what a resumed run is about to log again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(line) for line in read_json_lines(path) if line["step"] <= step]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, path)
        self._events.rewind(step)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        *,
        keep: int = 2,
    ) -> Path:
        """Write one checkpoint whole, then remove all but the newest `keep` and milestones. Each file's SHA-256 goes with it.

        Raises OSError when it cannot be written (a full disk), which names the last good checkpoint: nothing else is touched.
        """
        folder = self.folder / "checkpoints" / f"step-{step:07d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for group, values in tensors.items():
                plain = {key: value.detach().contiguous().cpu() for key, value in values.items()}
                save_file(plain, temporary / f"{group}.safetensors")
            hashes = {path.name: sha256(path) for path in sorted(temporary.glob("*.safetensors"))}
            write_json(
                temporary / "state.json", {"step": step, "state": dict(state), "sha256": hashes}
            )
        except (
            OSError,
            SafetensorError,
        ) as problem:  # safetensors has an error of its own for a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            steps = self.checkpoint_steps()
            last = (
                f"the last good one is that of step {steps[-1]}"
                if steps
                else "there is none before it"
            )
            size = sum(value.nbytes for group in tensors.values() for value in group.values())
            raise not_written(
                f"the checkpoint of step {step}", self.folder, size, problem, last
            ) from problem
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        for old in self.superseded(keep) if keep else []:
            self.remove_checkpoint(old)
        return folder

    def keep_milestones(self, *steps: int) -> None:
        """The checkpoints of these steps, once written, are never removed: not by newer ones, not by `prune`."""
        write_json(self.folder / "milestones.json", sorted({*self.milestones(), *steps}))

    def milestones(self) -> list[int]:
        """Steps whose checkpoints stay."""
        path = self.folder / "milestones.json"
        return read_json(path) if path.exists() else []

    def superseded(self, keep: int) -> list[int]:
        """Steps of checkpoints that are neither among the newest `keep` (at least 1) nor milestones."""
        return [step for step in self.checkpoint_steps()[:-keep] if step not in self.milestones()]

    def remove_checkpoint(self, step: int) -> None:
        """Delete a checkpoint; it stops counting as one at once, so that a half-deleted one is never read."""
        folder = self.folder / "checkpoints" / f"step-{step:07d}"
        grave = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(grave, ignore_errors=True)
        os.replace(folder, grave)
        shutil.rmtree(grave)

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*"))

    def load_checkpoint(
        self, step: int | None = None, *, groups: Iterable[str] | None = None
    ) -> Checkpoint | None:
        """A checkpoint (the newest sound one by default), all its groups of tensors or those named; None if there is none.

        A damaged newest checkpoint is passed over with a warning that names it; a damaged one asked for by step is an error.
        """
        if step is not None:
            return self._read_checkpoint(step, groups)
        for candidate in reversed(self.checkpoint_steps()):
            try:
                return self._read_checkpoint(candidate, groups)
            except ValueError as problem:
                warnings.warn(f"{problem}; falling back to the checkpoint before it", stacklevel=2)
        return None

    def _read_checkpoint(self, step: int, groups: Iterable[str] | None) -> Checkpoint:
        folder = self.folder / "checkpoints" / f"step-{step:07d}"
        if not (folder / "state.json").exists():
            raise ValueError(
                f"run {self.name} has no checkpoint of step {step}; it has {self.checkpoint_steps()}"
            )
        record = read_json(folder / "state.json")
        wanted = [
            name
            for name in record["sha256"]
            if groups is None or name.removesuffix(".safetensors") in set(groups)
        ]
        for name in wanted:
            if not (folder / name).exists() or sha256(folder / name) != record["sha256"][name]:
                raise ValueError(f"checkpoint file {folder / name} is damaged")
        tensors = {name.removesuffix(".safetensors"): load_file(folder / name) for name in wanted}
        return Checkpoint(folder, step, tensors, record["state"])

    def weights_hash(self) -> str | None:
        """One hash over the files of the newest checkpoint; None without one. What a child run records of its parent."""
        steps = self.checkpoint_steps()
        if not steps:
            return None
        record = read_json(self.folder / "checkpoints" / f"step-{steps[-1]:07d}" / "state.json")
        return fingerprint_of(record["sha256"])

    def sample_path(self, step: int) -> Path:
        """Where the picture of a step goes."""
        (self.folder / "samples").mkdir(exist_ok=True)
        return self.folder / "samples" / f"step-{step:07d}.png"


def checked_name(name: str) -> str:
    """`name`, if it is a plain folder name; ValueError for path separators, a leading dot, or anything odd."""
    if not NAME.fullmatch(name) or len(name) > 120:
        raise ValueError(
            f"a run's name is letters, digits, '.', '_' and '-' (120 at most, no leading dot), not {name!r}"
        )
    return name


def run_suffix(preset: str, seed: int, source: str | Path = "emoji") -> str:
    """What a notebook's runs have in common in their names: "tiny-s0", or "tiny-my-photos-s0" for images of one's own."""
    if str(source) == "emoji":
        return f"{preset}-s{seed}"
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", Path(source).resolve().stem).strip("-.") or "images"
    return f"{preset}-{stem[:60]}-s{seed}"


def find_run(source: str | Path, root: str | Path | None = None) -> Run | None:
    """The run that `source` names (a folder, or a name under `root`); None for anything that may be a folder of weights or a
    hub name. FileNotFoundError for a plain name that is no run.
    """
    folder = Path(source) if Path(source).is_dir() else runs_root(root) / str(source)
    if (folder / "provenance.json").exists():
        return Run(folder)
    if Path(source).is_dir() or str(source).count("/") == 1:
        return None
    return Run(folder)


def list_runs(root: str | Path | None = None) -> pd.DataFrame:
    """One row a run under `root`: name, class, finished, newest checkpoint's step, start, fingerprint, summary's numbers."""
    rows = []
    for path in sorted(runs_root(root).glob("*/config.json")):
        run = Run(path.parent)
        steps = run.checkpoint_steps()
        rows.append(
            {
                "run": run.name,
                "kind": run.class_name,
                "finished": run.finished,
                "step": steps[-1] if steps else None,
            }
            | {"started": run.provenance.get("started"), "fingerprint": run.fingerprint}
            | {key: value for key, value in run.summary.items() if isinstance(value, int | float)}
        )
    return pd.DataFrame(rows)


def _parent(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "fingerprint": run.fingerprint,
        "checkpoint_sha256": run.weights_hash(),
    }
