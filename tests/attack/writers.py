"""Two writers of one run, three ways: every step is written once, by one of them at a time.

python tests/attack/writers.py
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEASE = 3.0  # seconds
STEPS = 30
STEP_SECONDS = 0.1
CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
HIDDEN = "mount -o remount,hidepid=2 /proc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The config of the run that both write."""

    steps: int = STEPS


def write(root: str) -> None:
    """One writer: goes on with the run to its end, a step at a time; says how it ended."""
    import torch

    from maetok_lab.runs import Run, locks

    locks.LEASE_SECONDS = LEASE
    locks.BEAT_SECONDS = LEASE / 20
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with Run.open("a", Job(), root=root) as run:
            checkpoint = run.load_checkpoint()
            first = checkpoint.step if checkpoint else 0
            run.rewind_metrics(first)
            print("open", flush=True)
            for step in range(first + 1, STEPS + 1):
                time.sleep(STEP_SECONDS)
                run.log({"step": step, "split": "train", "process": os.getpid()})
                run.save_checkpoint(step, {"model": {"w": torch.tensor(step)}}, {})
            run.finish({})
        print("finished", flush=True)
    except locks.RunLocked as problem:
        print(f"locked: {problem}", flush=True)


def writer(root: Path, inside: list[str] = ()) -> subprocess.Popen:
    """A process that writes from `begin` on: so none comes too late for the other."""
    words = [sys.executable, __file__, "write", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*inside, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process: subprocess.Popen) -> None:
    """Let a writer begin."""
    process.stdin.write("\n")
    process.stdin.flush()


def wait_for_steps(root: Path, count: int) -> None:
    """Until so many steps are logged."""
    deadline = time.monotonic() + 120
    path = root / "a" / "metrics.jsonl"
    while not path.exists() or len(path.read_bytes().splitlines()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {count} steps in {path}")
        time.sleep(0.02)


def verdict(root: Path, *outputs: str) -> str | None:
    """What is not as it should be, in words."""
    from maetok_lab.runs import Run

    run = Run(root / "a")
    steps = run.metrics()["step"].tolist()
    if steps != list(range(1, STEPS + 1)):
        return f"the logged steps are {steps}"
    endings = sorted(
        output.split()[-1] if "locked" not in output else "locked" for output in outputs
    )
    if endings != ["finished", "locked"]:
        return f"the writers ended with {outputs}"
    if not run.finished or run.load_checkpoint().step != STEPS:
        return f"the run is not whole: {run.problem}"
    return None


def at_once(root: Path, first: list[str], second: list[str]) -> str | None:
    """A second writer comes while a first one, that it cannot see, works."""
    one, other = writer(root, first), writer(root, second)
    begin(one)
    wait_for_steps(root, 3)
    begin(other)
    outputs = [process.communicate(timeout=180)[0] for process in (one, other)]
    return verdict(root, *outputs)


def in_namespaces(root: Path) -> str | None:
    """Two containers with one host name."""
    return at_once(root, CONTAINER, [])


def behind_hidden_processes(root: Path) -> str | None:
    """Another user's writer on a host that hides processes of others."""
    root.chmod(0o777)
    other_user = f'{HIDDEN}; umask 0; exec setpriv --reuid=65534 --clear-groups "$@"'
    first = [*CONTAINER, "--mount", "sh", "-c", other_user, "sh"]
    second = ["unshare", "--mount", "sh", "-c", f'{HIDDEN}; exec "$@"', "sh"]
    return at_once(root, first, second)


def stopped_for_longer_than_its_lease(root: Path) -> str | None:
    """A laptop's lid: the first writer wakes up beside a second one."""
    one, other = writer(root), writer(root)
    begin(one)
    wait_for_steps(root, 5)
    one.send_signal(signal.SIGSTOP)
    begin(other)
    wait_for_steps(root, 10)
    one.send_signal(signal.SIGCONT)
    outputs = [process.communicate(timeout=180)[0] for process in (one, other)]
    return verdict(root, *outputs)


def possible(way) -> bool:
    """Whether this machine can play it: containers need namespaces, the other user root."""
    if way is stopped_for_longer_than_its_lease:
        return True
    command = CONTAINER if way is in_namespaces else [*CONTAINER, "--mount", "sh", "-c", HIDDEN]
    if way is behind_hidden_processes and (os.geteuid() or shutil.which("setpriv") is None):
        return False
    with contextlib.suppress(FileNotFoundError):
        words = [*command, "true"] if way is in_namespaces else command
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


WAYS = (in_namespaces, stopped_for_longer_than_its_lease, behind_hidden_processes)


def two_writers() -> dict:
    """All ways that this machine can play. -> tried, survived, failures, and those left out"""
    failures = []
    left_out = []
    for way in WAYS:
        if not possible(way):
            left_out.append(way.__name__)
            continue
        with tempfile.TemporaryDirectory() as folder:
            if problem := way(Path(folder)):
                failures.append(f"{way.__name__}: {problem}")
    tried = len(WAYS) - len(left_out)
    return {
        "tried": tried,
        "survived": tried - len(failures),
        "failures": failures,
        "left out": left_out,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2])
    else:
        print(two_writers())
