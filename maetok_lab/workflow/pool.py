"""Where the entries of a sweep run: worker processes on this machine, one a GPU, or some on a CPU.

Workers stay for the next entry. With submitit's local executor, which starts a process an entry, an
entry cost 4 to 8 s beyond its cells instead of 1 (benchmarks/README.md).
"""

import contextlib
import dataclasses
import json
import selectors
import subprocess
import sys
from typing import Any, Protocol

import torch

STOP_SECONDS = 30.0  # a worker that is to stop ends its kernel first


@dataclasses.dataclass(frozen=True)
class Job:
    """An entry on its way to a pool."""

    number: int
    notebook: str
    parameters: dict[str, Any]
    log: str  # file for what it prints


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    number: int
    outcome: str  # "done", "failed", or "locked" when somebody else is writing its run
    error: str | None


class Pool(Protocol):
    """What a sweep needs of the place where its entries run."""

    def free(self) -> int: ...

    def start(self, jobs: list[Job]) -> None: ...

    def wait(self, seconds: float) -> list[Outcome]: ...

    def close(self) -> None: ...


class LocalPool:
    """Processes on this machine that each run one entry at a time; one that dies is replaced."""

    def __init__(self, workers: int | None = None):
        # More workers than GPUs share them in turns.
        gpus: list[str | None] = [*visible_gpus()] or [None]
        workers = workers or len(gpus)
        self.places = [gpus[i % len(gpus)] for i in range(workers)]  # the GPU of each worker
        self._threads = max(1, torch.get_num_threads() // workers)
        self._workers: dict[int, subprocess.Popen] = {}  # by place, as are the jobs
        self._running: dict[int, Job] = {}

    def free(self) -> int:
        """Entries that can be started now."""
        return len(self.places) - len(self._running)

    def start(self, jobs: list[Job]) -> None:
        """Start jobs, as many as are `free`."""
        free_places = [i for i in range(len(self.places)) if i not in self._running]
        for place, job in zip(free_places, jobs):
            if place not in self._workers:
                self._workers[place] = self._launch(place)
            self._running[place] = job
            pipe = self._workers[place].stdin
            # a worker that died while idle: `wait` meets the end of its output and says so
            with contextlib.suppress(BrokenPipeError):
                pipe.write(json.dumps(dataclasses.asdict(job)) + "\n")
                pipe.flush()

    def wait(self, seconds: float) -> list[Outcome]:
        """What ended, after `seconds` at most."""
        with selectors.DefaultSelector() as selector:
            for place in self._running:
                selector.register(self._workers[place].stdout, selectors.EVENT_READ, place)
            return [self._answer(key.data) for key, _ in selector.select(seconds)]

    def close(self) -> None:
        """End the workers; entries that were running can be continued."""
        # All are asked to end first, then waited for: each takes some seconds to end its kernel.
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            _close_pipes(worker)
        self._workers.clear()
        self._running.clear()

    def _answer(self, place: int) -> Outcome:
        job = self._running.pop(place)
        line = self._workers[place].stdout.readline()
        if line:
            return Outcome(job.number, **json.loads(line))

        # The end of its output: the process is gone, most often for the memory it took.
        worker = self._workers.pop(place)
        code = worker.wait()
        _close_pipes(worker)
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Outcome(job.number, "failed", f"the worker process {reason} (out of memory?)")

    def _launch(self, place: int) -> subprocess.Popen:
        """A worker that sees one GPU only, and takes its share of the CPU's threads."""
        # Read when torch is imported, so it must be in the environment before.
        settings = [f"OMP_NUM_THREADS={self._threads}"]
        if self.places[place] is not None:
            settings.append(f"CUDA_VISIBLE_DEVICES={self.places[place]}")
        return subprocess.Popen(
            ["env", *settings, sys.executable, "-m", "maetok_lab.workflow.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # a session of its own: ^C reaches the sweep alone, which then ends its workers
            start_new_session=True,
        )


def _close_pipes(worker: subprocess.Popen) -> None:
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.stdout.close()


def visible_gpus() -> list[str]:
    """The GPUs that torch may use here, as CUDA_VISIBLE_DEVICES names them; none is initialised."""
    if not torch.cuda.is_available():
        return []
    return [str(name) for name in torch.cuda._parse_visible_devices()[: torch.cuda.device_count()]]
