"""Atomic writes, and reading back: what every file of a run and of a cache goes through."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is flushed to disk and renamed to `path`, on failure removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
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
    """Write indented JSON, whole or not at all. NaN and infinities become null: JSON has no word for them."""
    write_bytes(path, (json.dumps(finite(data), indent=2) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; a broken one raises a ValueError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path} is not valid JSON: {problem}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object a line; what follows a line cut off by a kill or a full disk is dropped with it."""
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def not_written(what: str, folder: Path, size: int, problem: Exception, left: str) -> OSError:
    """The error to raise when `size` bytes could not be written into `folder`; `left` says what is still good."""
    free = shutil.disk_usage(folder).free
    told = f"{what} was not written to {folder}: {problem}. It needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
    told += f"{left}. Free some space (python -m maetok_lab prune) and run the same again"
    return OSError(getattr(problem, "errno", None) or errno.ENOSPC, told)


def finite(data: Any) -> Any:
    """`data` with every float that JSON cannot hold replaced by None."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data
