"""A training says how it goes, not too often, and always at the end."""

import pytest

from maetok_lab.training.common import StepRecord
from maetok_lab.widgets import live as live_module
from maetok_lab.widgets.live import LiveTraining


class Clock:
    """Two seconds a step, started at step 1."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 2
        return self.now


@pytest.fixture
def follow(monkeypatch):
    """`follow(first, last, every)`: the lines written for these steps of 10, with losses at each even step."""
    monkeypatch.setattr(live_module, "time", Clock())

    def lines(first: int, last: int, every: float) -> list[str]:
        written = []
        live = LiveTraining("tiny", every=every, write=written.append)
        for step in range(first, last + 1):
            losses = {"pixel": 1 / step, "loss/t0.25": 7.0} if step % 2 == 0 else None
            live.update(StepRecord(step, 10, step * 32, losses))
        return written

    return lines


def test_a_line_has_losses_speed_and_time_left_from_this_processs_own_steps(follow):
    assert follow(1, 2, every=0)[-1] == "tiny: step 2/10, pixel 0.5000; 16 images/s, 16 s left"


def test_lines_come_when_losses_do_and_enough_time_has_passed_and_at_the_end(follow):
    steps = [int(line.split("step ")[1].split("/")[0]) for line in follow(1, 10, every=7)]
    assert steps == [2, 6, 10]
    assert [line.split(",")[0] for line in follow(1, 10, every=1e9)] == ["tiny: step 10/10"]


def test_a_continued_training_says_so_and_counts_its_own_speed(follow):
    lines = follow(5, 6, every=0)
    assert lines == ["tiny: continues at step 5 of 10", "tiny: step 6/10, pixel 0.1667; 16 images/s, 8 s left"]


def test_lines_are_printed_by_default(capsys):
    LiveTraining("tiny", every=0).update(StepRecord(1, 1, 32, {"pixel": 0.5}))
    assert capsys.readouterr().out.startswith("tiny: step 1/1, pixel 0.5000; 0 images/s, 0 s left")
