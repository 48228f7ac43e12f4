"""The identity of pictures: a hash of the bytes of each, whatever file it lies in.

Hashing reads everything once. What it gave is kept outside of the source, by the name, size and
times of each file, so that later processes hash only what is new or was changed.
"""

import contextlib
import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from filelock import FileLock

from maetok_lab.files import atomic_path
from maetok_lab.identity import DIGITS, hash_of
from maetok_lab.walking import Names

WIDTH = 16  # bytes of a digest that are kept: 128 bits
_THREADS = 8  # that read and hash: both happen outside of Python's lock
_CHUNK = 256  # small files that a thread takes at once
_WORTH_A_WORD = 2 << 30  # so many bytes take a while to read
_GONE = SimpleNamespace(st_size=-1, st_mtime_ns=-1, st_ctime_ns=-1)


@dataclass(frozen=True)
class Contents:
    """The files of a source, and how many pictures each holds."""

    root: str  # absolute: names the place where digests are kept
    names: Names  # of the files, relative to it
    counts: np.ndarray  # int64 (files,): pictures in each
    hash_file: Callable[[int], bytes]  # number of a file -> the digests of its pictures, joined
    # files whose pictures partly lie in others, as `hash_file` finds out: these are read every time
    outside: Collection[int] = ()


def digest(data: bytes | None) -> bytes:
    """SHA-256 of a picture's bytes, cut to WIDTH; zeros for one that is not there."""
    return hashlib.sha256(data).digest()[:WIDTH] if data is not None else bytes(WIDTH)


def file_digest(path: str | Path) -> bytes:
    """`digest` of a file's bytes; zeros for a file that cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()[:WIDTH]
    except OSError:
        return bytes(WIDTH)


def picture_digests(contents: Contents, rows: np.ndarray) -> np.ndarray:
    """Digests of pictures, counted over all files in their order. rows (n,) -> uint8 (n, WIDTH)"""
    ends = np.cumsum(contents.counts)
    is_read = np.zeros(len(ends), bool)
    is_read[np.searchsorted(ends, rows, side="right")] = True
    files = np.flatnonzero(is_read)
    place = kept_folder() / f"digests-{hash_of([os.fsencode(contents.root)])[:DIGITS]}.npz"
    # one process hashes; others, such as the ranks of a training, wait and find it done
    with _lock(place):
        facts, digests = _kept(contents, place)
        now = _facts(contents, files)
        stale = files[(facts[files] != now).any(axis=1)]
        if len(stale):
            _hash(contents, stale, now[np.searchsorted(files, stale), 0].sum(), ends, digests)
            facts[files] = now
            facts[list(contents.outside)] = 0
            _keep(contents, facts, digests, place)
    return digests[rows]


def kept_folder() -> Path:
    """Where digests are kept: MAETOK_LAB_CACHE, else in the user's folder for caches."""
    place = os.environ.get("MAETOK_LAB_CACHE")
    if place:
        return Path(place)
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a container's user may have no home
        caches = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return Path(caches) / "maetok_lab"


def _facts(contents: Contents, files: np.ndarray) -> np.ndarray:
    """What changes when a file is written: size, and two times, one of which nobody can set back.

    -> int64 (files, 3), -1 for one that cannot be read
    """
    names = contents.names.all()
    sizes = []
    changes = []
    updates = []
    for number in files.tolist():
        try:
            status = os.stat(f"{contents.root}/{names[number]}")
        except OSError:
            status = _GONE
        sizes.append(status.st_size)
        changes.append(status.st_mtime_ns)
        updates.append(status.st_ctime_ns)
    return np.array([sizes, changes, updates]).T


def _hash(
    contents: Contents, stale: np.ndarray, size: int, ends: np.ndarray, digests: np.ndarray
) -> None:
    """Hash the pictures of some files into their rows of `digests`."""
    if size > _WORTH_A_WORD:
        print(
            f"{contents.root}: reading {len(stale):,} files ({size / 1e9:.0f} GB), once,"
            " for the identity of what is in them",
            flush=True,
        )
    chunks = np.array_split(stale, max(_THREADS, len(stale) // _CHUNK))
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda chunk: b"".join(map(contents.hash_file, chunk)), chunks)
        for chunk, part in zip(chunks, parts):
            if len(chunk):
                places = [np.arange(ends[i] - contents.counts[i], ends[i]) for i in chunk]
                digests[np.concatenate(places)] = np.frombuffer(part, np.uint8).reshape(-1, WIDTH)


def _kept(contents: Contents, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """What earlier processes kept: facts int64 (files, 3), 0 for new ones, and all digests."""
    facts = np.zeros((len(contents.names), 3), np.int64)
    digests = np.zeros((contents.counts.sum(), WIDTH), np.uint8)
    try:
        with np.load(place) as stored:
            names, counts = stored["names"].tobytes(), stored["counts"]
            old_facts, old_digests = stored["facts"], stored["digests"]
    except (EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile):  # none yet, or cut off
        return facts, digests
    if names == contents.names.joined and (counts == contents.counts).all():
        return old_facts, old_digests

    # files came or went: those of the same name and number of pictures are taken over
    old_names = names.decode("utf-8", "surrogateescape").split("\0")
    old_ends = np.cumsum(counts)
    old_number = {name: number for number, name in enumerate(old_names)}
    ends = np.cumsum(contents.counts)
    for number, name in enumerate(contents.names.all()):
        old = old_number.get(name)
        if old is not None and counts[old] == contents.counts[number]:
            facts[number] = old_facts[old]
            start, old_start = ends[number] - counts[old], old_ends[old] - counts[old]
            digests[start : ends[number]] = old_digests[old_start : old_ends[old]]
    return facts, digests


def _keep(contents: Contents, facts: np.ndarray, digests: np.ndarray, place: Path) -> None:
    """Write all digests down; where nothing can be written it is said that they are made again."""
    names = np.frombuffer(contents.names.joined, np.uint8)
    try:
        with atomic_path(place) as temporary, open(temporary, "wb") as file:
            np.savez(file, names=names, counts=contents.counts, facts=facts, digests=digests)
    except OSError as problem:
        warnings.warn(
            f"hashes of {contents.root} cannot be kept in {place.parent} ({problem.strerror}), so"
            " the next process reads everything again; MAETOK_LAB_CACHE names another folder",
            stacklevel=2,
        )


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[None]:
    """A lock among processes, where there is a place for one."""
    lock = FileLock(f"{place}.lock", mode=0o666)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:  # nothing can be written there, or the lock is another person's
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
