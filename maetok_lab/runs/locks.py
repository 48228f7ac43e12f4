"""One writer a run folder: a lock file with host, process and a heartbeat."""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # a lock of another host counts as dead after this long without a heartbeat


class RunLocked(RuntimeError):
    """Somebody else, alive, is writing this run."""


class RunLock:
    """Held by one process; a dead owner's lock is taken over, a live one's raises `RunLocked`.

    On the owner's own host, alive means that the process id runs with the start time on record (in ticks since the machine's
    start, which no change of the clock moves). On another host it means that the heartbeat moved within `STALE_SECONDS`,
    both times read from the file system's clock, so that clocks of different machines are never compared; and where that
    clock may have jumped, the heart is watched for longer than a beat before it counts as dead.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stop = threading.Event()
        self._acquire()
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Give the lock up, if it is still ours."""
        self._stop.set()
        if _owner(self.path) == _me():
            self.path.unlink(missing_ok=True)

    def _acquire(self) -> None:
        for _ in range(100):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                owner = _owner(self.path)
                if owner != _me() and owner is not None and _alive(owner, self.path):
                    raise RunLocked(
                        f"{self.path.parent} is being written by process {owner['pid']} on {owner['host']}; "
                        "wait for it, or end that process"
                    ) from None
                self._remove_stale(owner)
                continue
            with os.fdopen(handle, "w") as file:
                json.dump(_me(), file)
            return
        raise RunLocked(f"{self.path.parent}: the lock keeps changing hands")

    def _remove_stale(self, owner: dict | None) -> None:
        # A lock file without content is one that a live process is just writing: give it a moment before it counts as stale.
        if owner is None:
            time.sleep(0.05)
            owner = _owner(self.path)
            if owner is not None:
                return
        # Rename before removing: of two processes that both found it stale only one succeeds.
        grave = self.path.with_name(f".{self.path.name}.{os.getpid()}.stale")
        try:
            os.rename(self.path, grave)
        except FileNotFoundError:
            return
        if (
            _owner(grave) != owner
        ):  # another process took the stale lock over a moment ago: put its lock back
            with contextlib.suppress(FileExistsError):
                os.link(grave, self.path)
        grave.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                return  # the folder is gone or read-only: the next write of the run will say so


def _me() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
    }


def _owner(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _alive(owner: dict, path: Path) -> bool:
    if owner["host"] == socket.gethostname():
        return _process_start(owner["pid"]) == owner["started"] != ""
    probe = path.with_name(f".clock.{os.getpid()}")
    try:
        probe.touch()
        age = probe.stat().st_mtime - path.stat().st_mtime
        return abs(age) < STALE_SECONDS or _beats(path)
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _beats(path: Path) -> bool:
    """Whether the lock's heartbeat moves while it is watched for one and a half beats."""
    before, started = path.stat().st_mtime_ns, time.monotonic()
    while time.monotonic() - started < 1.5 * HEARTBEAT_SECONDS:
        time.sleep(HEARTBEAT_SECONDS / 20)
        if path.stat().st_mtime_ns != before:
            return True
    return False


def _process_start(pid: int) -> str:
    """When process `pid` started, in the kernel's ticks; "" when it does not run. Guards against reused process ids."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (
            "" if state[0] in "ZX" else state[19]
        )  # dead, only nobody has asked for its exit code yet
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "running"  # as somebody else
    return "running"
