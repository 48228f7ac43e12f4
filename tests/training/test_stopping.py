"""A training that is stopped, by whatever, loses one step at most and goes on with the same."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from maetok_lab.runs import Run

WORK = Path(__file__).with_name("stop_work.py")
STEPS = 100_000  # more than any test waits for


@pytest.fixture
def start():
    """`start(root, processes)`: the training in a process of its own, past its first step."""
    started = []

    def begin(root: Path, processes: int, *, num_steps: int = STEPS) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(WORK), str(root), str(processes), str(num_steps)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline().strip(), process.stderr.read()[-2000:]
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def last_step(process: subprocess.Popen, *, seconds: float = 60) -> int:
    """The last step that a process said, once it has ended."""
    printed, _ = process.communicate(timeout=seconds)
    return int(printed.split()[-1]) if printed.split() else 1


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of its group, the first one first."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "work" in child.cmdline()]


def end_within(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all of them are gone after so long."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_sigterm_at_any_moment_loses_one_step_at_most(start, tmp_path, times):
    draws = random.Random(times)
    before = 0
    for _ in range(times):
        process = start(tmp_path, 1)
        time.sleep(draws.uniform(0, 0.3))
        process.send_signal(signal.SIGTERM)
        said = last_step(process)
        assert process.returncode == -signal.SIGTERM
        saved = Run(tmp_path / "stopped").checkpoint_steps()[-1]
        assert before < said <= saved
        # what was logged is what was saved: nothing is logged twice
        steps = Run(tmp_path / "stopped").metrics("train")["step"].tolist()
        assert steps == list(range(1, saved + 1))
        before = saved


@pytest.mark.slow
def test_sigterm_ends_several_processes_after_one_step(start, tmp_path):
    process = start(tmp_path, 2)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(signal.SIGTERM)
    said = last_step(process)
    assert process.returncode == -signal.SIGTERM
    assert end_within(ranks, 10)
    run = Run(tmp_path / "stopped")
    assert said <= run.checkpoint_steps()[-1]
    assert run.metrics("train")["step"].tolist()[-1] == run.checkpoint_steps()[-1]
    # one of them alone is enough: all go on to the same step
    process = start(tmp_path, 2)
    ranks_of(process)[1].send_signal(signal.SIGTERM)
    last_step(process)
    assert len(run.checkpoint_steps()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["rank", "owner", "torchrun"])
def test_a_process_that_is_killed_takes_the_others_with_it_and_the_same_goes_on(
    start, tmp_path, killed
):
    process = start(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    last_step(process)
    saved = Run(tmp_path / "stopped").checkpoint_steps()[-1]
    process = start(tmp_path, 2)
    ranks = ranks_of(process)
    launcher = psutil.Process(ranks[0].ppid())
    {"rank": ranks[1], "owner": process, "torchrun": launcher}[killed].kill()
    assert end_within([*ranks, launcher], 30)
    _, errors = process.communicate(timeout=30)
    if killed == "rank":
        assert "process 1 of 2 was ended by SIGKILL" in errors
    assert process.returncode != 0
    process = start(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    assert last_step(process) > saved
