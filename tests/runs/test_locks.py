"""One writer a folder: a live holder is respected, wherever it runs, a dead one replaced."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from maetok_lab.files import write_bytes
from maetok_lab.runs import locks
from maetok_lab.runs.locks import RunLocked, lock_folder

LEASE = 1.0
BEAT = 0.1


@pytest.fixture
def short_lease(monkeypatch):
    """A second instead of a minute; whoever shares a lock must agree on it."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(locks, "BEAT_SECONDS", BEAT)


@pytest.fixture
def marker(tmp_path_factory):
    """`marker(pid=..., host=..., start=...)`: what the lock file of another holder says."""
    folder = tmp_path_factory.mktemp("marker")
    lock = lock_folder(folder)
    text = (folder / "lock").read_text()
    lock.release()
    own = dict(line.split("=") for line in text.splitlines()[1:])

    def write(**changes):
        duration = {"duration": locks.LEASE_SECONDS}
        lines = [f"{name}={value}" for name, value in {**own, **duration, **changes}.items()]
        return "\n".join(["filelock/2", *lines, ""])

    return write


@contextlib.contextmanager
def beating(path, *, jump=0, before=lambda: None):
    """Another holder's heart, by a clock that is `jump` seconds off; `before` it, it does that."""
    stop = threading.Event()

    def beat():
        before()
        while not stop.wait(BEAT):
            os.utime(path, (time.time() + jump,) * 2)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()


def wait_for(condition):
    """Until it is true, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(folder):
    """The message with which this process is refused, and how many seconds that took."""
    started = time.monotonic()
    with pytest.raises(RunLocked) as caught:
        lock_folder(folder)
    return str(caught.value), time.monotonic() - started


def seconds_to_take(folder):
    """Take the lock and give it back; -> the seconds until it was held."""
    started = time.monotonic()
    lock = lock_folder(folder)
    seconds = time.monotonic() - started
    lock.release()
    assert not (folder / "lock").exists()
    return seconds


def test_a_lock_names_its_holder_and_goes_when_released(tmp_path):
    lock = lock_folder(tmp_path)
    assert f"pid={os.getpid()}\n" in (tmp_path / "lock").read_text()
    lock.release()
    assert not list(tmp_path.iterdir())
    lock.release()


def test_a_live_holder_is_an_error_that_names_it(tmp_path, hold_lock):
    holder = hold_lock(tmp_path)
    before = (tmp_path / "lock").read_text()
    message, seconds = refused(tmp_path)
    assert (
        f"{tmp_path} is being written by process {holder.pid} on {socket.gethostname()}" in message
    )
    assert message.endswith("; wait for it, or end that process")
    assert seconds < 2 * locks.BEAT_SECONDS
    assert (tmp_path / "lock").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_killed_holders_lock_is_taken_over_at_once(tmp_path, hold_lock):
    holder = hold_lock(tmp_path)
    holder.kill()
    holder.wait()
    assert seconds_to_take(tmp_path) < 1


def test_a_zombies_lock_is_taken_over_when_its_lease_ends(tmp_path, hold_lock, short_lease):
    """Nobody asks for its exit code, as in a container without an init process."""
    holder = hold_lock(tmp_path, lease=LEASE, beat=BEAT)
    holder.kill()
    assert LEASE / 2 < seconds_to_take(tmp_path) < 3 * LEASE


def test_a_process_id_that_was_given_again_does_not_count(tmp_path, marker):
    (tmp_path / "lock").write_text(marker(pid=os.getppid(), start=1))
    assert seconds_to_take(tmp_path) < 1


@pytest.mark.parametrize("jump", [0, -3600, 3600], ids=["now", "back", "forward"])
def test_another_hosts_lock_lives_as_long_as_its_heart_beats_whatever_its_clock_says(
    tmp_path, marker, short_lease, jump
):
    path = tmp_path / "lock"
    path.write_text(marker(host="elsewhere", pid=1))
    os.utime(path, (time.time() + jump,) * 2)
    with beating(path, jump=jump):
        assert "process 1 on elsewhere" in refused(tmp_path)[0]
    assert LEASE / 2 < seconds_to_take(tmp_path) < 3 * LEASE  # the heart stands still


def test_a_clock_that_jumps_does_not_matter_on_the_holders_host(tmp_path, hold_lock, short_lease):
    holder = hold_lock(tmp_path, lease=LEASE, beat=BEAT)
    for moment in (1, time.time() + 1e6):
        os.utime(tmp_path / "lock", (moment, moment))
        assert f"process {holder.pid} on" in refused(tmp_path)[0]


def test_the_heart_beats_while_the_lock_is_held_and_stops_afterwards(tmp_path, short_lease):
    path = tmp_path / "lock"
    lock = lock_folder(tmp_path)
    os.utime(path, (1, 1))
    wait_for(lambda: path.stat().st_mtime > 2)
    lock.release()
    path.write_text("")
    os.utime(path, (1, 1))
    time.sleep(3 * BEAT)
    assert path.stat().st_mtime == 1


def test_a_lock_file_without_content_is_named_because_nobody_can_say_whose_it_is(
    tmp_path, short_lease
):
    (tmp_path / "lock").touch()
    message, _ = refused(tmp_path)
    assert message == f"{tmp_path / 'lock'} names no process; remove it if nothing writes there"


def test_the_lock_file_of_the_first_edition_blocks_nobody(tmp_path):
    (tmp_path / "lock.json").write_text('{"host": "elsewhere", "pid": 1, "started": "1"}')
    assert seconds_to_take(tmp_path) < 1


def test_the_same_process_may_take_its_lock_again_and_the_first_taker_writes_no_more(tmp_path):
    first = lock_folder(tmp_path)
    with pytest.raises(RunLocked, match="is being written by this process"):
        lock_folder(tmp_path)
    second = lock_folder(tmp_path, again=True)
    second.check()
    with pytest.raises(RunLocked, match="opened once more in this process"):
        first.check()
    first.release()  # which is not its any more
    assert (tmp_path / "lock").exists()
    second.release()
    assert not (tmp_path / "lock").exists()
    second.check()  # nobody holds it: whoever writes now has to know


def test_a_lease_that_is_forgotten_is_given_up(tmp_path):
    lock_folder(tmp_path)
    assert seconds_to_take(tmp_path) < 1


def test_a_holder_that_stood_still_for_longer_than_its_lease_writes_no_more(tmp_path, hold_lock):
    """A laptop's lid, or a job that was suspended: it wakes up beside another writer."""
    lock = lock_folder(tmp_path)
    text = (tmp_path / "lock").read_text()
    (tmp_path / "lock").unlink()  # as its lease ends
    other = hold_lock(tmp_path)
    with pytest.raises(RunLocked, match="while this one stood still"):
        write_bytes(tmp_path / "deep" / "file", b"mine")
    assert not list((tmp_path / "deep").iterdir())
    # nor does its heart keep the other's lock alive, nor its release remove it
    assert f"pid={other.pid}\n" in (tmp_path / "lock").read_text()
    lock.release()
    assert f"pid={other.pid}\n" in (tmp_path / "lock").read_text() != text


