"""A run is made of what is on record, and of nothing else."""

import dataclasses
import errno
import shutil

import pytest
import torch

from maetok_lab.files import read_json, write_json
from maetok_lab.runs import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    rate: float = 0.5


def weights(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((5,), value)}}


def made(root, name="parent", *, value=1.0, finished=True):
    with Run.open(name, Job(), root=root) as run:
        run.save_checkpoint(10, weights(value), {})
        if finished:
            run.finish({})
    return run


# Parents ------------------------------------------------------------------------------------------


def test_a_child_of_an_unfinished_parent_is_refused_and_nothing_is_written(tmp_path):
    parent = made(tmp_path, finished=False)
    message = r"run child is made from run parent, which is not finished \(it was stopped, or goes"
    with pytest.raises(ValueError, match=message):
        Run.open("child", Job(rate=1.0), root=tmp_path, parents=[parent])
    assert not (tmp_path / "child").exists()


def test_a_child_of_a_parent_that_changed_is_refused_and_says_what_to_remove(tmp_path):
    parent = made(tmp_path)
    child = Run.open("child", Job(rate=1.0), root=tmp_path, parents=[parent])
    child.save_checkpoint(5, weights(2.0), {})
    child.close()
    Run.open("child", Job(rate=1.0), root=tmp_path, parents=[parent]).close()

    # the parent was removed and made anew, and has other weights
    (parent.folder / "summary.json").unlink()
    made(tmp_path, value=1.5)
    with pytest.raises(ValueError, match=f"other weights than parent has now: remove {tmp_path}/c"):
        Run.open("child", Job(rate=1.0), root=tmp_path, parents=[parent])
    assert not (child.folder / "lock").exists()
    # one that has not begun starts from what is there
    shutil.rmtree(child.folder / "checkpoints")
    with Run.open("child", Job(rate=1.0), root=tmp_path, parents=[parent]) as run:
        assert run.provenance["parents"][0]["checkpoint_sha256"] == parent.checkpoint_hash()


# What was lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", "\xff"])
def test_a_lost_config_is_written_anew_for_the_same_config_and_no_other(tmp_path, content):
    run = made(tmp_path, "a", finished=False)
    before = read_json(run.folder / "config.json")
    (run.folder / "config.json").unlink()
    if content is not None:
        (run.folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"a lost its config.json, and what lies there is of config"
    ):
        Run.open("a", Job(rate=9.0), root=tmp_path)
    with pytest.warns(UserWarning, match=r"lost its config.json, which is written anew"):
        Run.open("a", Job(), root=tmp_path).close()
    assert read_json(run.folder / "config.json") == before
    # the checkpoint knows it too
    (run.folder / "config.json").unlink()
    (run.folder / "provenance.json").write_text("")
    with pytest.raises(ValueError, match="what lies there is of config"):
        Run.open("a", Job(rate=9.0), root=tmp_path)
    with pytest.warns(UserWarning, match=r"config.json"):
        Run.open("a", Job(), root=tmp_path).close()


def test_content_that_nobody_knows_the_config_of_is_never_gone_on_with(tmp_path):
    (tmp_path / "a" / "latents").mkdir(parents=True)
    (tmp_path / "a" / "latents" / "shard-00000.npy").write_bytes(b"whose?")
    with pytest.raises(ValueError, match=r"of a config that nobody knows.*choose another name"):
        Run.open("a", Job(), root=tmp_path)


def test_a_lost_provenance_is_made_anew(tmp_path):
    run = made(tmp_path, "a", finished=False)
    (run.folder / "provenance.json").write_text("")
    with pytest.raises(ValueError, match=r"provenance.json is not valid JSON"):
        run.provenance  # noqa: B018
    with (
        pytest.warns(UserWarning, match=r"lost its provenance.json, which is made anew"),
        Run.open("a", Job(), root=tmp_path) as run,
    ):
        assert run.provenance["parents"] == []


# Odd content --------------------------------------------------------------------------------------


def test_metrics_survive_damaged_lines_which_are_named(tmp_path):
    with Run.open("a", Job(), root=tmp_path) as run:
        for step in (5, 10, 15):
            run.log({"step": step, "split": "train", "loss": 1.0})
        path = run.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        odd = [b'{"step": 7, "lo\n', b"\xff\xfe\x00\n", b'{"split": "train"}\n', b"[1]\n", b"\n"]
        path.write_bytes(lines[0] + b"".join(odd) + lines[1] + lines[2] + b'{"step": 20, "spl')
        with pytest.warns(UserWarning, match="metrics.jsonl: line") as caught:
            assert list(run.metrics()["step"]) == [5, 10, 15]
        words = [str(warning.message).partition(": ")[2] for warning in caught]
        assert words == [f"line {n} is damaged, and passed over" for n in (2, 3, 4, 5)]
        with pytest.warns(UserWarning, match="line 2 is damaged"):
            run.rewind_metrics(10)
        assert list(run.metrics()["step"]) == [5, 10]


