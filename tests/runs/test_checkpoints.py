"""What a run writes comes back: metrics by line, checkpoints bit for bit, nothing unpickled."""

import dataclasses
import json
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from maetok_lab.files import write_json
from maetok_lab.identity import file_hash
from maetok_lab.pictures import save_png
from maetok_lab.runs import Run
from maetok_lab.runs import weights as weights_module
from maetok_lab.runs.checkpoints import read_checkpoint, write_checkpoint
from maetok_lab.runs.locks import RunLocked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    rate: float = 0.5


@pytest.fixture
def run(tmp_path):
    with Run.open("a", Job(), root=tmp_path) as opened:
        yield opened


def weights(value: float) -> dict[str, dict[str, torch.Tensor]]:
    model = {"w": torch.full((2, 3), value), "step": torch.tensor(value)}
    return {"model": model, "ema": {"w": torch.full((3,), -value)}}


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Metrics ------------------------------------------------------------------------------------------


def test_metrics_come_back_as_a_table_by_split(run):
    assert run.metrics("train").empty
    run.log({"step": 1, "split": "train", "loss": 0.5})
    run.log({"step": 1, "split": "val", "psnr": 20.0})
    run.log({"step": 2, "split": "train", "loss": float("nan")})
    assert list(run.metrics()["split"]) == ["train", "val", "train"]
    assert list(run.metrics("val").columns) == ["step", "split", "psnr"]
    assert run.metrics("train")["loss"].isna().tolist() == [False, True]


def test_rewinding_drops_what_is_about_to_be_logged_again(run):
    run.rewind_metrics(0)
    for step in (5, 10, 15, 20):
        run.log({"step": step, "split": "train", "loss": 1 / 3 + step})
    run.rewind_metrics(10)
    assert run.metrics()[["step", "loss"]].values.tolist() == [[5, 1 / 3 + 5], [10, 1 / 3 + 10]]
    run.log({"step": 15, "split": "train", "loss": 2.0})
    assert list(run.metrics()["step"]) == [5, 10, 15]
    run.rewind_metrics(0)
    assert run.metrics().empty


def test_a_last_line_cut_off_by_a_kill_is_dropped(run):
    for step in (5, 10):
        run.log({"step": step, "split": "train", "loss": 1.0})
    path = run.folder / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert list(run.metrics()["step"]) == [5]
    run.rewind_metrics(10)
    run.log({"step": 10, "split": "train", "loss": 3.0})
    assert list(run.metrics()["loss"]) == [1.0, 3.0]


# Checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_for_bit(run):
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    tensors = {
        "model": {"a": values.t(), "b.c": values[0].bfloat16()},
        "optimizer": {"step": torch.tensor(3)},
    }
    tensors["empty"] = {}
    run.save_checkpoint(7, tensors, {"skipped": 2})
    checkpoint = run.load_checkpoint()
    assert (checkpoint.step, checkpoint.state, set(checkpoint.tensors)) == (
        7,
        {"skipped": 2},
        {"model", "optimizer", "empty"},
    )
    assert torch.equal(checkpoint.tensors["model"]["a"], values.t())
    assert checkpoint.tensors["model"]["b.c"].dtype == torch.bfloat16
    assert checkpoint.tensors["optimizer"]["step"].dtype == torch.int64
    assert set(run.load_checkpoint(groups=["model"]).tensors) == {"model"}


def test_a_run_without_checkpoints_has_none_to_load(run):
    assert run.load_checkpoint() is None
    assert run.checkpoint_steps() == []
    assert run.checkpoint_hash() is None
    with pytest.raises(ValueError, match=r"run a has no checkpoint of step 5; it has \[\]"):
        run.load_checkpoint(5)


def test_only_the_newest_checkpoints_are_kept(run):
    for step in (5, 10, 15):
        run.save_checkpoint(step, weights(step), {}, keep=2)
    assert run.checkpoint_steps() == [10, 15]
    run.save_checkpoint(1_000_000, weights(0), {}, keep=0)
    run.save_checkpoint(12_345_678, weights(0), {}, keep=0)
    assert run.checkpoint_steps() == [10, 15, 1_000_000, 12_345_678]
    assert run.load_checkpoint().step == 12_345_678
    assert run.load_checkpoint(15).tensors["model"]["w"][0, 0] == 15


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder):
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


