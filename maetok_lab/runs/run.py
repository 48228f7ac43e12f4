"""Own one run folder: config, provenance, metrics, checkpoints, lock.

    runs/NAME/config.json provenance.json metrics.jsonl checkpoints/step-0000100/ samples/
              milestones.json tensorboard/ summary.json and, while it is written, lock

Everything but logs is written under a temporary name and renamed: no reader meets half a file.
`summary.json` is written last, names the files that the result rests on, and means, while these are
whole, that the run finished. Nothing that is loaded from a run can execute code: safetensors and
JSON.
"""

import contextlib
import json
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from maetok_lab.config import from_json, to_json
from maetok_lab.files import (
    finite,
    is_full,
    make_folder,
    no_room,
    read_json_lines,
    read_record,
    telling_of_room,
    write_bytes,
    write_json,
)
from maetok_lab.hints import did_you_mean
from maetok_lab.identity import fingerprint, fingerprint_of
from maetok_lab.runs.checkpoints import (
    Checkpoint,
    damaged_file,
    delete_checkpoint,
    read_checkpoint,
    read_milestones,
    read_state,
    step_folder,
    steps_on_disk,
    write_checkpoint,
)
from maetok_lab.runs.ending import read_ending, write_ending
from maetok_lab.runs.events import Events
from maetok_lab.runs.locks import Lease, lock_folder
from maetok_lab.runs.names import checked_name, runs_root
from maetok_lab.runs.origin import CONFIG, begin


