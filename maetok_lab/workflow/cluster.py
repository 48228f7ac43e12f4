"""Entries of a sweep, and trainings, as jobs of a Slurm cluster, through submitit.

The runs folder must be on a file system that all nodes see. A job says how it ended in a JSON file
of its own, so nothing that a job wrote is ever unpickled here; submitit's pickles are read by the
jobs alone.
"""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maetok_lab.files import read_json, write_json
from maetok_lab.ranks import Call
from maetok_lab.runs import Run
from maetok_lab.workflow.pool import Job, Outcome
from maetok_lab.workflow.spec import SlurmConfig
from maetok_lab.workflow.worker import run_entry

QUEUE_SECONDS = 10.0  # between two questions to Slurm
USUAL_ARRAY = 1001  # jobs of an array that Slurm takes where its configuration says nothing


class EntryJob:
    """What a Slurm job runs: one entry, whose outcome it writes to the file `answer`.

    When it is preempted or out of time, submitit queues it again, and its runs go on.
    """

    def __call__(self, job: dict[str, Any], answer: str) -> None:
        write_json(answer, run_entry(job))

    def checkpoint(self, *arguments: Any) -> Any:
        """submitit's hook."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class SlurmPool:
    """One Slurm job an entry, submitted together as an array, or as several if there are too many.

    `jobs.json` remembers them: a sweep that was stopped waits for those that are still queued.
    """

    def __init__(self, config: SlurmConfig, folder: Path, *, cluster: str = "slurm"):
        self.config = config
        self.folder = folder / "slurm"
        self._executor = make_executor(config, self.folder, cluster=cluster)
        self._record = self.folder / "jobs.json"
        self._job_ids: dict[str, str] = {}  # by entry
        if self._record.exists():
            self._job_ids = read_json(self._record)
        # by Slurm's id: the job, and when it was last seen in the queue
        self._running: dict[str, tuple[Job, float]] = {}
        self._last_look = float("-inf")  # at the queue

    def free(self) -> int:
        """As many as there are: the cluster queues them."""
        return 1_000_000

    def start(self, jobs: list[Job]) -> None:
        """Submit jobs; one that is still queued is only waited for.

        Raises ValueError for more arrays than may run `at_once`, OSError when Slurm refuses.
        """
        # While Slurm is silent, all are submitted: a notebook's lock keeps two jobs apart.
        queued = queued_jobs() or set()
        new = []
        for job in jobs:
            job_id = self._job_ids.get(_key(job))
            if job_id in queued:
                self._running[job_id] = job, time.monotonic()
            else:
                new.append(job)
        if not new:
            return

        # Slurm limits each array by itself: together they must not be wider than what was asked.
        largest = max_array_size()
        arrays = [new[first : first + largest] for first in range(0, len(new), largest)]
        at_once = self.config.at_once
        if at_once and at_once < len(arrays):
            raise ValueError(
                f"{len(new):,} jobs are {len(arrays)} arrays here, as Slurm takes {largest:,} jobs "
                f"in one; slurm.at_once must be {len(arrays)} or more, not {at_once}"
            )
        if at_once:
            self._executor.update_parameters(slurm_array_parallelism=at_once // len(arrays))
        for array in arrays:
            self._submit(array)

    def _submit(self, jobs: list[Job]) -> None:
        """One array. It is sent when the `with` ends; only then do its jobs have ids."""
        submitted = []
        try:
            with self._executor.batch():
                for job in jobs:
                    answer = self._answer(job)
                    answer.unlink(missing_ok=True)
                    entry = {"notebook": job.notebook, "parameters": job.parameters}
                    submitted.append(self._executor.submit(EntryJob(), entry, str(answer)))
        except RuntimeError as problem:  # submitit's, with all that sbatch printed
            reason = str(problem).strip().splitlines()[-1:]
            raise OSError(f"Slurm did not take {len(jobs):,} jobs: {' '.join(reason)}") from problem

        # written at once: a stop from here on must not forget them
        for job, sent in zip(jobs, submitted):
            self._running[sent.job_id] = job, time.monotonic()
            self._job_ids[_key(job)] = sent.job_id
            _link(Path(job.log), Path(sent.paths.stdout))
        write_json(self._record, self._job_ids)

    def wait(self, seconds: float) -> list[Outcome]:
        """What ended by now, after `seconds` if nothing has."""
        ended = self._ended()
        if not ended:
            time.sleep(seconds)
            ended = self._ended()
        return ended

    def close(self) -> None:
        """Cancel what is queued or running; the sweep can be continued."""
        if self._running:
            subprocess.run(["scancel", *self._running], check=False, capture_output=True)
        self._running.clear()

    def _ended(self) -> list[Outcome]:
        outcomes = []
        self._look_at_queue()
        for job_id, (job, last_seen) in list(self._running.items()):
            answer = self._answer(job)
            if answer.exists():  # written whole or not at all
                outcomes.append(Outcome(job.number, **read_json(answer)))
                del self._running[job_id]
            elif time.monotonic() - last_seen > 60 * self.config.patience_minutes:
                message = (
                    f"Slurm job {job_id} left the queue without a result "
                    "(cancelled, out of memory or lost); see its log"
                )
                outcomes.append(Outcome(job.number, "failed", message))
                del self._running[job_id]
        return outcomes

    def _look_at_queue(self) -> None:
        """Note when each job was last queued. While Slurm does not answer, none counts as gone."""
        if time.monotonic() - self._last_look < QUEUE_SECONDS:
            return
        self._last_look = time.monotonic()
        queued = queued_jobs()
        for job_id, (job, _) in self._running.items():
            if queued is None or job_id in queued:
                self._running[job_id] = job, self._last_look

    def _answer(self, job: Job) -> Path:
        return self.folder / "answers" / f"{_key(job)}.json"


def make_executor(
    config: SlurmConfig, folder: Path, *, cluster: str = "slurm", nodes: int = 1
) -> Any:
    """submitit's executor that asks for what `config` says.

    Raises ImportError without submitit, OSError without Slurm.
    """
    try:
        import submitit
    except ImportError:
        raise ImportError(
            "jobs on a cluster need submitit: pip install 'maetok-lab[cluster]'"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
    except RuntimeError as problem:
        raise OSError(f"jobs need a Slurm, which is not here: {problem}") from None
    request = {
        "name": "maetok-lab",
        "timeout_min": config.minutes,
        "cpus_per_task": config.cpus,
        "nodes": nodes,
        "tasks_per_node": 1,
        "gpus_per_node": config.gpus,
        "slurm_setup": list(config.setup),
    }
    # What is None is left to the cluster, which has defaults of its own.
    optional = {
        "mem_gb": config.memory_gb,
        "slurm_partition": config.partition,
        "slurm_array_parallelism": config.at_once,
    }
    request |= {name: value for name, value in optional.items() if value}
    executor.update_parameters(**request)
    return executor


class TrainingJob:
    """What a training's job runs on each of its nodes: torchrun, which starts the processes there.

    A process that dies ends the job; submitted again it continues from the last checkpoint. So does
    a job that was preempted or ran out of time: submitit queues it anew.
    """

    def __init__(self, command: Sequence[str], processes: int):
        self.command = list(command)
        self.processes = processes  # on each node

    def __call__(self) -> int:
        import submitit

        # The nodes meet at the first one, at a port that jobs on the same node do not share.
        job = submitit.JobEnvironment()
        port = 20000 + int(job.raw_job_id) % 20000
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        torchrun += ["--nnodes", str(job.num_nodes), "--nproc-per-node", str(self.processes)]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", job.raw_job_id]
        torchrun += ["--rdzv-endpoint", f"{job.hostnames[0]}:{port}"]
        # Before the end of its time submitit gets SIGUSR2, and so do all processes of the job: it
        # would kill them, while the SIGTERM that comes next lets a training save.
        return subprocess.run(
            [*torchrun, *self.command], check=True, preexec_fn=_ignore_submitits_signal
        ).returncode

    def checkpoint(self) -> Any:
        """submitit's hook."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def train_in_job(call: Call) -> None:
    """In each process of a job: go through a training, whose run the first process holds."""
    for _ in call.function(*call.arguments, **call.options):
        pass