@pytest.mark.parametrize("content", ["{}", '{"state": {}, "sha256": []}', "[]", "null", ""])
def test_a_state_of_nothing_is_a_damaged_checkpoint(tmp_path, content):
    with Run.open("a", Job(), root=tmp_path) as run:
        for step in (10, 20):
            run.save_checkpoint(step, weights(1.0), {})
        (run.folder / "checkpoints" / "step-0000020" / "state.json").write_text(content)
        with pytest.warns(UserWarning, match=r"step-0000020/state.json .*; falling back"):
            assert run.load_checkpoint().step == 10


@pytest.mark.parametrize("content", ["{}", '["10"]', "", "7"])
def test_milestones_of_nothing_keep_every_checkpoint(tmp_path, content):
    with Run.open("a", Job(), root=tmp_path) as run:
        run.keep_milestones(10)
        (run.folder / "milestones.json").write_text(content)
        for step in (10, 20, 30, 40):
            with pytest.warns(UserWarning, match=r"milestones.json is no list of steps: all ch"):
                run.save_checkpoint(step, weights(1.0), {})
        assert run.checkpoint_steps() == [10, 20, 30, 40]


def test_a_lock_of_nothing_is_named_or_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("maetok_lab.runs.locks.LEASE_SECONDS", 2.0)
    monkeypatch.setattr("maetok_lab.runs.locks.BEAT_SECONDS", 0.1)
    run = made(tmp_path, "a", finished=False)
    (run.folder / "lock").write_text("{}")
    Run.open("a", Job(), root=tmp_path).close()


def test_folders_of_a_persons_own_beside_checkpoints_and_pictures_are_let_be(tmp_path):
    with Run.open("a", Job(), root=tmp_path) as run:
        run.save_checkpoint(20, weights(1.0), {})
        own = [
            run.folder / "checkpoints" / name for name in ("step-0000020-best", "step-x", "best")
        ]
        for folder in own:
            folder.mkdir()
        (run.folder / "checkpoints" / "step-7").write_text("a note")
        for step in (30, 40, 50):
            run.save_checkpoint(step, weights(1.0), {})
        assert run.checkpoint_steps() == [40, 50]
        assert run.load_checkpoint().step == 50
        assert all(folder.is_dir() for folder in own)


def test_a_run_folder_that_cannot_be_made_says_which_parameter_helps(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write the run .*parameter `runs` .* -p runs FOLDER"):
        Run.open("a", Job(), root=tmp_path / "runs")


def test_two_runs_of_one_process_do_not_write_by_turns(tmp_path):
    first = Run.open("a", Job(), root=tmp_path)
    second = Run.open("a", Job(), root=tmp_path)
    second.log({"step": 1, "split": "train", "loss": 1.0})
    with pytest.raises(RuntimeError, match="was opened once more in this process"):
        first.log({"step": 1, "split": "train", "loss": 2.0})
    first.close()
    assert (first.folder / "lock").exists()
    second.close()
    assert not (first.folder / "lock").exists()
    write_json(first.folder / "note.json", {})  # nobody holds it


def test_a_log_that_does_not_fit_is_one_clear_line(tmp_path):
    with Run.open("a", Job(), root=tmp_path) as run:
        (run.folder / "metrics.jsonl").symlink_to("/dev/full")  # which takes no byte
        with pytest.raises(
            OSError, match=r"metrics.jsonl was not written: the disk is full: .* free"
        ):
            run.log({"step": 1, "split": "train", "loss": 1.0})


def test_a_folder_that_does_not_fit_is_one_clear_line(tmp_path, monkeypatch):
    """Pictures, TensorBoard's files, shards and samples each begin with a folder."""
    with Run.open("a", Job(), root=tmp_path) as run:

        def full(*arguments, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("pathlib.Path.mkdir", full)
        with pytest.raises(OSError, match=r"samples was not made: the disk is full: .* are free"):
            run.sample_path(1)
        monkeypatch.setattr(run._events, "add", full)
        with pytest.raises(OSError, match=r"metrics.jsonl was not written: the disk is full"):
            run.log({"step": 1, "split": "train", "loss": 1.0})
