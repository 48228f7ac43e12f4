"""Several processes train as one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maetok_lab.runs import Run

SCRIPT = Path(__file__).with_name("share_work.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# With --cpu, accelerate 1.15 starts one process however many are asked for, and says nothing: the
# numbers must hold anyway.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def run(command: list[str], root: Path, name: str, *, script: Path = SCRIPT) -> str:
    """What a script prints; processes that hang are ended, children too."""
    process = subprocess.Popen(
        [*command, str(script), str(root), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors[-3000:]
    return printed


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    assert run([sys.executable], tmp_path, "one").split() == ["process", "0", "of", "1"]
    lines = run(TORCHRUN, tmp_path, "two").splitlines()
    assert sorted(lines[:2]) == ["process 0 of 2", "process 1 of 2"]
    assert lines[2:] == ["2 processes cannot share a batch of 7 equally"] * 2
    assert "process 0 of" in run(LAUNCH, tmp_path, "launched")
    for name in ("two", "launched"):
        same_as_one(tmp_path, name)


def same_as_one(root: Path, name: str) -> None:
    """The run `name` wrote the same shards, logged the same losses and ended with the same weights
    as run `one`.
    """
    caches = [
        (root / f"cache-{which}" / "latents" / "sha256.json").read_text() for which in ("one", name)
    ]
    assert caches[0] == caches[1]
    terms = [
        "pixel",
        "kl",
        "auxiliary/hog",
        "adversarial",
        "adaptive_weight",
        "discriminator",
        "lecam",
        "consistency",
    ]
    for kind, numbers in (("tokenizer", terms), ("diffusion", ["loss"])):
        one, other = Run(root / f"{kind}-one"), Run(root / f"{kind}-{name}")
        assert other.metrics("train")["step"].tolist() == [1, 2, 3, 4, 5, 6]
        for number in numbers:
            wanted = pytest.approx(one.metrics("train")[number].tolist(), abs=1e-5, rel=1e-5)
            assert other.metrics("train")[number].tolist() == wanted, number
        assert other.finished
        mine, theirs = one.load_checkpoint(), other.load_checkpoint()
        assert set(mine.tensors) == set(theirs.tensors)
        for tensor, value in mine.tensors["model"].items():
            assert torch.allclose(theirs.tensors["model"][tensor], value, atol=1e-4), tensor
    assert other.summary["val_loss"] == pytest.approx(one.summary["val_loss"], abs=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on_from_the_last_checkpoint(
    tmp_path,
):
    script = SCRIPT.with_name("elastic_work.py")
    with pytest.raises(AssertionError, match="exitcode: -9"):
        run(TORCHRUN, tmp_path / "killed", "kill", script=script)
    assert not Run(tmp_path / "killed" / "diffusion").finished
    starts = run(TORCHRUN, tmp_path / "killed", "kill", script=script).splitlines()
    assert sorted(starts) == ["process 0 of 2 starts after 10", "process 1 of 2 starts after 10"]
    run(TORCHRUN, tmp_path / "whole", "", script=script)
    killed, whole = (Run(tmp_path / name / "diffusion") for name in ("killed", "whole"))
    assert killed.metrics("train").to_json() == whole.metrics("train").to_json()
    assert killed.checkpoint_hash() == whole.checkpoint_hash()
