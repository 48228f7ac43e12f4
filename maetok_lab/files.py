"""Atomic writes, and reading back: what every file of a run and of a cache goes through."""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` on success, removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside it: only a rename within one file system is atomic; unique among hosts and threads
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
        # on disk before it has its name: else a power cut leaves an empty file under a good name
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path | str, data: Any) -> None:
    """Write indented JSON, whole or not at all; NaN and infinities become null."""
    write_bytes(path, (json.dumps(finite(data), indent=2) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; a broken one raises a ValueError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path} is not valid JSON: {problem}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object a line, up to a line that a kill or a full disk cut off."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # what a later process appended to the broken line is lost with it
    return records


def not_written(subject: str, folder: Path, size: int, problem: Exception, remains: str) -> OSError:
    """The error to raise when `size` bytes of `subject` could not be written into `folder`.

    `remains` says what is still good there.
    """
    free = shutil.disk_usage(folder).free
    message = (
        f"{subject} was not written to {folder}: {problem}. It needs {size / 1e6:.1f} MB,"
        f" {free / 1e6:.1f} MB are free; {remains}."
        " Free some space (python -m maetok_lab prune) and run the same again"
    )
    # libraries that write files wrap the system's error in their own, without its number
    return OSError(getattr(problem, "errno", None) or errno.ENOSPC, message)


def finite(data: Any) -> Any:
    """`data` with every float that JSON cannot hold (NaN, infinities) replaced by None."""
    # Python would write NaN, which no other reader of JSON takes
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