def test_a_lock_without_its_content_yet_is_waited_for(tmp_path, marker, short_lease):
    """On a network file system some tenths of a second lie between a file's name and its bytes."""
    path = tmp_path / "lock"
    path.touch()

    def write():
        time.sleep(0.3)
        path.write_text(marker(host="elsewhere", pid=1))

    with beating(path, before=write):
        assert "process 1 on elsewhere" in refused(tmp_path)[0]


def test_one_beat_that_fails_does_not_end_the_heart(tmp_path, short_lease, monkeypatch):
    lock = lock_folder(tmp_path)
    failed = []

    def fails(*arguments, **options):
        failed.append(1)
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as broken:
        broken.setattr("filelock._lease.touch", fails)
        wait_for(lambda: len(failed) > 1)
    os.utime(tmp_path / "lock", (1, 1))
    wait_for(lambda: (tmp_path / "lock").stat().st_mtime > 2)
    lock.release()


def test_releasing_leaves_a_lock_that_somebody_else_has_by_now(tmp_path, marker):
    lock = lock_folder(tmp_path)
    (tmp_path / "theirs").write_text(marker(host="elsewhere"))
    os.replace(tmp_path / "theirs", tmp_path / "lock")
    lock.release()
    assert "host=elsewhere" in (tmp_path / "lock").read_text()


def test_of_many_that_want_a_dead_holders_lock_one_gets_it(tmp_path, hold_lock):
    holder = hold_lock(tmp_path, beat=0.2)
    holder.kill()
    holder.wait()
    contenders = [hold_lock(tmp_path, beat=0.2, wait=False) for _ in range(4)]
    answers = [contender.stdout.readline().strip() for contender in contenders]
    assert answers.count("held") == 1
    winner = contenders[answers.index("held")]
    assert sum(f"process {winner.pid} on" in answer for answer in answers) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


# Two containers that share a host name, but not a process namespace -------------------------------

NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def namespaces_work():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


in_namespaces = pytest.mark.skipif(not namespaces_work(), reason="unshare makes no namespaces here")


@in_namespaces
def test_a_holder_in_another_process_namespace_is_alive_though_its_process_id_is_not(
    tmp_path, hold_lock, short_lease
):
    container = hold_lock(tmp_path, lease=LEASE, beat=BEAT, inside=NAMESPACE)
    text = (tmp_path / "lock").read_text()
    assert "pid=1\n" in text  # which here is another process
    message, _ = refused(tmp_path)
    assert f"process 1 on {socket.gethostname()} in process namespace " in message
    assert (tmp_path / "lock").read_text() == text
    # nor can this process see that it is dead: only that its heart stands still
    container.kill()
    container.wait()
    assert LEASE / 2 < seconds_to_take(tmp_path) < 3 * LEASE


@in_namespaces
def test_a_process_in_a_namespace_respects_a_holder_outside_of_it(tmp_path, hold_lock, short_lease):
    lock = lock_folder(tmp_path)
    container = hold_lock(tmp_path, lease=LEASE, beat=BEAT, inside=NAMESPACE, wait=False)
    assert f"process {os.getpid()} on {socket.gethostname()}" in container.stdout.readline()
    lock.release()
