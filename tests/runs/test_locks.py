"""One writer a folder: a live owner is respected, a dead one replaced."""

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from maetok_lab.runs import locks
from maetok_lab.runs.locks import RunLock, RunLocked


def owner_of(pid: int) -> dict:
    return {"host": socket.gethostname(), "pid": pid, "started": locks._process_start(pid)}


@pytest.fixture
def other():
    """A live process that is not this one."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock.json"


def test_a_lock_names_its_owner_and_goes_when_released(path):
    lock = RunLock(path)
    assert json.loads(path.read_text()) == owner_of(os.getpid())
    lock.release()
    assert not list(path.parent.iterdir())
    lock.release()


def test_a_live_owner_is_an_error_that_names_it(path, other):
    path.write_text(json.dumps(owner_of(other.pid)))
    with pytest.raises(
        RunLocked, match=f"written by process {other.pid} on {socket.gethostname()}; wait for it"
    ):
        RunLock(path)
    assert json.loads(path.read_text()) == owner_of(other.pid)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_owners_lock_is_taken_over(path, other, reaped):
    path.write_text(json.dumps(owner_of(other.pid)))
    other.kill()
    if reaped:
        other.wait()
    else:  # nobody asks for its exit code, as in a container without an init process
        deadline = time.monotonic() + 5
        while locks._process_start(other.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
    RunLock(path).release()
    assert not path.exists()


def test_a_process_id_that_was_given_again_does_not_count(path, other):
    path.write_text(json.dumps(owner_of(other.pid) | {"started": "1"}))
    RunLock(path).release()


def test_another_hosts_lock_lives_as_long_as_its_heart_beats(path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.1)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(RunLocked, match="process 1 on elsewhere"):
        RunLock(path)
    late = time.time() - locks.STALE_SECONDS - 5
    os.utime(path, (late, late))
    RunLock(path).release()


@pytest.mark.parametrize("jump", [-3600, 3600], ids=["back", "forward"])
def test_a_clock_that_jumps_neither_kills_a_lock_nor_keeps_a_dead_one(path, monkeypatch, jump):
    """The last beat of another host lies an hour before or after the file system's clock."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.2)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    stop = threading.Event()

    def beat():
        moment = time.time() - jump
        while not stop.wait(0.1):
            moment += 0.1
            os.utime(path, (moment, moment))

    heart = threading.Thread(target=beat)
    os.utime(path, (time.time() - jump,) * 2)
    heart.start()
    try:
        with pytest.raises(RunLocked, match="process 1 on elsewhere"):
            RunLock(path)
    finally:
        stop.set()
        heart.join()
    RunLock(path).release()  # the heart stands still
    assert not path.exists()


def test_a_clock_that_jumps_does_not_matter_on_the_owners_host(path, other):
    path.write_text(json.dumps(owner_of(other.pid)))
    for moment in (1, time.time() + 1e6):
        os.utime(path, (moment, moment))
        with pytest.raises(RunLocked, match=f"process {other.pid}"):
            RunLock(path)


def test_the_heart_beats_while_the_lock_is_held_and_stops_afterwards(path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    lock = RunLock(path)
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 2
    lock.release()
    path.write_text("{}")
    os.utime(path, (1, 1))
    time.sleep(0.05)
    assert path.stat().st_mtime == 1


def test_a_lock_file_without_content_counts_as_dead_only_after_a_moment(path):
    path.touch()
    before = time.monotonic()
    RunLock(path).release()
    assert time.monotonic() - before > 0.04


def test_the_same_process_may_take_its_lock_again(path):
    RunLock(path)
    RunLock(path).release()
    assert not path.exists()


def test_releasing_leaves_a_lock_that_somebody_else_has_by_now(path, other):
    lock = RunLock(path)
    path.write_text(json.dumps(owner_of(other.pid)))
    lock.release()
    assert json.loads(path.read_text()) == owner_of(other.pid)


def test_a_lock_that_was_taken_over_a_moment_ago_is_not_removed_as_stale(path, other):
    lock = RunLock(path)
    path.write_text(json.dumps(owner_of(other.pid)))  # won the race for the dead owner's lock
    lock._remove_stale(owner_of(other.pid) | {"pid": 4_000_000})
    assert json.loads(path.read_text()) == owner_of(other.pid)
    assert list(path.parent.iterdir()) == [path]