class Run:
    """A run folder. `Run.open` makes or continues one under its lock; `Run(folder)` only reads."""

    def __init__(self, folder: str | Path):
        # reading takes no lock: a run can be looked at while another process writes it
        self.folder = Path(folder)
        self.name = self.folder.name
        try:
            record = read_record(self.folder / "config.json", needs=CONFIG)
        except FileNotFoundError:
            siblings = [path.parent.name for path in self.folder.parent.glob("*/config.json")]
            hint = did_you_mean(self.name, siblings) if siblings else ""
            message = f"{self.folder} is not a run: it has no config.json{hint}"
            raise FileNotFoundError(message) from None
        self.class_name = record["class"]
        self.config = record["config"]
        self.fingerprint = record["fingerprint"]
        self._lease: Lease | None = None
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

        Raises ValueError for a name that is no plain folder name, a run of another config (with the
        fields that differ), or parents that are unfinished or changed; RunLocked when another live
        process writes it; OSError for a folder that cannot be written.
        """
        folder = runs_root(root) / checked_name(name)
        origins = [parent.as_parent(name) for parent in parents]
        # the fingerprint decides: it leaves out fields that change no result, such as `log_every`
        record = {
            "class": type(config).__name__,
            "fingerprint": fingerprint(config),
            "config": to_json(config),
        }
        # the lock comes first: another process may be making the same run at this moment
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lease = lock_folder(folder, again=True)
        except OSError as problem:
            if is_full(problem, folder):
                raise no_room(f"the run {folder} was not made", folder, problem) from None
            reason = (
                f"cannot write the run {folder} ({problem.strerror}); choose a runs folder that can"
                " be written: parameter `runs` of a notebook, -p runs FOLDER on the command line"
            )
            raise type(problem)(problem.errno, reason) from None

        try:
            begin(folder, record, origins)
            run = cls(folder)
        except BaseException:
            lease.release()
            raise
        run._lease = lease
        return run

    def as_parent(self, child: str) -> dict[str, Any]:
        """What a run `child` records of this one, to tell later whether it is still the same.

        Raises ValueError when this run is not finished: the child would be made of something else.
        """
        if problem := self.problem:
            raise ValueError(
                f"run {child} is made from run {self.name}, which is not finished ({problem}): run"
                f" what makes {self.name} to its end first, the same cell or notebook once more"
            )
        return {
            "run": self.name,
            "fingerprint": self.fingerprint,
            "checkpoint_sha256": self.checkpoint_hash(),
        }

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
        """Whether the final numbers are written, and the files that they rest on are there."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """Why the run is not finished, in words; None where it is."""
        ending = read_ending(self.folder)
        return ending.problem if ending else "it was stopped, or goes on"

    @property
    def summary(self) -> dict[str, Any]:
        """Final numbers; {} while the run is not finished."""
        ending = read_ending(self.folder)
        return ending.numbers if ending and not ending.problem else {}

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the run (`provenance.provenance`), and under `parents` the runs it read."""
        return read_record(self.folder / "provenance.json")

    def damage(self) -> str | None:
        """What a run that has ended lost of what it rests on, in words; None where all is whole.

        Its newest checkpoint is read to its end.
        """
        ending = read_ending(self.folder)
        if ending is None or ending.problem:
            return ending and ending.problem
        try:
            for step in self.checkpoint_steps()[-1:]:
                if file := damaged_file(self.folder, step):
                    return f"{file} is damaged"
        except ValueError as problem:
            return str(problem)
        return None

    def reopen_if_damaged(self) -> None:
        """Take back the end of a run that lost what it rests on: going on makes it whole.

        Only in the process that opened it: those that share its work must not judge alone.
        """
        if self._lease and self._lease.lock and (damage := self.damage()):
            self.reopen(damage)

    def reopen(self, reason: str) -> None:
        """Take back that the run has ended."""
        warnings.warn(f"run {self.name} had ended, but {reason}: it goes on", stacklevel=3)
        self._check_writer()
        (self.folder / "summary.json").unlink()

    def finish(self, summary: Mapping[str, Any], *, files: Iterable[Path] = ()) -> None:
        """Write the final numbers and give up the lock.

        They rest on the newest checkpoint and on `files`.
        """
        self._check_writer()
        rests_on = list(files)
        for step in self.checkpoint_steps()[-1:]:
            rests_on += sorted(step_folder(self.folder, step).iterdir())
        write_ending(self.folder, summary, rests_on)
        self.close()

    # Lock -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, this process may write the run; afterwards it has given up the lock.

        Where another process started this one to share its work, that one's lock is enough.
        """
        if self._lease is None or not self._lease.token:
            self._lease = lock_folder(self.folder)
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Give up the lock; the run can be continued later."""
        self._events.close()
        if self._lease:
            self._lease.release()

    def _check_writer(self) -> None:
        """RunLocked where this run has another writer by now."""
        if self._lease:
            self._lease.check()

    def __reduce__(self) -> tuple:
        # in another process it shares the lock that this one holds, or only reads
        return _shared, (self.folder, self._lease.token if self._lease else "")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Metrics --------------------------------------------------------------------------------------

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one event, {"step": ..., "split": ..., ...}, to metrics.jsonl and TensorBoard."""
        self._check_writer()
        path = self.folder / "metrics.jsonl"
        # appended, not renamed: whoever reads drops a last line that a kill cut off
        with telling_of_room(f"{path} was not written", self.folder):
            with open(path, "a") as file:
                file.write(json.dumps(finite(dict(record))) + "\n")
            self._events.add(record)

    def metrics(self, split: str | None = None) -> pd.DataFrame:
        """All logged events as a table, or those of one split ("train", "val")."""
        table = pd.DataFrame(self._logged())
        if split is None or table.empty:
            return table
        # columns that only other splits log are empty here
        return table[table["split"] == split].dropna(axis=1, how="all")

    def _logged(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return read_json_lines(path, needs=("step", "split")) if path.exists() else []

    def rewind_metrics(self, step: int) -> None:
        """Drop events after `step`: what a resumed run is about to log again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            events = [event for event in self._logged() if event["step"] <= step]
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
        self._check_writer()
        folder = write_checkpoint(self.folder, step, tensors, state, fingerprint=self.fingerprint)
        if keep:
            for old in self.superseded(keep):
                self.remove_checkpoint(old)
        return folder

    def load_checkpoint(
        self, step: int | None = None, *, groups: Collection[str] | None = None
    ) -> Checkpoint | None:
        """The newest sound checkpoint, or that of `step`, with all groups of tensors or some.

        None if there is none. A damaged newest one of a run that goes on is passed over with a
        warning that names it; that of a run that has ended, or one asked for by step, is a
        ValueError.
        """
        if step is not None:
            return read_checkpoint(self.folder, step, groups)
        # earlier weights are not what the numbers of a run that has ended are of
        ending = read_ending(self.folder)
        damage = ending.problem if ending else None
        # a crash of the machine can damage the newest one; the one before it loses a few minutes
        for candidate in reversed([] if damage else self.checkpoint_steps()):
            try:
                return read_checkpoint(self.folder, candidate, groups)
            except ValueError as problem:
                damage = str(problem)
                if ending:
                    break
                warnings.warn(f"{problem}; falling back to the checkpoint before it", stacklevel=2)
        if ending and damage:
            raise ValueError(
                f"run {self.name} had ended, but {damage}; run what makes it once more: that goes"
                " on from what is whole"
            )
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
        self._check_writer()
        write_json(self.folder / "milestones.json", sorted({*self.milestones(), *steps}))

    def milestones(self) -> list[int]:
        """Steps whose checkpoints stay; all that there are where the list of them is damaged."""
        return read_milestones(self.folder)

    def superseded(self, keep: int) -> list[int]:
        """Steps of checkpoints but the newest `keep` (1 or more) and the milestones."""
        milestones = self.milestones()
        return [step for step in self.checkpoint_steps()[:-keep] if step not in milestones]

    def remove_checkpoint(self, step: int) -> None:
        """Delete a checkpoint, milestone or not: `superseded` says which may go."""
        self._check_writer()
        delete_checkpoint(self.folder, step)

    def checkpoint_hash(self) -> str | None:
        """A hash of the newest checkpoint, None without one: what a child run records."""
        steps = self.checkpoint_steps()
        # the files' hashes are on record: nothing large is read
        return fingerprint_of(read_state(self.folder, steps[-1])["sha256"]) if steps else None

    def sample_path(self, step: int) -> Path:
        """Where the picture of a step goes."""
        make_folder(self.folder / "samples")
        return self.folder / "samples" / f"step-{step:07d}.png"


def find_run(source: str | Path, root: str | Path | None = None) -> Run | None:
    """The run that `source` names: a folder, or a name under `root`.

    None for what may be a folder or file of weights or a hub name; FileNotFoundError for a plain
    name that is no run.
    """
    folder = Path(source) if Path(source).is_dir() else runs_root(root) / str(source)
    # a folder of weights has a config.json too, but neither of these
    if (folder / "provenance.json").exists() or (folder / "checkpoints").is_dir():
        return Run(folder)
    if Path(source).exists() or str(source).count("/") == 1:
        return None
    return Run(folder)


def _shared(folder: Path, token: str) -> Run:
    """A run as another process has it that works for the holder of its lock."""
    run = Run(folder)
    if token:
        run._lease = Lease(folder, token)
    return run
