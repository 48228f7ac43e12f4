"""Entries of a sweep as jobs of a Slurm cluster, through submitit.

The runs folder must be on a file system that all nodes see. A job tells how it ended in a JSON file of its own, so
nothing that a job wrote is ever unpickled here; submitit's pickles are read by the jobs alone.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maetok_lab.files import read_json, write_json
from maetok_lab.workflow.pool import Job, Outcome
from maetok_lab.workflow.spec import SlurmConfig
from maetok_lab.workflow.worker import run_entry

QUEUE_SECONDS = 10.0  # between two questions to Slurm


class EntryJob:
    """What a job runs. When it is preempted or out of time, submitit queues it again, and its runs go on where they were."""

    def __call__(self, job: dict[str, Any], answer: str) -> None:
        write_json(answer, run_entry(job))

    def checkpoint(self, *arguments: Any) -> Any:
        """submitit's hook."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class SlurmPool:
    """One Slurm job an entry, submitted together as an array. `jobs.json` remembers them: a sweep that was stopped finds
    those that are still queued or running again.
    """

    def __init__(self, config: SlurmConfig, folder: Path, *, cluster: str = "slurm"):
        self.config, self.folder = config, folder / "slurm"
        self._executor = make_executor(config, self.folder, cluster=cluster)
        self._record = self.folder / "jobs.json"
        self._known: dict[str, str] = read_json(self._record) if self._record.exists() else {}
        self._running: dict[str, tuple[Job, float]] = {}
        self._asked = float("-inf")

    def free(self) -> int:
        """As many as there are: the cluster queues them."""
        return 1_000_000

    def start(self, jobs: list[Job]) -> None:
        """Submit jobs as one array; one that is queued or running since an earlier call is only waited for."""
        queued = queued_jobs() or set()
        new = []
        for job in jobs:
            known = self._known.get(_key(job))
            if known in queued:
                self._running[known] = job, time.monotonic()
            else:
                new.append(job)
        if not new:
            return
        for job in new:
            self._answer(job).unlink(missing_ok=True)
        with self._executor.batch():
            submitted = [
                self._executor.submit(EntryJob(), _told(job), str(self._answer(job))) for job in new
            ]
        for job, sent in zip(new, submitted):
            self._running[sent.job_id] = job, time.monotonic()
            self._known[_key(job)] = sent.job_id
            _link(Path(job.log), Path(sent.paths.stdout))
        write_json(self._record, self._known)

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
        self._running = {}

    def _ended(self) -> list[Outcome]:
        outcomes = []
        self._look_at_queue()
        for number, (job, seen) in list(self._running.items()):
            answer = self._answer(job)
            if answer.exists():
                outcomes.append(Outcome(job.number, **read_json(answer)))
            elif time.monotonic() - seen > 60 * self.config.patience_minutes:
                told = f"Slurm job {number} left the queue without a result (cancelled, out of memory or lost); see its log"
                outcomes.append(Outcome(job.number, "failed", told))
            else:
                continue
            del self._running[number]
        return outcomes

    def _look_at_queue(self) -> None:
        """Note when each job was last seen in the queue. While Slurm does not answer, none counts as gone."""
        if time.monotonic() - self._asked < QUEUE_SECONDS:
            return
        self._asked = time.monotonic()
        queued = queued_jobs()
        for number, (job, _) in self._running.items():
            if queued is None or number in queued:
                self._running[number] = job, self._asked

    def _answer(self, job: Job) -> Path:
        return self.folder / "answers" / f"{_key(job)}.json"


def make_executor(
    config: SlurmConfig, folder: Path, *, cluster: str = "slurm", nodes: int = 1
) -> Any:
    """submitit's executor with what `config` asks for. Raises ImportError without submitit, RuntimeError without Slurm."""
    try:
        import submitit
    except ImportError:
        raise ImportError(
            "jobs on a cluster need submitit: pip install 'maetok-lab[cluster]'"
        ) from None
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
    asked = {
        "name": "maetok-lab",
        "timeout_min": config.minutes,
        "cpus_per_task": config.cpus,
        "nodes": nodes,
    }
    asked |= {"tasks_per_node": 1, "gpus_per_node": config.gpus, "slurm_setup": list(config.setup)}
    asked |= {"mem_gb": config.memory_gb} if config.memory_gb else {}
    asked |= {"slurm_partition": config.partition} if config.partition else {}
    asked |= {"slurm_array_parallelism": config.at_once} if config.at_once else {}
    executor.update_parameters(**asked)
    return executor


class TrainingJob:
    """What a job of several processes runs on each of its nodes: torchrun, which starts the processes there.

    The nodes meet at the first one. A worker that dies ends the job; submitted again it continues from the last checkpoint.
    So does a job that was preempted or ran out of time: submitit queues it anew.
    """

    def __init__(self, command: Sequence[str], processes: int):
        self.command, self.processes = list(command), processes

    def __call__(self) -> int:
        import submitit

        where = submitit.JobEnvironment()
        port = 20000 + int(where.raw_job_id) % 20000  # jobs that share a node must not meet
        meet = [
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            where.raw_job_id,
            "--rdzv-endpoint",
            f"{where.hostnames[0]}:{port}",
        ]
        nodes = ["--nnodes", str(where.num_nodes), "--nproc-per-node", str(self.processes)]
        command = [sys.executable, "-m", "torch.distributed.run", *nodes, *meet, *self.command]
        return subprocess.run(command, check=True).returncode

    def checkpoint(self) -> Any:
        """submitit's hook."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit_training(
    command: Sequence[str],
    config: SlurmConfig,
    folder: Path,
    *,
    nodes: int = 1,
    processes: int | None = None,
    cluster: str = "slurm",
) -> Any:
    """Submit a training script (`command`: its path and arguments) to run in `processes` a node, by default one a GPU.

    The script trains into a run, so that submitting it again continues. -> submitit's job: `result()` waits and raises what
    went wrong, `cancel()`, `stdout()`; logs are in `folder`.
    """
    processes = processes or max(1, config.gpus)
    return make_executor(config, folder, cluster=cluster, nodes=nodes).submit(
        TrainingJob(command, processes)
    )


def queued_jobs() -> set[str] | None:
    """Ids of this user's jobs that Slurm still has, "12" or "12_3" in an array; None while it does not answer."""
    try:
        command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


def _key(job: Job) -> str:
    return Path(job.log).stem


def _told(job: Job) -> dict[str, Any]:
    return {"notebook": job.notebook, "parameters": job.parameters}


def _link(log: Path, target: Path) -> None:
    """The entry's log leads to the job's, which does not exist before it starts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.symlink_to(target)
