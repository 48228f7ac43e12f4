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


def run(command: list[str], root: Path, name: str) -> str:
    """What `share_work.py` prints; processes that hang are ended, children too."""
    process = subprocess.Popen(
        [*command, str(SCRIPT), str(root), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    try:
        printed, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors[-3000:]
    return printed


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    # torchrun, because `accelerate launch --num_processes 2 --cpu` (1.15) starts one process and says nothing
    assert run([sys.executable], tmp_path, "one").split() == ["process", "0", "of", "1"]
    lines = run(TORCHRUN, tmp_path, "two").splitlines()
    assert sorted(lines[:2]) == ["process 0 of 2", "process 1 of 2"]
    assert lines[2:] == ["2 processes cannot share a batch of 7 equally"] * 2
    caches = [(tmp_path / f"cache-{name}" / "latents" / "sha256.json").read_text() for name in ("one", "two")]
    assert caches[0] == caches[1]  # both processes wrote, the same shards
    terms = ["pixel", "kl", "auxiliary/hog", "adversarial", "adaptive_weight", "discriminator", "lecam", "consistency"]
    for kind, numbers in (("tokenizer", terms), ("diffusion", ["loss"])):
        one, two = Run(tmp_path / f"{kind}-one"), Run(tmp_path / f"{kind}-two")
        assert two.metrics("train")["step"].tolist() == [1, 2, 3, 4, 5, 6]
        for number in numbers:
            wanted = pytest.approx(one.metrics("train")[number].tolist(), abs=1e-5, rel=1e-5)
            assert two.metrics("train")[number].tolist() == wanted, number
        assert two.finished
        mine, theirs = one.load_checkpoint(), two.load_checkpoint()
        assert set(mine.tensors) == set(theirs.tensors)
        for name, value in mine.tensors["model"].items():
            assert torch.allclose(theirs.tensors["model"][name], value, atol=1e-4), name
    assert two.summary["val_loss"] == pytest.approx(one.summary["val_loss"], abs=1e-5)
