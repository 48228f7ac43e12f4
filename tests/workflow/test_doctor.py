"""Each check has a plain verdict, and says what to do about what it met."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from maetok_lab.__main__ import main
from maetok_lab.data.images import open_images
from maetok_lab.workflow import doctor
from maetok_lab.workflow.doctor import CHECKS, Examination, examine

HERE = Examination(device="cpu")


def test_a_sound_machine_gets_a_verdict_from_every_check(tmp_path, monkeypatch):
    monkeypatch.setitem(
        CHECKS, "collective", lambda options: doctor.Verdict("good", "tested apart")
    )
    verdicts = list(examine(Examination(runs=str(tmp_path / "new"), device="cpu"), open_images))
    assert [verdict.check for verdict in verdicts] == [*CHECKS, "data"]
    assert not [verdict for verdict in verdicts if verdict.level == "bad"]
    assert all(verdict.advice for verdict in verdicts if verdict.level != "good")
    assert not list(tmp_path.iterdir())


def test_two_processes_add_up():
    verdict = doctor.check_collective(HERE)
    assert verdict.level == "good"
    assert verdict.facts.startswith(f"{max(2, torch.cuda.device_count())} processes over ")


ALONE = """
import atexit
from maetok_lab.workflow import collective

atexit.register(print, "Python shuts down")
collective.main()
"""


def test_what_adds_up_ends_before_python_shuts_down_beside_gloos_threads():
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", ALONE]
    ended = subprocess.run(command, env=os.environ | place, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0
    assert '"right": true' in ended.stdout
    assert "shuts down" not in ended.stdout


@pytest.mark.parametrize(
    ("code", "out", "message"),
    [
        (1, "", "2 processes failed: no network"),
        (
            0,
            '{"processes": 2, "backend": "gloo", "right": false, "bytes_per_second": 1}',
            "the sum is wrong",
        ),
    ],
)
def test_processes_that_cannot_talk_are_told(monkeypatch, code, out, message):
    process = SimpleNamespace(returncode=code, stdout=out, stderr="trace\nno network")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *words, **more: process)
    verdict = doctor.check_collective(HERE)
    assert verdict.level == "bad"
    assert message in verdict.facts
    assert "one process" in verdict.advice


@pytest.mark.parametrize(("free", "expected"), [(0.5e9, "bad"), (5e9, "fair"), (50e9, "good")])
def test_a_full_disk_is_told(monkeypatch, tmp_path, free, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    verdict = doctor.check_disk(Examination(runs=str(tmp_path / "not" / "yet")))
    assert verdict.level == expected
    assert ("prune" in verdict.advice) == (expected != "good")


def test_a_runs_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    verdict = doctor.check_run(Examination(runs=str(tmp_path / "file" / "runs")))
    assert verdict.level == "bad"
    assert "--runs FOLDER" in verdict.advice


def test_missing_images_are_a_verdict_and_the_other_checks_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(
        doctor, "CHECKS", {"data": doctor.check_data, "python": doctor.check_python}
    )
    data, python = examine(Examination(source=str(tmp_path / "nowhere")), open_images)
    assert (data.check, data.level) == ("data", "bad")
    assert "nowhere" in data.facts
    assert python.check == "python"


def test_missing_packages_are_named_by_extra(monkeypatch):
    monkeypatch.setattr(
        doctor, "_installed", lambda package: package not in ("submitit", "umap-learn")
    )
    verdict = doctor.check_packages(HERE)
    assert verdict.level == "fair"
    assert "cluster: submitit" in verdict.facts
    assert "notebooks: umap-learn" in verdict.facts
    assert "pip install 'maetok-lab[" in verdict.advice


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.check_torch(HERE).level == "bad"


def test_more_threads_than_cores_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4 * doctor.usable_cores())
    assert "OMP_NUM_THREADS" in doctor.check_python(HERE).advice


def test_a_kernel_with_wrong_results_is_told(monkeypatch):
    calls = []

    def attention(q, k, v):
        calls.append(q)
        return q + len(calls)  # never the same twice

    monkeypatch.setattr(doctor, "scaled_dot_product_attention", attention)
    assert doctor.check_kernels(HERE).level == "bad"


def test_a_broken_cluster_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    broken = SimpleNamespace(returncode=1, stderr="cannot connect")
    answers = iter([broken, SimpleNamespace(returncode=0, stdout="gpu* 4 nodes idle\n")])
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: next(answers))
    assert doctor.check_slurm(HERE).level == "fair"
    assert doctor.check_slurm(HERE).facts == "gpu* 4 nodes idle"


def test_the_command_line_takes_its_options_as_parameters(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "CHECKS", {})
    assert main(["doctor", "-p", "image_size", "16", "--runs", str(tmp_path)]) == 0
    assert "at 16 px" in capsys.readouterr().out
    assert main(["doctor", "-p", "source", str(tmp_path / "nowhere")]) == 1
    assert main(["doctor", "-p", "sauce", "x"]) == 2
    assert "did you mean 'source'" in capsys.readouterr().err
