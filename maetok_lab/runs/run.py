"""Own one run folder: config, provenance, metrics, checkpoints, lock.

    runs/NAME/config.json provenance.json metrics.jsonl checkpoints/step-0000100/ samples/
              milestones.json tensorboard/ summary.json and, while it is written, lock

Everything but logs is written under a temporary name and renamed: no reader meets half a file.
`summary.json` is written last, and its presence means that the run finished. Nothing that is loaded
from a run can execute code: safetensors and JSON.
"""

import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import SoftFileLease

from maetok_lab.config import differing_fields, from_json, to_json
from maetok_lab.files import finite, read_json, read_json_lines, write_bytes, write_json
from maetok_lab.hints import did_you_mean
from maetok_lab.identity import fingerprint, fingerprint_of, hash_of
from maetok_lab.runs.checkpoints import (
    Checkpoint,
    delete_checkpoint,
    read_checkpoint,
    step_folder,
    steps_on_disk,
    write_checkpoint,
)
from maetok_lab.runs.events import Events
from maetok_lab.runs.locks import RunLocked, lock_folder
from maetok_lab.runs.provenance import now, provenance

# A run's name is a folder, and a word on a command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def runs_root(path: str | Path | None = None) -> Path:
    """Where runs live: `path`, or `runs/` in the library's checkout or the working directory."""
    if path is not None:
        return Path(path)
    # notebooks run in notebooks/, shells anywhere: all meet in the checkout
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


