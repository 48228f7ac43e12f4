"""A real Slurm of one node: a sweep and a training are cancelled half-way and continued."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maetok_lab.runs import Run
from maetok_lab.workflow import SlurmConfig, SweepSpec, grid, sweep
from maetok_lab.workflow.cluster import queued_jobs, submit_training

pytest.importorskip("submitit")
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent.parent / "slurm.sh"
TRAINING = Path(__file__).parent.parent / "training" / "elastic_work.py"
ANSWER = """import time
from pathlib import Path
from maetok_lab.workflow import report
Path(runs, f"started-{scale}").touch()
time.sleep(600 if scale == 3 and not Path(runs, "go").exists() else 1)
report(loss=(scale - 4) ** 2)"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """SLURM_CONF points to a Slurm that lives as long as this file's tests."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        [SCRIPT, "start", folder], capture_output=True, text=True, timeout=580, check=False
    )
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    try:
        assert started.returncode == 0, started.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", re.search(r"SLURM_CONF=(.*)", started.stdout)[1])
            patch.setenv("OMP_NUM_THREADS", "1")
            yield folder
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


def wait_for(condition, seconds=300):
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.5)
    raise AssertionError("it did not happen")


def test_a_sweep_of_six_goes_on_after_one_job_was_cancelled(slurm, tmp_path, make_notebook):
    path = make_notebook(tmp_path / "answer.ipynb", ANSWER)
    config = SlurmConfig(cpus=1, minutes=20, at_once=3, patience_minutes=0.3, partition="main")
    entries = tuple(grid({"scale": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}))
    spec = SweepSpec(name="six", notebook=str(path), entries=entries, quality="loss", slurm=config)
    code = f"""
from maetok_lab.workflow import SlurmConfig, SweepSpec, sweep
spec = SweepSpec(
    name="six", notebook={str(path)!r}, entries={entries!r}, quality="loss", slurm={config!r}
)
print("failed:", sweep(spec, runs={str(tmp_path)!r}, on="slurm").failed["error"].tolist())"""
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "started-3.0").exists())
    names = {
        job: next((tmp_path / "sweeps").glob(f"*/slurm/{job}/*_log.out"), None)
        for job in queued_jobs()
    }
    (stuck,) = [job for job, log in names.items() if log and "scale=3.0" in log.read_text()]
    subprocess.run(["scancel", stuck], check=True)
    output, _ = first.communicate(timeout=400)
    assert f"Slurm job {stuck} left the queue without a result" in output
    assert output.count("done in") == 5
    (tmp_path / "go").touch()
    result = sweep(spec, runs=tmp_path, on="slurm")
    assert result.table["state"].tolist() == ["done"] * 6
    assert result.best["scale"] == 4.0
    assert result.table["log"].map(lambda log: "finished in" in Path(log).read_text()).all()


def test_a_training_of_two_processes_is_cancelled_half_way_and_continued(slurm, tmp_path):
    config = SlurmConfig(cpus=2, minutes=20)

    def submit(name, mode):
        return submit_training(
            [str(TRAINING), str(tmp_path / name), mode], config, tmp_path / "jobs", processes=2
        )

    def newest():
        folder = tmp_path / "cancelled" / "diffusion"
        return (
            max(Run(folder).checkpoint_steps(), default=0)
            if (folder / "config.json").exists()
            else 0
        )

    job = submit("cancelled", "slow")
    wait_for(lambda: newest() >= 15)
    job.cancel()
    wait_for(lambda: (queued := queued_jobs()) is not None and job.job_id not in queued)
    run = Run(tmp_path / "cancelled" / "diffusion")
    assert not run.finished
    assert newest() < 60
    jobs = [submit("cancelled", ""), submit("whole", "")]
    assert [each.result() for each in jobs] == [0, 0]
    whole = Run(tmp_path / "whole" / "diffusion")
    assert run.finished
    assert run.checkpoint_hash() == whole.checkpoint_hash()
    assert run.metrics("train").to_json() == whole.metrics("train").to_json()
    assert "process 1 of 2 starts after" in jobs[0].stdout()
