"""Where the entries of a sweep run: worker processes on this machine, one a GPU, or several on a CPU."""

import contextlib
import dataclasses
import json
import selectors
import subprocess
import sys
from typing import Any, Protocol

import torch

STOP_SECONDS = 30.0  # a worker that was told to stop ends its kernel first


@dataclasses.dataclass(frozen=True)
class Job:
    """An entry on its way: which one, the notebook, its parameters, and the file for what it prints."""

    number: int
    notebook: str
    parameters: dict[str, Any]
    log: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended: "done", "failed", or "locked" when somebody else is writing its run."""

    number: int
    outcome: str
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
        gpus = visible_gpus()
        self.places = [
            gpus[i % len(gpus)] if gpus else None for i in range(workers or max(1, len(gpus)))
        ]
        self._threads = max(1, torch.get_num_threads() // len(self.places))
        self._workers: dict[int, subprocess.Popen] = {}
        self._running: dict[int, Job] = {}

    def free(self) -> int:
        """Entries that can be started now."""
        return len(self.places) - len(self._running)

    def start(self, jobs: list[Job]) -> None:
        """Start jobs, as many as are `free`."""
        for job in jobs:
            place = next(place for place in range(len(self.places)) if place not in self._running)
            if place not in self._workers:
                self._workers[place] = self._launch(place)
            self._running[place] = job
            with contextlib.suppress(
                BrokenPipeError
            ):  # it died while idle: `wait` meets the end of its output and says so
                self._workers[place].stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
                self._workers[place].stdin.flush()

    def wait(self, seconds: float) -> list[Outcome]:
        """What ended, after `seconds` at most."""
        outcomes = []
        with selectors.DefaultSelector() as selector:
            for place in self._running:
                selector.register(self._workers[place].stdout, selectors.EVENT_READ, place)
            for key, _ in selector.select(seconds):
                outcomes.append(self._answer(key.data))
        return outcomes

    def close(self) -> None:
        """End the workers; entries that were running can be continued."""
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            _close(worker)
        self._workers, self._running = {}, {}

    def _answer(self, place: int) -> Outcome:
        job = self._running.pop(place)
        line = self._workers[place].stdout.readline()
        if line:
            return Outcome(job.number, **json.loads(line))
        worker = self._workers.pop(place)
        code = worker.wait()
        _close(worker)
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Outcome(job.number, "failed", f"the worker process {reason} (out of memory?)")

    def _launch(self, place: int) -> subprocess.Popen:
        """A worker that sees one GPU only, and takes its share of the CPU's threads."""
        settings = [f"OMP_NUM_THREADS={self._threads}"]
        if self.places[place] is not None:
            settings.append(f"CUDA_VISIBLE_DEVICES={self.places[place]}")
        command = ["env", *settings, sys.executable, "-m", "maetok_lab.workflow.worker"]
        # a session of its own: ^C reaches the sweep alone, which then ends its workers
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **pipes, start_new_session=True)


def _close(worker: subprocess.Popen) -> None:
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.stdout.close()


def visible_gpus() -> list[str]:
    """The GPUs that torch may use here, as CUDA_VISIBLE_DEVICES names them; no GPU is initialised by asking."""
    if not torch.cuda.is_available():
        return []
    return [str(name) for name in torch.cuda._parse_visible_devices()[: torch.cuda.device_count()]]