class Run:
    """A run folder. `Run.open` makes or continues one under its lock; `Run(folder)` only reads."""

    def __init__(self, folder: str | Path):
        # reading takes no lock: a run can be looked at while another process writes it
        self.folder = Path(folder)
        self.name = self.folder.name
        if not (self.folder / "config.json").exists():
            siblings = [path.parent.name for path in self.folder.parent.glob("*/config.json")]
            hint = did_you_mean(self.name, siblings) if siblings else ""
            raise FileNotFoundError(f"{self.folder} is not a run: it has no config.json{hint}")
        record = read_json(self.folder / "config.json")
        self.class_name = record["class"]
        self.config = record["config"]
        self.fingerprint = record["fingerprint"]
        self._lock: SoftFileLease | None = None
        self._events = Events(self.folder / "tensorboard")

    @classmethod
    def open(
        cls,
        name: str,
        config: Any,
        *,
        root: str | Path | None = None,
        parents: Iterable["Run"] = (),  # runs that it reads: its provenance records them
    ) -> "Run":
        """Make run `name` with a config dataclass, or continue it when its fingerprint is the same.

        Raises ValueError for a name that is no plain folder name or a run of another config (with
        the fields that differ), RunLocked when another live process writes it, OSError for a folder
        that cannot be written.
        """
        folder = runs_root(root) / checked_name(name)
        # the fingerprint decides: it leaves out fields that change no result, such as `log_every`
        record = {
            "class": type(config).__name__,
            "fingerprint": fingerprint(config),
            "config": to_json(config),
        }
        # the lock comes first: another process may be making the same run at this moment
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(folder)
        except OSError as problem:
            reason = (
                f"cannot write the run {folder} ({problem.strerror}); "
                "choose a runs folder that can be written: runs=FOLDER"
            )
            raise type(problem)(problem.errno, reason) from None

        try:
            # the config is written last: a folder without one was stopped before it was a run
            if not (folder / "config.json").exists():
                origin = {"parents": [_parent(run) for run in parents]}
                write_json(folder / "provenance.json", provenance() | origin)
                write_json(folder / "config.json", record)
            run = cls(folder)
            run._check_same_config(record)
        except BaseException:
            lock.release()
            raise
        run._lock = lock
        return run

    def _check_same_config(self, record: dict[str, Any]) -> None:
        """ValueError with the fields that differ, unless this run's config is that of `record`."""
        if self.fingerprint == record["fingerprint"]:
            return
        # as config.json has it, where tuples are lists
        as_stored = json.loads(json.dumps(finite(record["config"])))
        if record["class"] == self.class_name:
            lines = differing_fields(as_stored, self.config)
            lines = lines or ["the same, but a file that one of them names has another content"]
        else:  # another kind of run: its fields say nothing
            lines = [f"class: {record['class']}, not {self.class_name}"]
        raise ValueError(
            f"run {self.name} was made with another config. Choose another name (parameter `name` "
            f"of a notebook), or move {self.folder} away. These fields are now:\n  "
            + "\n  ".join(lines)
        )

    def load_config(self, config_class: type) -> Any:
        """The run's config as the dataclass it was made from; another class is an error."""
        if config_class.__name__ != self.class_name:
            raise ValueError(
                f"run {self.name} holds a {self.class_name}, not a {config_class.__name__}"
            )
        return from_json(config_class, self.config)

    # State ----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the final numbers are written."""
        return (self.folder / "summary.json").exists()

    @property
    def summary(self) -> dict[str, Any]:
        """Final numbers; {} while the run is not finished."""
        return read_json(self.folder / "summary.json") if self.finished else {}

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the run (`provenance.provenance`), and under `parents` the runs it read."""
        return read_json(self.folder / "provenance.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the final numbers and give up the lock."""
        # the last file to be written: `finished` looks for it
        write_json(self.folder / "summary.json", {**summary, "ended": now()})
        self.close()

    def close(self) -> None:
        """Give up the lock; the run can be continued later."""
        self._events.close()
        if self._lock:
            # force: a lease counts how often it was taken, and a cell that was interrupted left one
            self._lock.release(force=True)
            self._lock = None

    def __reduce__(self) -> tuple:
        # in another process it reads: the lock stays with this one
        return Run, (self.folder,)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Metrics --------------------------------------------------------------------------------------

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one event, {"step": ..., "split": ..., ...}, to metrics.jsonl and TensorBoard."""
        # appended, not renamed: whoever reads drops a last line that a kill cut off
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(finite(dict(record))) + "\n")
        self._events.add(record)

    def metrics(self, split: str | None = None) -> pd.DataFrame:
        """All logged events as a table, or those of one split ("train", "val")."""
        path = self.folder / "metrics.jsonl"
        table = pd.DataFrame(read_json_lines(path) if path.exists() else [])
        if split is None or table.empty:
            return table
        # columns that only other splits log are empty here
        return table[table["split"] == split].dropna(axis=1, how="all")

    def rewind_metrics(self, step: int) -> None:
        """Drop events after `step`: what a resumed run is about to log again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            events = [event for event in read_json_lines(path) if event["step"] <= step]
            write_bytes(path, "".join(json.dumps(event) + "\n" for event in events).encode())
        self._events.rewind(step)

    # Checkpoints: checkpoints.py writes and reads the files ---------------------------------------

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        *,
        keep: int = 2,
    ) -> Path:
        """Write a checkpoint, then remove all but the newest `keep` and the milestones.

        `keep` 0 removes none. Raises OSError when it cannot be written, RunLocked when another
        process took the run over.
        """
        # a process that stood still for a minute may have lost its lease to another
        if self._lock and not self._lock.is_lock_held_by_us:
            raise RunLocked(f"{self.folder} was taken over by another process; end this one")
        folder = write_checkpoint(self.folder, step, tensors, state)
        if keep:
            for old in self.superseded(keep):
                self.remove_checkpoint(old)
        return folder

    def load_checkpoint(
        self, step: int | None = None, *, groups: Collection[str] | None = None
    ) -> Checkpoint | None:
        """The newest sound checkpoint, or that of `step`, with all groups of tensors or some.

        None if there is none. A damaged newest one is passed over with a warning that names it; a
        damaged one asked for by step is a ValueError.
        """
        if step is not None:
            return read_checkpoint(self.folder, step, groups)
        # a crash of the machine can damage the newest one; the one before it loses a few minutes
        for candidate in reversed(self.checkpoint_steps()):
            try:
                return read_checkpoint(self.folder, candidate, groups)
            except ValueError as problem:
                warnings.warn(f"{problem}; falling back to the checkpoint before it", stacklevel=2)
        return None

    def last_checkpoint(self, group: str) -> Checkpoint:
        """As `load_checkpoint`, with one group of tensors; ValueError when there is none."""
        checkpoint = self.load_checkpoint(groups=[group])
        if checkpoint is None:
            raise ValueError(f"run {self.name} has no checkpoint yet; continue its training")
        return checkpoint

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return steps_on_disk(self.folder)

    def keep_milestones(self, *steps: int) -> None:
        """The checkpoints of these steps are never removed: not for newer ones, not by `prune`."""
        write_json(self.folder / "milestones.json", sorted({*self.milestones(), *steps}))

    def milestones(self) -> list[int]:
        """Steps whose checkpoints stay."""
        path = self.folder / "milestones.json"
        return read_json(path) if path.exists() else []

    def superseded(self, keep: int) -> list[int]:
        """Steps of checkpoints but the newest `keep` (1 or more) and the milestones."""
        milestones = self.milestones()
        return [step for step in self.checkpoint_steps()[:-keep] if step not in milestones]

    def remove_checkpoint(self, step: int) -> None:
        """Delete a checkpoint, milestone or not: `superseded` says which may go."""
        delete_checkpoint(self.folder, step)

    def checkpoint_hash(self) -> str | None:
        """A hash of the newest checkpoint, None without one: what a child run records."""
        steps = self.checkpoint_steps()
        if not steps:
            return None
        # the files' hashes are on record: nothing large is read
        record = read_json(step_folder(self.folder, steps[-1]) / "state.json")
        return fingerprint_of(record["sha256"])

    def sample_path(self, step: int) -> Path:
        """Where the picture of a step goes."""
        (self.folder / "samples").mkdir(exist_ok=True)
        return self.folder / "samples" / f"step-{step:07d}.png"


