"""What a run is made of, on record: its config, who made it, and the runs that it was made from."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maetok_lab.config import differing_fields
from maetok_lab.files import finite, read_record, write_json
from maetok_lab.runs.checkpoints import read_state, steps_on_disk
from maetok_lab.runs.provenance import provenance

CONFIG = ("class", "fingerprint", "config")  # what config.json has
NO_CONTENT = ("lock", "config.json", "provenance.json")  # of a run that has not begun

Parents = Sequence[Mapping[str, Any]]  # each: run, fingerprint, checkpoint_sha256


def begin(folder: Path, record: Mapping[str, Any], parents: Parents) -> None:
    """Write what a run is made of, or compare it with what is on record.

    Raises ValueError for another config, other weights of its parents, and a folder that lost its
    config and holds what another one made.
    """
    config = _readable(folder / "config.json", CONFIG)
    origin = _readable(folder / "provenance.json", ("parents",))
    if config is not None:
        _check_same_config(folder, config, record)
    elif _has_content(folder):
        source = (origin or {}).get("config") or _config_of_checkpoint(folder)
        if source != record["fingerprint"]:
            raise ValueError(
                f"{folder} lost its config.json, and what lies there is of"
                f" {f'config {source}' if source else 'a config that nobody knows'}, not of"
                f" {record['fingerprint']}: move the folder away, or choose another name"
                " (parameter `name` of a notebook)"
            )
        warnings.warn(f"{folder} lost its config.json, which is written anew", stacklevel=3)

    # the config is written last: a folder without one was stopped before it was a run
    if origin is None:
        if config is not None:
            warnings.warn(f"{folder} lost its provenance.json, which is made anew", stacklevel=3)
        facts = {"config": record["fingerprint"], "parents": list(parents)}
        write_json(folder / "provenance.json", provenance() | facts)
    else:
        _check_parents(folder, origin, parents)
    if config is None:
        write_json(folder / "config.json", record)


def _check_same_config(folder: Path, stored: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """ValueError with the fields that differ, unless the config on record is that of `record`."""
    if stored["fingerprint"] == record["fingerprint"]:
        return
    # as config.json has it, where tuples are lists
    config = json.loads(json.dumps(finite(record["config"])))
    if record["class"] == stored["class"]:
        lines = differing_fields(config, stored["config"])
        lines = lines or ["the same, but a file that one of them names has another content"]
    else:  # another kind of run: its fields say nothing
        lines = [f"class: {record['class']}, not {stored['class']}"]
    raise ValueError(
        f"run {folder.name} was made with another config. Choose another name (parameter `name` "
        f"of a notebook), or move {folder} away. These fields are now:\n  " + "\n  ".join(lines)
    )


def _check_parents(folder: Path, origin: Mapping[str, Any], parents: Parents) -> None:
    """ValueError where a run was made from weights that its parents do not have any more."""
    before = {parent["run"]: parent for parent in origin["parents"]}
    changed = []
    for parent in parents:
        if before.get(parent["run"], parent) != parent:
            changed.append(parent["run"])
    if not changed:
        return
    if _has_content(folder):
        raise ValueError(
            f"run {folder.name} was made from other weights than {' and '.join(changed)} has now:"
            f" remove {folder} and what was made from it, or choose another name (parameter"
            " `name` of a notebook)"
        )
    write_json(folder / "provenance.json", {**origin, "parents": list(parents)})


def _has_content(folder: Path) -> bool:
    return any(
        path.name not in NO_CONTENT and not path.name.startswith(".") for path in folder.iterdir()
    )


def _readable(path: Path, needs: Sequence[str]) -> dict[str, Any] | None:
    try:
        return read_record(path, needs=needs)
    except (FileNotFoundError, ValueError):
        return None


def _config_of_checkpoint(folder: Path) -> str | None:
    """The fingerprint that the newest readable checkpoint has on record."""
    for step in reversed(steps_on_disk(folder)):
        try:
            return read_state(folder, step).get("run")
        except ValueError:
            continue
    return None
