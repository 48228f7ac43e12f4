"""Metrics are TensorBoard files too where it is installed; a resumed run shows each step once."""

import importlib.util
import time
from dataclasses import dataclass

import pytest

from maetok_lab.runs import Run


@dataclass(frozen=True)
class Config:
    seed: int = 0


def log(run, *steps):
    for step in steps:
        run.log({"step": step, "split": "train", "loss": step / 4, "note": "no number"})


def test_numbers_are_shown_by_split_and_name_and_a_resumed_run_shows_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Run.open("one", Config(), root=tmp_path) as run:
        log(run, 1, 2, 3)
    time.sleep(1.01)  # their files are read in the order of seconds
    with Run.open("one", Config(), root=tmp_path) as run:
        run.rewind_metrics(2)
        log(run, 3, 4)
    events = accumulator.EventAccumulator(str(tmp_path / "one" / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
        (4, 1.0),
    ]


def test_without_tensorboard_and_without_metrics_there_are_no_files(tmp_path, monkeypatch):
    with Run.open("quiet", Config(), root=tmp_path):
        pass
    assert not (tmp_path / "quiet" / "tensorboard").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Run.open("plain", Config(), root=tmp_path) as run:
        log(run, 1)
        assert len(run.metrics()) == 1
    assert not (tmp_path / "plain" / "tensorboard").exists()
