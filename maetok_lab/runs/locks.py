"""One writer a folder: filelock's lease, which tells hosts, containers and namespaces apart.

The lease is a file that its holder touches every few seconds. Clocks are never compared: whoever
wants the lock watches the file, and any change of it is a sign of life, whoever's clock wrote it.
"""

from pathlib import Path

from filelock import SoftFileLease, Timeout

# A holder that this host cannot probe is dead after this long without a beat. It is longer than a
# network file system stalls; a job that was moved to another node waits it out once.
LEASE_SECONDS = 60.0
BEAT_SECONDS = 2.0  # a live holder is recognised, and refused to share, after at most this long


class RunLocked(RuntimeError):
    """Somebody else, alive, is writing this run."""


def lock_folder(folder: Path) -> SoftFileLease:
    """Hold the folder's lock until `.release()`, or until the result is forgotten.

    The holding process may take it again. A dead holder's lock is taken over: at once where this
    host can see the death, else when its lease ends. Raises RunLocked when the holder shows a sign
    of life, OSError for a folder that cannot be written.
    """
    lock = SoftFileLease(
        folder / "lock",
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=BEAT_SECONDS,
        is_singleton=True,  # one lease a folder and process: a notebook's cell can be run again
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


def _last_beat(folder: Path) -> int | None:
    """When the holder last touched the lock, by its own clock; None where nobody holds it."""
    try:
        return (folder / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return None
