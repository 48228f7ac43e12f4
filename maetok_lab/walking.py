"""Every file below a folder, once and in an order that is the same on every machine."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maetok_lab.hints import printable, some

# what file servers, archivers and desktops put between pictures; names with a leading dot as well
DEEPEST = 200  # folders in each other
_HIDDEN = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information"}


@dataclass
class Walk:
    """Files by folder and name, relative to the root: "a/b" and "c.png", "" for the root's own."""

    root: Path
    folders: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    # what was not read, by kind: "hidden folders" -> relative paths
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: str, path: str) -> None:
        """Remember why a path is not among the files."""
        self.left_out.setdefault(kind, []).append(path)

    def notices(self) -> list[str]:
        """A line for each kind of thing that was left out."""
        lines = []
        for kind, paths in self.left_out.items():
            lines.append(f"{len(paths):,} {kind} left out ({printable(some(paths))})")
        return lines

    def paths(self) -> list[str]:
        """The paths of all files, relative to the root."""
        return [
            f"{folder}/{name}" if folder else name for folder, name in zip(self.folders, self.names)
        ]


class Names(Sequence):
    """Many file names in one piece of memory.

    Strings of their own would be copied, bit by bit, into every process that reads pictures: each
    look at one changes its count of references.
    """

    def __init__(self, names: Sequence[str]):
        self.joined = "\0".join(names).encode("utf-8", "surrogateescape")
        marks = np.flatnonzero(np.frombuffer(self.joined + b"\0", np.uint8) == 0)
        self._ends = marks + 1 if names else marks[:0]

    def all(self) -> list[str]:
        """All names at once."""
        return self.joined.decode("utf-8", "surrogateescape").split("\0") if len(self) else []

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        """Give one name."""
        start = self._ends[i - 1] if i else 0
        return self.joined[start : self._ends[i] - 1].decode("utf-8", "surrogateescape")


def walk(root: Path) -> Walk:
    """Walk through `root` and what is linked into it; a link to a folder above is not followed.

    Hidden folders and files, links to nowhere, what is neither a file nor a folder, and folders
    that cannot be read are left out.
    """
    found = Walk(root)
    above = []
    for folder in Path(root).resolve().parents:
        with contextlib.suppress(OSError):
            above.append(_identity(os.stat(folder)))
    _enter(os.fspath(root), "", tuple(above), found)
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder was put there by a program: `.ipynb_checkpoints`, `@eaDir`."""
    return name[:1] in ".@_#$Ss" and (name.startswith(".") or name.lower() in _HIDDEN)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _enter(path: str, relative: str, above: tuple[tuple[int, int], ...], found: Walk) -> None:
    """Add the files of one folder and, in the order of names, of those in it."""
    try:
        here = _identity(os.stat(path))
        with os.scandir(path) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:  # locked, gone since it was listed, a path that is too long
        found.leave_out("unreadable folders", relative)
        return
    if here in above:
        found.leave_out("links to a folder above", relative)
        return
    if len(above) > DEEPEST:
        found.leave_out(f"folders more than {DEEPEST} deep", relative)
        return

    for entry in entries:
        inside = f"{relative}/{entry.name}" if relative else entry.name
        try:
            is_folder = entry.is_dir()
            is_file = not is_folder and entry.is_file()
            is_lost = not is_folder and not is_file and not os.path.exists(entry.path)
        except OSError:  # a link to itself, or into a locked folder
            found.leave_out("links that cannot be followed", inside)
            continue
        if is_hidden(entry.name):
            # hidden files are counted by nobody: every Mac and every server leaves some
            if is_folder:
                found.leave_out("hidden folders", inside)
        elif is_folder:
            _enter(entry.path, inside, (*above, here), found)
        elif is_file:
            found.folders.append(relative)
            found.names.append(entry.name)
        else:
            kind = "links to nowhere" if is_lost else "pipes, sockets and devices"
            found.leave_out(kind, inside)
