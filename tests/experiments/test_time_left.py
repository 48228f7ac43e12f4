"""How long a study takes: from timed steps, corrected by what its stages really take."""

import re

import pytest
import torch

from maetok_lab.experiments.time_left import REST, Forecast, about, forecast
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.task import StepRecord
from maetok_lab.widgets.live import LiveTraining


def test_every_stage_is_timed_and_the_whole_is_said_in_minutes(tmp_path, capsys):
    expected = forecast(
        "test", TOKENIZER_TRAINING["test"], num_classes=3, device=torch.device("cpu")
    )
    assert list(expected.stages) == ["tokenizer", "decoder tuning", "diffusion"]
    assert all(0 < seconds < 60 for seconds in expected.stages.values())
    assert re.fullmatch(
        r"about \d+:\d\d on this machine in all: tokenizer \d+:\d\d, decoder tuning \d+:\d\d, "
        r"diffusion \d+:\d\d",
        str(expected),
    )
    assert capsys.readouterr().out == ""  # of the cache it makes to time a step


def test_more_steps_take_as_much_longer():
    few = TOKENIZER_TRAINING["test"]
    forecasts = [
        forecast(
            "test", few, num_classes=3, device=torch.device("cpu"), **{"num_steps": count}
        ).stages["diffusion"]
        for count in (20, 2000)
    ]
    assert 20 < forecasts[1] / forecasts[0] < 500


def test_what_a_stage_takes_corrects_the_stages_after_it():
    expected = Forecast({"a": 100.0, "b": 40.0, "c": 60.0})
    assert expected.after("a", 100.0) == pytest.approx(100 + 200 * REST)
    assert expected.after("a", 150.0) == pytest.approx(1.5 * (100 + 200 * REST))
    assert expected.after("c", 60.0) == pytest.approx(200 * REST)
    assert [about(seconds) for seconds in (0, 62, 63, 299)] == ["0:00", "1:00", "1:05", "5:00"]


def test_a_followed_training_says_how_long_is_left_to_the_end_of_all(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("maetok_lab.widgets.live.time.monotonic", lambda: now[0])
    lines = []
    live = LiveTraining(
        "a", every=0, write=lines.append, live=False, forecast=Forecast({"a": 50.0, "b": 100.0})
    )
    for step in (1, 5, 51):
        now[0] = 2.0 * (step - 1)  # twice as slow as was forecast
        live.update(StepRecord(step, 100, 32 * step, {"loss": 1.0}))
    assert "to the end" not in lines[1]  # four steps say little
    rest = 4 * (100 + 150 * REST)  # a hundred steps take 200 s, not 50
    assert lines[2].endswith(f"98 s left; about {98 + rest:.0f} s to the end of all")
