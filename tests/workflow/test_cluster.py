"""Entries as jobs: submitted once, waited for, found again after a stop, given up when lost."""

import os
import sys
import time

import pytest

from maetok_lab.data.images import open_images
from maetok_lab.files import read_json
from maetok_lab.ranks import Call
from maetok_lab.runs import Run
from maetok_lab.training.presets import tokenizer_training
from maetok_lab.training.tokenizer import train_tokenizer
from maetok_lab.workflow import SlurmConfig, SweepSpec, cluster, grid, sweep
from maetok_lab.workflow.cluster import SlurmPool, make_executor, submit_training
from maetok_lab.workflow.pool import Job

pytest.importorskip("submitit")
ANSWER = """
from maetok_lab.workflow import report
if scale == 3: raise ValueError("three")
report(loss=scale)"""


def job(tmp_path, number=0):
    return Job(number, "n.ipynb", {"seed": 1}, str(tmp_path / "logs" / f"entry-{number}.log"))


def test_a_sweep_runs_as_jobs_whose_logs_are_where_the_table_says(
    tmp_path, make_notebook, monkeypatch
):
    path = make_notebook(tmp_path / "answer.ipynb", "print('in a job')\n" + ANSWER)
    folder = tmp_path / "sweeps" / "toy"
    spec = SweepSpec(
        name="toy", notebook=str(path), entries=tuple(grid({"scale": [2.0, 3.0]})), quality="loss"
    )
    monkeypatch.setattr(cluster, "queued_jobs", lambda: None)
    result = sweep(spec, runs=tmp_path, pool=SlurmPool(spec.slurm, folder, cluster="local"))
    assert result.table["state"].tolist() == ["done", "failed"]
    assert "ValueError: three" in result.table["error"][1]
    assert (
        "in a job"
        in (
            tmp_path / "sweeps" / "toy" / "logs" / f"{result.table['log'][0].split('/')[-1]}"
        ).read_text()
    )


class Sent:
    """A submitted job as submitit describes it."""

    def __init__(self, number, folder):
        from types import SimpleNamespace

        self.job_id, self.paths = f"7_{number}", SimpleNamespace(stdout=folder / f"7_{number}.out")


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A pool whose jobs stay queued; `sent` lists what was submitted, `queue` is Slurm's."""
    pool = SlurmPool(SlurmConfig(patience_minutes=0.001), tmp_path, cluster="local")
    pool.sent, pool.queue = [], set()

    def submit(function, entry, answer):
        pool.sent.append(entry)
        pool.queue.add(f"7_{len(pool.sent) - 1}")
        return Sent(len(pool.sent) - 1, tmp_path)

    monkeypatch.setattr(pool._executor, "submit", submit)
    monkeypatch.setattr(pool._executor, "_submit_delayed_batch", lambda: None, raising=False)
    monkeypatch.setattr(
        cluster, "queued_jobs", lambda: None if pool.queue is None else set(pool.queue)
    )
    monkeypatch.setattr(cluster, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "max_array_size", lambda: 1001)
    monkeypatch.setattr(cluster.subprocess, "run", lambda command, **kw: pool.sent.append(command))
    return pool


def test_a_job_that_slurm_forgot_is_given_up_after_our_deadline_but_not_while_slurm_is_silent(
    pool, tmp_path
):
    pool.start([job(tmp_path)])
    assert pool.wait(0.1) == []
    pool.queue = None
    assert pool.wait(0.1) == []
    pool.queue = set()
    ended = []
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        ended = pool.wait(0.05)
    (ended,) = ended
    assert (ended.number, ended.outcome) == (0, "failed")
    assert "Slurm job 7_0 left the queue without a result" in ended.error


def test_a_stopped_sweep_finds_its_queued_jobs_again(pool, tmp_path, monkeypatch):
    pool.start([job(tmp_path, 0), job(tmp_path, 1)])
    pool.queue.discard("7_1")
    again = SlurmPool(pool.config, tmp_path, cluster="local")
    monkeypatch.setattr(again._executor, "submit", pool._executor.submit)
    again.start([job(tmp_path, 0), job(tmp_path, 1)])
    assert len(pool.sent) == 3  # two, and the one that is no longer queued
    again.close()
    assert pool.sent[-1][0] == "scancel"
    assert set(pool.sent[-1][1:]) == {"7_0", "7_2"}


