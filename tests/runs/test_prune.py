"""Superseded checkpoints and leftovers of kills are freed; what is newest or in use stays."""

import dataclasses

import torch

from maetok_lab.__main__ import main
from maetok_lab.runs import Run
from maetok_lab.runs import prune as prune_module
from maetok_lab.runs.prune import prunable, prune


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    width: int = 1


def trained(root, name, *, finished=True, steps=(10, 20, 30, 40), milestones=()):
    with Run.open(name, Toy(), root=root) as run:
        run.keep_milestones(*milestones)
        for step in steps:
            run.save_checkpoint(step, {"model": {"w": torch.full((100,), float(step))}}, {}, keep=0)
        if finished:
            run.finish({})
    return run


def test_a_finished_run_keeps_its_newest_checkpoint_and_its_milestones(tmp_path):
    run = trained(tmp_path, "done", milestones=(20, 99))
    going = trained(tmp_path, "going", finished=False)
    before = run.checkpoint_hash()
    table = prunable(tmp_path)
    assert table[["run", "what"]].values.tolist() == [
        ["done", "checkpoint 10"],
        ["done", "checkpoint 30"],
    ]
    sizes = [
        path.stat().st_size for path in (run.folder / "checkpoints" / "step-0000010").iterdir()
    ]
    assert table["bytes"][0] == sum(sizes)
    assert run.checkpoint_steps() == [10, 20, 30, 40]  # looking frees nothing
    assert prune(table) == (table["bytes"].sum(), [])
    assert run.checkpoint_steps() == [20, 40]
    assert run.load_checkpoint().step == 40
    assert run.checkpoint_hash() == before
    assert going.checkpoint_steps() == [10, 20, 30, 40]
    assert prunable(tmp_path).empty
    assert not (run.folder / "lock").exists()


def test_milestones_outlive_the_retention_of_a_training(tmp_path):
    with Run.open("a", Toy(), root=tmp_path) as run:
        run.keep_milestones(20)
        run.keep_milestones(10)
        for step in (10, 20, 30, 40, 50):
            run.save_checkpoint(step, {"model": {"w": torch.zeros(1)}}, {}, keep=2)
        assert run.milestones() == [10, 20]
        assert run.checkpoint_steps() == [10, 20, 40, 50]


def test_what_a_kill_left_half_written_is_found_and_nothing_else(tmp_path):
    run = trained(tmp_path, "done", steps=(10,))
    left = [
        run.folder / ".summary.json.123.0a1b2c3d",
        run.folder / "samples" / ".step-0000010.png.9.0a1b2c3d",
        run.folder / "lock.json",
        run.folder / "lock.break.7.0123abcd",
    ]
    half = run.folder / "checkpoints" / ".step-0000020.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    notes = run.folder / ".my-notes"
    run.sample_path(10)
    for path in (*left, notes):
        path.write_text("x")
    table = prunable(tmp_path)
    assert set(table["path"]) == {str(path) for path in (*left, half)}
    assert table["what"].eq("left by a kill").all()
    prune(table)
    assert notes.exists()
    assert not any(path.exists() for path in (*left, half))
    assert run.checkpoint_steps() == [10]


def test_a_run_that_is_being_written_is_left_alone(tmp_path, hold_lock):
    run = trained(tmp_path, "busy")
    table = prunable(tmp_path)
    hold_lock(run.folder)
    assert prunable(tmp_path).empty
    freed, left_alone = prune(table)
    assert freed == 0
    assert len(left_alone) == len(table)
    assert "is being written by process" in left_alone[0]
    assert run.checkpoint_steps() == [10, 20, 30, 40]


def test_looking_at_a_run_of_ones_own_does_not_give_up_its_lock(tmp_path):
    with Run.open("mine", Toy(), root=tmp_path) as run:
        prunable(tmp_path)
        assert (run.folder / "lock").exists()
    assert not (run.folder / "lock").exists()


def test_the_command_line_lists_first_and_frees_when_told(tmp_path, capsys):
    run = trained(tmp_path, "done")
    assert main(["prune", "--runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "done: checkpoint 10" in output
    assert "--yes" in output
    assert run.checkpoint_steps() == [10, 20, 30, 40]
    assert main(["prune", "--runs", str(tmp_path), "--yes"]) == 0
    assert "freed" in capsys.readouterr().out
    assert run.checkpoint_steps() == [40]
    assert main(["prune", "--runs", str(tmp_path)]) == 0
    assert "nothing to free" in capsys.readouterr().out


def test_a_folder_that_cannot_be_looked_at_stops_nobody(tmp_path, monkeypatch):
    """A colleague's folder, a link, a damaged run: the others are freed."""
    done = trained(tmp_path, "done")
    broken = trained(tmp_path, "broken", steps=(10,))
    (broken.folder / "config.json").write_text("")
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    (linked / "precious").write_text("x" * 1000)
    (done.folder / "checkpoints" / ".step-0000005.tmp").symlink_to(linked)
    (done.folder / "checkpoints" / ".step-0000006.tmp").symlink_to(tmp_path / "nowhere")
    theirs = trained(tmp_path, "theirs")

    def lock_folder(folder):
        if folder == theirs.folder:
            raise PermissionError(13, "Permission denied", str(folder / "lock"))
        return prune_module_lock(folder)

    prune_module_lock = prune_module.lock_folder
    monkeypatch.setattr(prune_module, "lock_folder", lock_folder)
    table = prunable(tmp_path)
    lines = table.attrs["left_alone"]
    assert [line.partition(": ")[0] for line in lines] == [str(broken.folder), str(theirs.folder)]
    freed, left_alone = prune(table)
    assert (freed, left_alone) == (table["bytes"].sum(), [])
    assert done.checkpoint_steps() == [40]
    assert (linked / "precious").exists()
    assert not list((done.folder / "checkpoints").glob(".*"))
