"""Kills at random moments: whatever is run again must end with the result of an undisturbed run.

python tests/attack/kills.py [COUNT]
"""

import contextlib
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
sys.path.insert(0, TESTS)
import kill_work  # noqa: E402

KILLS_A_RUN = 5  # before it may go on to its end

# a server that has imported everything forks in milliseconds: so most kills hit the work itself
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["kill_work"])


def run_stage(stage: str, root: Path, *, kill_after: float | None = None) -> float:
    """Run a stage in a process of its own, killed so long after its start. -> seconds it worked"""
    if TESTS not in sys.path:  # which the new process takes over
        sys.path.append(TESTS)
    started = time.monotonic()
    process = processes.Process(target=kill_work.main, args=(stage, str(root)))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    elif process.exitcode:
        raise RuntimeError(f"{stage} ended with exit code {process.exitcode}")
    seconds = time.monotonic() - started
    process.close()
    return seconds


@contextlib.contextmanager
def undisturbed() -> Iterator[tuple[Path, dict[str, float]]]:
    """The whole path, each stage run once: its folder, and the seconds of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        yield root, {stage: run_stage(stage, root) for stage in kill_work.STAGES}


def kill_and_continue(stage: str, whole: Path, seconds: float, draw: random.Random) -> str | None:
    """Kill a stage some times, then let it go on to its end. -> what is not as it should be"""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for earlier, run in kill_work.RUNS.items():
            if earlier == stage:
                break
            shutil.copytree(whole / run, root / run)
        for _ in range(KILLS_A_RUN):
            run_stage(stage, root, kill_after=draw.uniform(0, seconds))
        try:
            run_stage(stage, root)
        except RuntimeError as problem:
            return str(problem)
        run = kill_work.RUNS[stage]
        if (root / run / "lock").exists():
            return f"{stage}: the lock is still there"
        if kill_work.outcome(root / run) != kill_work.outcome(whole / run):
            return f"{stage}: another result than undisturbed"
        return None


def kills(count: int, seed: int = 0) -> dict:
    """So many kills over all stages, `KILLS_A_RUN` in a row. -> tried, survived, failures"""
    draw = random.Random(seed)
    failures = []
    stages = list(kill_work.STAGES)
    runs = max(1, count // KILLS_A_RUN)
    with undisturbed() as (whole, seconds), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(runs):
            stage = stages[number % len(stages)]
            problem = kill_and_continue(stage, whole, seconds[stage], draw)
            if problem:
                failures.append(problem)
    lost = len(failures) * KILLS_A_RUN
    tried = runs * KILLS_A_RUN
    return {"tried": tried, "survived": tried - lost, "failures": failures}


if __name__ == "__main__":
    print(kills(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