CONFIG = """\
Configuration data as of 2026-01-01T00:00:00
MaxArraySize            = 101
MaxDBDMsgs              = 20008
"""


def test_more_jobs_than_slurm_takes_in_an_array_are_several_arrays(tmp_path, monkeypatch):
    """Against the sbatch of a Slurm that refuses larger arrays, as scontrol says it would."""
    tools = tmp_path / "bin"
    tools.mkdir()
    sbatch = f"""#!{sys.executable}
import re, sys
text = open(sys.argv[-1]).read()
array = re.search(r"--array=0-(\\d+)%(\\d+)", text)
if array and int(array[1]) > 100:
    sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
log = open({str(tmp_path / "sent")!r}, "a+")
log.seek(0)
number = len(log.readlines()) + 1
print(*(array.groups() if array else [0, 0]), file=log)
print("Submitted batch job", number)
"""
    for name, text in {
        "sbatch": sbatch,
        "scontrol": f"#!/bin/sh\ncat <<'END'\n{CONFIG}END\n",
        "squeue": "#!/bin/sh\n",
        "scancel": "#!/bin/sh\n",
        "srun": "#!/bin/sh\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")

    assert cluster.max_array_size() == 101
    jobs = [job(tmp_path, number) for number in range(250)]
    pool = SlurmPool(SlurmConfig(at_once=9), tmp_path / "wide")
    pool.start(jobs)
    # the last index of each array, and how many of it run at once: nine together
    sent = (tmp_path / "sent").read_text().splitlines()
    assert sent == ["100 3", "100 3", "47 3"]
    assert len(read_json(tmp_path / "wide" / "slurm" / "jobs.json")) == 250
    assert set(pool._running) >= {"1_0", "1_100", "2_100", "3_47"}

    narrow = SlurmPool(SlurmConfig(at_once=2), tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"250 jobs are 3 arrays .* not 2"):
        narrow.start(jobs)
    assert len((tmp_path / "sent").read_text().splitlines()) == 3
    # a limit that Slurm did not tell of is one line too
    monkeypatch.setattr(cluster, "max_array_size", lambda: 1001)
    with pytest.raises(OSError, match=r"did not take 250 jobs: .*Invalid job array"):
        SlurmPool(SlurmConfig(), tmp_path / "silent").start(jobs)


def test_without_slurm_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster.max_array_size() == 1001
    with pytest.raises(OSError, match="jobs need a Slurm, which is not here"):
        make_executor(SlurmConfig(), tmp_path)


def test_what_is_asked_of_slurm(tmp_path, monkeypatch):
    import submitit

    request = {}
    monkeypatch.setattr(
        submitit.AutoExecutor,
        "update_parameters",
        lambda self, **parameters: request.update(parameters),
    )
    config = SlurmConfig(
        partition="gpu",
        gpus=2,
        cpus=8,
        memory_gb=64,
        minutes=90,
        at_once=4,
        setup=("module load x",),
    )
    make_executor(config, tmp_path, cluster="local", nodes=3)
    assert request == {
        "name": "maetok-lab",
        "timeout_min": 90,
        "cpus_per_task": 8,
        "nodes": 3,
        "tasks_per_node": 1,
        "gpus_per_node": 2,
        "mem_gb": 64,
        "slurm_partition": "gpu",
        "slurm_array_parallelism": 4,
        "slurm_setup": ["module load x"],
    }


@pytest.mark.slow
def test_a_training_of_two_processes_is_a_job_without_a_script(tmp_path):
    config = tokenizer_training("test", precision="fp32", num_steps=3)
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    run = Run.open("job", config, root=tmp_path / "runs")
    training = Call(train_tokenizer, (config, images, run), {"cpu": True})
    job = submit_training(training, SlurmConfig(), tmp_path / "jobs", processes=2, cluster="local")
    assert job.result() == 0
    assert run.finished
    assert not (run.folder / "lock").exists()
    assert run.metrics("train")["step"].tolist() == [3]
    with pytest.raises(ValueError, match="one run among its arguments, not 0"):
        submit_training(Call(print, (), {}), SlurmConfig(), tmp_path / "jobs", cluster="local")