def submit_training(
    training: Call | Sequence[str],
    config: SlurmConfig,
    folder: Path,
    *,
    nodes: int = 1,
    processes: int | None = None,
    cluster: str = "slurm",
) -> Any:
    """Submit `Call(train_tokenizer, (config, images, run), {})`, or a script's path and arguments.

    It gets `processes` on each node, by default one a GPU. Submitted again it continues. ->
    submitit's job: `result()` waits and raises what went wrong, `cancel()`, `stdout()`; logs are
    in `folder`. Raises ValueError for a call without a run.
    """
    command = training
    if isinstance(training, Call):
        runs = [argument for argument in training.arguments if isinstance(argument, Run)]
        if len(runs) != 1:
            raise ValueError(f"a training has one run among its arguments, not {len(runs)}")
        runs[0].close()  # the job's own process will hold it
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f"{runs[0].name}-", dir=folder.absolute()))
        Call(train_in_job, (training,), {}).save(place)
        device = "cuda" if config.gpus else "cpu"
        command = ["--module", "maetok_lab.ranks", "work", str(place), device]
    training = TrainingJob(command, processes or max(1, config.gpus))
    return make_executor(config, folder, cluster=cluster, nodes=nodes).submit(training)


def _ignore_submitits_signal() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def queued_jobs() -> set[str] | None:
    """Ids of this user's jobs that Slurm has, "12" or "12_3" in an array; None if it is silent."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        queue = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return set(queue.stdout.split()) if queue.returncode == 0 else None


def max_array_size() -> int:
    """Jobs that Slurm takes in one array (its MaxArraySize)."""
    command = ["scontrol", "show", "config"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return USUAL_ARRAY
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(size[1])) if size else USUAL_ARRAY  # 0 is a Slurm without arrays


def _key(job: Job) -> str:
    return Path(job.log).stem


def _link(log: Path, target: Path) -> None:
    """The entry's log leads to the job's, which does not exist before it starts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.symlink_to(target)
