"""SIGKILL at any moment costs nothing: whatever is run again ends with exactly the result of an
undisturbed run.
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maetok_lab.files import read_json

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from kill_work import RUNS, outcome

WORK = Path(__file__).with_name("kill_work.py")
STAGES = list(RUNS)


def run_stage(stage, root, *, kill_after=None):
    """Run a stage in a process of its own; -> seconds it worked. With `kill_after` it is killed
    that long after its start.
    """
    command, pipe = [sys.executable, str(WORK), stage, str(root)], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "started\n"
    started = time.monotonic()
    if kill_after is not None:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
    _, errors = process.communicate()
    assert process.returncode == 0 or kill_after is not None, errors[-2000:]
    return time.monotonic() - started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(stage)`: the path up to there, each stage run once: its folder, and the seconds
    of the stage.
    """
    root, seconds = tmp_path_factory.mktemp("undisturbed"), {}

    def up_to(stage):
        for each in STAGES[: STAGES.index(stage) + 1]:
            if each not in seconds:
                seconds[each] = run_stage(each, root)
        return root, seconds[stage]

    return up_to


def kill_and_continue(stage, undisturbed, root, draw):
    whole, seconds = undisturbed(stage)
    for earlier in STAGES[: STAGES.index(stage)]:
        shutil.copytree(whole / RUNS[earlier], root / RUNS[earlier])
    run_stage(stage, root, kill_after=draw.uniform(0, seconds))
    run_stage(stage, root)
    assert outcome(root / RUNS[stage]) == outcome(whole / RUNS[stage])
    assert not (root / RUNS[stage] / "lock").exists()


def test_a_killed_training_ends_with_the_same_result(undisturbed, tmp_path):
    kill_and_continue("tokenizer", undisturbed, tmp_path, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moment", range(4))
def test_a_killed_stage_ends_with_the_same_result(undisturbed, tmp_path, stage, moment):
    kill_and_continue(stage, undisturbed, tmp_path, random.Random(f"{stage} {moment}"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(4))
def test_a_killed_sweep_repeats_nothing_that_is_finished(tmp_path, moment, make_notebook):
    make_notebook(
        tmp_path / "toy.ipynb", "from maetok_lab.workflow import report\nreport(loss=scale)"
    )
    (tmp_path / "toy.toml").write_text(
        'notebook = "toy.ipynb"\nquality = "loss"\n[grid]\nscale = [1.0, 2.0, 3.0]\n'
    )
    command = [
        sys.executable,
        "-m",
        "maetok_lab",
        "sweep",
        str(tmp_path / "toy.toml"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        process.wait(4 + random.Random(moment).uniform(0, 12))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    summaries = list((tmp_path / "runs" / "notebooks").glob("*/summary.json"))
    before = {path: path.stat().st_mtime_ns for path in summaries}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finished = list((tmp_path / "runs" / "notebooks").glob("*/summary.json"))
    assert sorted(read_json(path)["numbers"]["loss"] for path in finished) == [1.0, 2.0, 3.0]
