"""What goes wrong around a training: a full disk, a folder that cannot be written, data that
vanishes, damage, hostile names.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess

import pandas as pd
import pytest
import torch
from PIL import Image

from maetok_lab.__main__ import main
from maetok_lab.config import override
from maetok_lab.data import images as images_module
from maetok_lab.data.images import open_images
from maetok_lab.runs import Run
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.tokenizer import train_tokenizer
from maetok_lab.workflow import summary
from maetok_lab.workflow.doctor import Examination, check_run
from maetok_lab.workflow.page import write_html

TEST = override(
    TOKENIZER_TRAINING["test"],
    {"precision": "fp32", "num_steps": 6, "save_every": 2, "picture_every": 100},
)


def train(root, images, config=TEST):
    with Run.open("a", config, root=root) as run:
        for _ in train_tokenizer(config, images, run, cpu=True):
            pass
    return Run(root / "a")


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A file system of its own with little room; skips where nothing can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("no tmpfs can be mounted here: it takes root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def state_of(run):
    return run.checkpoint_steps(), run.checkpoint_hash(), run.summary["steps"]


def test_a_full_disk_stops_with_a_clear_error_and_the_last_good_checkpoint_intact(
    tmp_path, make_pictures
):
    images = make_pictures(16, 64)
    whole = train(tmp_path / "whole", images)
    size = sum(
        path.stat().st_size for path in (whole.folder / "checkpoints" / "step-0000006").iterdir()
    )
    with small_disk(tmp_path / "small", 8) as root:
        (root / "other").write_bytes(
            b"0" * (8_000_000 - int(1.6 * size))
        )  # room for one checkpoint and a half
        with pytest.raises(
            OSError,
            match=r"step 4 was not written.*; the last good one is that of step 2: the disk is f",
        ):
            train(root, images)
        stopped = Run(root / "a")
        assert stopped.checkpoint_steps() == [2]
        assert stopped.load_checkpoint().step == 2
        assert not list((root / "a" / "checkpoints").glob(".*"))
        (root / "other").unlink()
        assert state_of(train(root, images)) == ([4, 6], whole.checkpoint_hash(), 6)


def test_a_file_size_limit_is_a_full_disk_too(tmp_path, make_pictures):
    """Where nothing can be mounted: the same error from the system, by a limit on the size of
    files.
    """
    images = make_pictures(16, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Run.open("a", TEST, root=tmp_path) as run:
        steps = train_tokenizer(TEST, images, run, cpu=True)
        for record in steps:
            if record.step == 3:
                break
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            with pytest.raises(
                OSError, match=r"step 4 was not written.*the last good one is that of step 2"
            ):
                next(steps)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
    assert Run(tmp_path / "a").load_checkpoint().step == 2
    assert train(tmp_path, images).finished


def test_a_runs_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        OSError,
        match=r"cannot write the run .*file/runs/a .*; choose a runs folder that can be written: p",
    ):
        Run.open("a", TEST, root=tmp_path / "file" / "runs")


def test_a_read_only_runs_folder_is_one_clear_line(tmp_path):
    with small_disk(tmp_path / "there", 1) as root:
        remount = ["mount", "-o", "remount,ro", str(root)]
        subprocess.run(remount, check=True)
        with pytest.raises(
            OSError,
            match=r"cannot write the run .* \(Read-only file system\); choose a runs folder",
        ):
            Run.open("a", TEST, root=root)
        verdict = check_run(Examination(runs=str(root)))
        assert verdict.level == "bad"
        assert verdict.advice == "choose a folder that you may write to: --runs FOLDER"


@pytest.mark.skipif(
    os.name == "posix" and os.geteuid() == 0,
    reason="modes do not bind root; the read-only disk above does",
)
def test_a_folder_without_the_right_to_write_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot write the run .*Permission denied"):
        Run.open("a", TEST, root=tmp_path)


def picture_folder(folder, count=24):
    (folder / "things").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (32, 32), (10 * number, 100, 200)).save(
            folder / "things" / f"{number:02d}.png"
        )
    return folder


def test_a_data_file_that_vanishes_is_named_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    folder = picture_folder(tmp_path / "pictures", 40)
    images = open_images(folder, split="train", image_size=64)
    assert not images.in_memory
    gone = next((folder / "things").iterdir())
    gone.unlink()
    config = override(TEST, {"workers": 0, "images": images.fingerprint, "num_steps": 8})
    with pytest.warns(UserWarning, match=rf"skipped a broken image: .*{gone.name}"):
        assert train(tmp_path, images, config).finished


def test_a_data_set_that_vanishes_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    folder = picture_folder(tmp_path / "pictures", 60)
    images = open_images(folder, split="train", image_size=64)
    shutil.rmtree(folder)
    config = override(TEST, {"workers": 0, "images": images.fingerprint})
    with (
        pytest.warns(UserWarning, match="broken"),
        pytest.raises(ValueError, match="more than max_broken=10 broken images"),
    ):
        train(tmp_path, images, config)
    with pytest.raises(FileNotFoundError, match=r"no source .*pictures"):
        open_images(folder, split="train", image_size=64)


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(
    tmp_path, make_pictures
):
    images = make_pictures(16, 64)
    whole = train(tmp_path / "whole", images)
    with Run.open("a", TEST, root=tmp_path) as run:
        for record in train_tokenizer(TEST, images, run, cpu=True):
            if record.step == 5:
                break
    file = run.folder / "checkpoints" / "step-0000004" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(
        UserWarning,
        match=r"step-0000004/model.safetensors is damaged; falling back to the checkpoint before",
    ):
        again = train(tmp_path, images)
    assert state_of(again) == state_of(whole)


HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def test_a_class_name_full_of_html_does_nothing_in_a_page(tmp_path):
    v4 = pytest.importorskip("nbformat").v4
    table = pd.DataFrame({"class": [HOSTILE], HOSTILE: [1]})
    shown = [
        v4.new_output("stream", text=f"best class: {HOSTILE}\n"),
        v4.new_output("execute_result", {"text/plain": HOSTILE, "text/html": table.to_html()}),
        v4.new_output(
            "display_data", {"text/html": summary._as_html({HOSTILE: HOSTILE}, [f"runs/{HOSTILE}"])}
        ),
        v4.new_output(
            "error", ename="ValueError", evalue=HOSTILE, traceback=[f"ValueError: {HOSTILE}"]
        ),
    ]
    cells = [v4.new_code_cell(f"name = {HOSTILE!r}", outputs=shown)]
    page = tmp_path / "<script>1<" / "notebook.html"
    write_html(v4.new_notebook(cells=cells), page, folder=tmp_path)
    text = page.read_text()
    assert text.count("alert") >= 6  # it is there, as text
    assert "<script" not in text
    assert "<img src=x" not in text


def test_a_class_name_full_of_html_is_plain_text_in_a_gallery(tmp_path):
    from maetok_lab.plots.sweep import plot_gallery

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    figure = plot_gallery({f"{HOSTILE} $x^": tmp_path / "a.png"})
    assert figure.axes[0].get_title() == f"{HOSTILE} $x^"
    figure.canvas.draw()


def test_a_parent_on_record_that_leads_elsewhere_is_not_followed_out_of_the_runs_folder(
    tmp_path, capsys
):
    assert main(["show", "../../no-such-folder", "--runs", str(tmp_path)]) == 2
    assert "a run's name is" in capsys.readouterr().err
    for name in ("../a", "/a", "a/../../b", "..", "a\0"):
        with pytest.raises(ValueError, match="a run's name is"):
            Run.open(name, TEST, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_a_pickle_are_not_loaded(tmp_path):
    """A folder of weights, as somebody might send it: only safetensors are read."""
    from maetok_lab.tokenizer.loading import load_tokenizer

    (tmp_path / "config.json").write_text("{}")
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises((FileNotFoundError, ValueError)):
        load_tokenizer(tmp_path)