DAMAGES = {
    "cut": cut,
    "bit": flip_a_bit,
    "file": lambda folder: (folder / "ema.safetensors").unlink(),
    "state": lambda folder: (folder / "state.json").unlink(),
    "json": lambda folder: (folder / "state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(run, damage):
    run.save_checkpoint(10, weights(1.0), {})
    run.save_checkpoint(20, weights(2.0), {})
    damage(run.folder / "checkpoints" / "step-0000020")
    with pytest.warns(
        UserWarning, match=r"(step-0000020|step 20).*; falling back to the checkpoint before it"
    ):
        checkpoint = run.load_checkpoint()
    assert checkpoint.step == 10
    assert checkpoint.tensors["model"]["w"][0, 0] == 1
    with pytest.raises(ValueError, match=r"damaged|no checkpoint of step 20|not valid JSON"):
        run.load_checkpoint(20)


def test_damage_to_a_group_nobody_asks_for_does_not_matter(run):
    run.save_checkpoint(20, weights(2.0), {})
    flip_a_bit(run.folder / "checkpoints" / "step-0000020")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.load_checkpoint(groups=["model"]).step == 20


def test_a_half_written_checkpoint_is_never_read_and_the_next_save_replaces_it(run, monkeypatch):
    run.save_checkpoint(10, weights(1.0), {})
    save_file = weights_module.save_file

    def full_disk(tensors, path):
        if "ema.safetensors" in path.name:
            raise OSError("No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(weights_module, "save_file", full_disk)
    with pytest.raises(
        OSError,
        match=r"step 20 was not written .* last good one is that of step 10: the disk is full: "
        r"0.0 MB more are needed and .* MB are free; free some \(python -m maetok_lab prune",
    ):
        run.save_checkpoint(20, weights(2.0), {})
    monkeypatch.undo()
    assert not any(
        "tmp" in name for name in files(run.folder)
    )  # what was written of it goes, to free the space
    (run.folder / "checkpoints" / ".step-0000020.tmp").mkdir()  # as a kill leaves it
    assert run.checkpoint_steps() == [10]
    assert run.load_checkpoint().step == 10
    run.save_checkpoint(20, weights(3.0), {})
    assert run.load_checkpoint().tensors["ema"]["w"][0] == -3
    assert not any("tmp" in name for name in files(run.folder))


def test_a_run_that_another_process_took_over_is_written_no_more(run):
    run.save_checkpoint(10, weights(1.0), {})
    run.log({"step": 10, "split": "train", "loss": 1.0})
    run._events.close()  # what was logged is written by a thread of TensorBoard's, some time later
    text = (run.folder / "lock").read_text()
    (run.folder / "lock").write_text(re.sub("token=.*", "token=another", text))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    writes = [
        lambda: run.save_checkpoint(20, weights(2.0), {}),
        lambda: run.log({"step": 20, "split": "train", "loss": 1.0}),
        lambda: run.rewind_metrics(0),
        lambda: run.keep_milestones(20),
        lambda: run.remove_checkpoint(10),
        lambda: run.finish({}),
        # whoever writes below the folder, by whatever name of it
        lambda: save_png(run.sample_path(20), np.zeros((4, 4, 3), np.uint8)),
        lambda: write_json(os.path.relpath(run.folder / "score.json"), {}),
    ]
    for write in writes:
        with pytest.raises(RunLocked, match="was taken over by another process while this one sto"):
            write()
    (run.folder / "samples").rmdir()
    after = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    assert {path: after[path] for path in before if path.is_file()} == {
        path: before[path] for path in before if path.is_file()
    }
    assert not [path for path in after if path.is_file() and path not in before]


def test_saving_a_step_again_replaces_it(run):
    run.save_checkpoint(10, weights(1.0), {})
    run.save_checkpoint(10, {"model": weights(2.0)["model"]}, {})
    assert set(run.load_checkpoint().tensors) == {"model"}


class Malice:
    """What a pickle would do to whoever loads it."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MALICE"],)


def test_loading_never_unpickles(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MALICE", str(tmp_path / "ran"))
    run.save_checkpoint(10, weights(1.0), {})
    folder = run.folder / "checkpoints" / "step-0000010"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Malice()))
    record = json.loads((folder / "state.json").read_text())
    record["sha256"]["model.safetensors"] = file_hash(folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps(record))
    with pytest.raises(SafetensorError):
        run.load_checkpoint()
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "model.safetensors").read_bytes())
    assert (tmp_path / "ran").exists()  # the payload is a real one


def test_the_weights_hash_names_the_newest_weights(run, tmp_path):
    run.save_checkpoint(10, weights(1.0), {"note": 1})
    first = run.checkpoint_hash()
    run.save_checkpoint(20, weights(2.0), {})
    assert run.checkpoint_hash() != first
    run.finish({})
    with Run.open("b", Job(rate=2.0), root=tmp_path, parents=[run]) as child:
        child.save_checkpoint(5, weights(1.0), {"note": 2})
        assert child.checkpoint_hash() == first
        assert child.provenance["parents"] == [
            {"run": "a", "fingerprint": run.fingerprint, "checkpoint_sha256": run.checkpoint_hash()}
        ]


def test_a_checkpoint_that_is_written_again_is_never_half_there(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    write_checkpoint(folder, 2, {"model": {"w": torch.zeros(3)}}, {}, fingerprint="0")
    before = set(tmp_path.rglob("*"))

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("maetok_lab.runs.checkpoints.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(folder, 2, {"model": {"w": torch.ones(3)}}, {}, fingerprint="0")
    monkeypatch.undo()
    # the old one, whole: what was to come in its place has another name
    assert before <= set(tmp_path.rglob("*"))
    assert read_checkpoint(folder, 2, None).tensors["model"]["w"].sum() == 0
