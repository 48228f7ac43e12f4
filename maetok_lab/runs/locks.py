"""One writer a folder: filelock's lease, which tells hosts, containers and namespaces apart.

The lease is a file that its holder touches every few seconds. Clocks are never compared: whoever
wants the lock watches the file, and any change of it is a sign of life, whoever's clock wrote it.
A holder that stood still for longer than the lease may have lost it without knowing, so it looks
before every write (`Lease.check`, a fence around the folder): the last to get a name is the first
to be refused.
"""

import os
import threading
import weakref
from pathlib import Path

from filelock import SoftFileLease, Timeout

from maetok_lab.files import set_fence

# A holder that this host cannot probe is dead after this long without a beat. It is longer than a
# network file system stalls; a job that was moved to another node waits it out once.
LEASE_SECONDS = 60.0
BEAT_SECONDS = 2.0  # a live holder is recognised, and refused to share, after at most this long


class RunLocked(RuntimeError):
    """Somebody else, alive, is writing this run."""


class Lease:
    """The right to write a folder, until `release()` or until it is forgotten.

    Without a lock of its own it is a share in the lease of another process, which started this one.
    """

    def __init__(self, folder: Path, token: str, lock: SoftFileLease | None = None):
        self.folder = folder
        self.token = token
        self.lock = lock
        self.is_passed_on = False  # to a later lease of this process
        set_fence(folder, self.check)

    @property
    def is_valid(self) -> bool:
        """Whether the lock file still names this lease."""
        return f"\ntoken={self.token}\n" in _text(self.folder)

    def check(self) -> None:
        """Raise RunLocked where the folder has another holder by now; nothing after a release."""
        if self.is_passed_on:
            raise RunLocked(
                f"{self.folder} was opened once more in this process, and is written from there;"
                " this one has ended"
            )
        if self.token and not self.is_valid:
            raise RunLocked(
                f"{self.folder} was taken over by another process while this one stood still, or"
                " its lock was removed: nothing more is written; run the same again to continue"
            )

    def release(self) -> None:
        """Give the folder up; a second call, or one after it was passed on, does nothing."""
        lock = self._let_go()
        if lock is not None:
            lock.release(force=True)

    def pass_on(self) -> SoftFileLease | None:
        """The lock for a later lease of this process, which this one makes way for."""
        self.is_passed_on = True
        return self._let_go()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _let_go(self) -> SoftFileLease | None:
        lock = self.lock
        self.lock = None
        self.token = ""
        return lock


# by absolute path: the lease that this process holds of a folder
_held: weakref.WeakValueDictionary[str, Lease] = weakref.WeakValueDictionary()
_one_at_a_time = threading.Lock()


def lock_folder(folder: Path, *, again: bool = False) -> Lease:
    """Hold the folder's lock.

    A dead holder's is taken over: at once where this host can see the death, else when its lease
    ends. `again` takes it from an earlier lease of this process, as a cell run twice needs. Raises
    RunLocked for a living holder, OSError for a folder that cannot be written.
    """
    place = os.path.abspath(folder)
    with _one_at_a_time:
        earlier = _held.get(place)
        lock = None
        if earlier is not None and earlier.is_valid:
            if not again:
                raise RunLocked(f"{folder} is being written by this process; wait for it")
            lock = earlier.pass_on()
        lock = lock or _acquired(folder)
        lease = Lease(folder, lock.token, lock)
        _held[place] = lease
    return lease


def _acquired(folder: Path) -> SoftFileLease:
    """filelock's lease, held."""
    lock = SoftFileLease(
        folder / "lock",
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=BEAT_SECONDS,
        thread_local=False,  # a run may be closed by another thread than the one that opened it
    )
    # the wait ends by itself: with the lock, with a beat, or with a file that names no process
    first_beat = _last_beat(folder)
    try:
        lock.acquire(
            timeout=2 * LEASE_SECONDS,
            cancel_check=lambda: _last_beat(folder) not in (first_beat, None),
        )
    except Timeout:
        holder = lock.owner
        if holder is None:  # an empty file, as a power cut leaves it: nobody can say whose it was
            message = f"{lock.lock_file} names no process; remove it if nothing writes there"
            raise RunLocked(message) from None
        # filelock writes a namespace behind the host's name; the process id is that inside of it
        host = holder.hostname.replace("?pidns-", " in process namespace ")
        raise RunLocked(
            f"{folder} is being written by process {holder.pid} on {host}; "
            "wait for it, or end that process"
        ) from None
    return lock


def _text(folder: Path) -> str:
    """What the lock file says; "" where there is none."""
    try:
        return (folder / "lock").read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _last_beat(folder: Path) -> int | None:
    """When the holder last touched the lock, by its own clock; None where nobody holds it."""
    try:
        return (folder / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return None
