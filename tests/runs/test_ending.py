"""Finished means that what the numbers rest on is there, whole; what is not is made whole again."""

import dataclasses
import os
import shutil
import stat

import pytest
import torch

from maetok_lab.files import atomic_path, write_bytes
from maetok_lab.runs import Run, list_runs
from maetok_lab.runs.weights import write_tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    rate: float = 0.5


def weights(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((50,), value)}}


@pytest.fixture
def ended(tmp_path):
    """A finished run with two checkpoints."""
    with Run.open("a", Job(), root=tmp_path) as run:
        for step in (10, 20):
            run.log({"step": step, "split": "train", "loss": 1.0})
            run.save_checkpoint(step, weights(float(step)), {})
        run.finish({"loss": 1.0})
    return run


def newest(run):
    return run.folder / "checkpoints" / "step-0000020"


def lose(run):
    shutil.rmtree(newest(run))


def lose_a_file(run):
    (newest(run) / "model.safetensors").unlink()


def cut(run):
    path = newest(run) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def empty_summary(run):
    (run.folder / "summary.json").write_text("")


def summary_of_nothing(run):
    (run.folder / "summary.json").write_text("{}")


@pytest.mark.parametrize("damage", [lose, lose_a_file, cut, empty_summary, summary_of_nothing])
def test_a_run_that_lost_what_it_rests_on_is_not_finished_and_says_so(ended, tmp_path, damage):
    assert ended.finished
    assert set(ended.summary) == {"loss", "ended"}
    damage(ended)
    assert not ended.finished
    assert ended.summary == {}
    row = list_runs(tmp_path).iloc[0]
    assert not row["finished"]
    assert str(tmp_path) in row["problem"]
    # older weights are no result of this run
    with pytest.raises(ValueError, match=r"run a had ended, but .*; run what makes it once more"):
        ended.load_checkpoint()
    with pytest.raises(ValueError, match=r"run b is made from run a, which is not finished \(/"):
        Run.open("b", Job(rate=1.0), root=tmp_path, parents=[ended])

    # whoever makes it goes on from what is whole
    with Run.open("a", Job(), root=tmp_path) as run:
        with pytest.warns(UserWarning, match="run a had ended, but .*: it goes on"):
            run.reopen_if_damaged()
        assert run.load_checkpoint().step == (20 if "summary" in damage.__name__ else 10)
        run.save_checkpoint(20, weights(20.0), {})
        run.finish({"loss": 1.0})
    assert ended.finished


def test_one_bit_of_a_finished_runs_weights_is_noticed_before_they_are_used(ended, tmp_path):
    path = newest(ended) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert ended.finished  # looking at a list of runs reads no weights
    with pytest.raises(ValueError, match=r"had ended, but checkpoint file .* is damaged; run what"):
        ended.load_checkpoint(groups=["model"])
    with Run.open("a", Job(), root=tmp_path) as run:
        with pytest.warns(UserWarning, match=r"model.safetensors is damaged: it goes on"):
            run.reopen_if_damaged()
        assert not run.finished
        with pytest.warns(UserWarning, match="falling back"):
            assert run.load_checkpoint().step == 10


def test_the_word_comes_after_the_work(tmp_path, monkeypatch):
    """What is on disk when a machine loses its power, in the order in which it came there."""
    events = []
    fsync = os.fsync
    replace = os.replace

    def synced(descriptor):
        events.append(("sync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def named(source, target):
        events.append(("name", os.path.realpath(target)))
        replace(source, target)

    run = Run.open("a", Job(), root=tmp_path)
    run.log({"step": 10, "split": "train", "loss": 1.0})
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    run.save_checkpoint(10, weights(1.0), {})
    run.finish({})

    def place(kind, name):
        return max(i for i, event in enumerate(events) if event == (kind, name))

    checkpoints = run.folder / "checkpoints"
    inside = checkpoints / ".step-0000010.tmp"
    order = [
        place("name", f"{inside}/model.safetensors"),
        place("sync", f"{inside}"),
        place("name", f"{checkpoints}/step-0000010"),
        place("sync", f"{checkpoints}"),
        place("sync", f"{run.folder}/metrics.jsonl"),
        place("name", f"{run.folder}/summary.json"),
        place("sync", f"{run.folder}"),
    ]
    assert order == sorted(order)
    # each file is on disk before it has its name
    for i, (kind, name) in enumerate(events):
        if kind == "name" and name != f"{checkpoints}/step-0000010":
            temporary = events[i - 1]
            assert temporary[0] == "sync"
            assert os.path.basename(name) in os.path.basename(temporary[1])


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_colleague_may_read_what_the_umask_allows(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(2)})
        write_bytes(tmp_path / "bytes", b"x")
        with atomic_path(tmp_path / "own") as temporary:
            temporary.unlink()
            temporary.write_bytes(b"another file under the same name")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
