"""Atomic writes, and reading back: what every file of a run and of a cache goes through."""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or this person's share of it
LITTLE_ROOM = 1 << 20  # bytes free, at which a write that failed did so for want of room

# By folder: what may refuse a file below it, as long as its owner is there.
_fences: dict[str, weakref.WeakMethod] = {}


def set_fence(folder: Path, check: Callable[[], None]) -> None:
    """Let the method `check` raise before any file below `folder` gets its name.

    A later fence takes an earlier one's place; one whose object is forgotten lets all through.
    """
    _fences[os.path.abspath(folder)] = weakref.WeakMethod(check)


def check_fence(path: Path | str) -> None:
    """Raise what the fence around `path` raises, if there is one."""
    for parent in Path(os.path.abspath(path)).parents:
        fence = _fences.get(str(parent))
        check = fence() if fence else None
        if check:
            check()


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` on success, removed on failure.

    The file is on disk before it has its name. Raises OSError that says how much room there is
    where there is too little, and what the folder's fence raises (`set_fence`).
    """
    path = Path(path)
    # beside it: only a rename within one file system is atomic; unique among hosts and threads
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with telling_of_room(f"{path} was not written", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            # made here, so that the umask says who may read it: safetensors makes it for one person
            with open(temporary, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield temporary
            os.chmod(temporary, mode)
            # a power cut would leave an empty file under a good name
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            check_fence(path)
            os.replace(temporary, path)
            sync_folder(path.parent)
    except Exception:
        check_fence(path)  # another holder may have cleared away what this one was writing
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it. Raises OSError that says how much room there is."""
    with telling_of_room(f"{folder} was not made", folder):
        folder.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power cut, where its file system can promise that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        return json.loads(Path(path).read_bytes())
    # bytes that are no text are a ValueError too
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path} is not valid JSON: {problem}") from None


def read_record(path: Path | str, *, needs: Collection[str] = ()) -> dict[str, Any]:
    """The object of a JSON file; a ValueError names a file that holds none, or lacks a key."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object, but a {type(record).__name__}")
    missing = [name for name in needs if name not in record]
    if missing:
        raise ValueError(f"{path} is damaged: it has no {' and no '.join(missing)}")
    return record


def read_json_lines(path: Path, *, needs: Collection[str] = ()) -> list[dict[str, Any]]:
    """One object a line, each with the keys that it `needs`.

    A line that is none is passed over, with a warning that names it; the last one's beginning, as a
    kill or a full disk leaves it, without a word.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and all(name in record for name in needs):
            records.append(record)
        elif number < len(lines):
            warnings.warn(f"{path}: line {number} is damaged, and passed over", stacklevel=2)
    return records


# A disk without room ------------------------------------------------------------------------------


@contextlib.contextmanager
def telling_of_room(subject: str, folder: Path) -> Iterator[None]:
    """Raise `no_room` in the place of an error for want of room in `folder`, others as they are."""
    try:
        yield
    except OSError as problem:
        if is_full(problem, folder):
            raise no_room(subject, folder, problem) from problem
        raise


def is_full(problem: OSError, folder: Path) -> bool:
    """Whether a write into `folder` failed for want of room."""
    if problem.errno is not None:
        return problem.errno in FULL
    # numpy and Pillow tell of it in words of their own, without the system's number
    return "No space left" in str(problem) or _free(folder) < LITTLE_ROOM


def no_room(
    subject: str, folder: Path, problem: Exception | None = None, needed: int = 0
) -> OSError:
    """The error for what a disk had no room for: `needed` bytes if that is known, files, or quota.

    `subject` is the beginning of the message.
    """
    if getattr(problem, "errno", None) == errno.EDQUOT:
        reason = "your quota of this disk is used up"
    elif _is_without_inodes(folder):
        reason = "this disk can hold no more files (its inodes are used up)"
    else:
        need = f"{needed / 1e6:.1f} MB more are needed and " if needed else ""
        reason = f"the disk is full: {need}{_free(folder) / 1e6:.1f} MB are free"
    advice = "free some (python -m maetok_lab prune lists what can go) and run the same again"
    return OSError(
        getattr(problem, "errno", None) or errno.ENOSPC, f"{subject}: {reason}; {advice}"
    )


def _free(folder: Path) -> int:
    return shutil.disk_usage(_there(folder)).free


def _is_without_inodes(folder: Path) -> bool:
    if not hasattr(os, "statvfs"):
        return False
    status = os.statvfs(_there(folder))
    return status.f_files > 0 and status.f_favail == 0  # some file systems count none


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it where it is what could not be made."""
    while not folder.exists():
        folder = folder.parent
    return folder


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