# Names of runs ------------------------------------------------------------------------------------


def checked_name(name: str) -> str:
    """`name`, if it is a plain folder name; ValueError for path separators or a leading dot."""
    if not NAME.fullmatch(name) or len(name) > 120:
        raise ValueError(
            "a run's name is letters, digits, '.', '_' and '-' "
            f"(120 at most, no leading dot), not {name!r}"
        )
    return name


def usual_labels(source: str | Path) -> str:
    """What images are labelled by where nobody says it: "category-style" for the shipped ones."""
    return "category-style" if str(source) == "emoji" else "category"


def run_suffix(
    preset: str, seed: int, source: str | Path = "emoji", labels: str | None = None
) -> str:
    """How the names of a notebook's runs end: "tiny-s0"; "tiny-photos-3f2a91-s0" for other images.

    The digits are of the images' place, so that two folders of one name keep apart. Labels other
    than the usual ones are named too.
    """
    words = [preset]
    if str(source) != "emoji":
        # the images' folder or file, cleaned of what no run's name may hold
        place = Path(source).expanduser().resolve()
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", place.name).strip("-.") or "images"
        words += [stem[:60], hash_of([os.fsencode(place)])[:6]]
    if labels not in (None, usual_labels(source)):
        words.append(re.sub(r"[^A-Za-z0-9._]+", "-", labels))
    return "-".join([*words, f"s{seed}"])


def changes_suffix(changes: Mapping[str, Any]) -> str:
    """What `changes` of a config add to a run's name: "-" and a hash, "" where there are none.

    So a changed training never takes the name, or the place, of the one that the preset gives.
    """
    return f"-{fingerprint_of(dict(changes))[:8]}" if changes else ""


def find_run(source: str | Path, root: str | Path | None = None) -> Run | None:
    """The run that `source` names: a folder, or a name under `root`.

    None for what may be a folder or file of weights or a hub name; FileNotFoundError for a plain
    name that is no run.
    """
    folder = Path(source) if Path(source).is_dir() else runs_root(root) / str(source)
    # a folder of weights has a config.json too, but no provenance
    if (folder / "provenance.json").exists():
        return Run(folder)
    if Path(source).exists() or str(source).count("/") == 1:
        return None
    return Run(folder)


def _parent(run: Run) -> dict[str, Any]:
    # enough to say later whether the parent is still the one that this run was made from
    return {
        "run": run.name,
        "fingerprint": run.fingerprint,
        "checkpoint_sha256": run.checkpoint_hash(),
    }
