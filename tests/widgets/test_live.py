"""A training says how it goes, not too often, and always at the end."""

import asyncio

import pytest

from maetok_lab.training.loop import StepRecord
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
        live = LiveTraining("tiny", every=every, write=written.append, live=False)
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
    assert lines == [
        "tiny: continues at step 5 of 10",
        "tiny: step 6/10, pixel 0.1667; 16 images/s, 8 s left",
    ]


def test_lines_are_printed_by_default(capsys):
    LiveTraining("tiny", every=0).update(StepRecord(1, 1, 32, {"pixel": 0.5}))
    assert capsys.readouterr().out.startswith("tiny: step 1/1, pixel 0.5000; 0 images/s, 0 s left")


@pytest.fixture
def panel(monkeypatch):
    """A live panel whose display goes nowhere, and what it wrote."""
    pytest.importorskip("anywidget")
    display = pytest.importorskip("IPython.display")
    shown, written = [], []
    monkeypatch.setattr(display, "display", shown.append)
    live = LiveTraining("tiny", write=written.append, live=True)
    live.shown, live.written = shown, written
    return live


def test_a_panel_has_losses_progress_and_the_newest_picture(panel, tmp_path):
    picture = tmp_path / "step.png"
    picture.write_bytes(b"png")
    panel.update(StepRecord(1, 3, 32, {"pixel": 0.5, "kl": -1.0}))
    panel.update(StepRecord(2, 3, 64, None, str(picture)))
    panel.update(StepRecord(3, 3, 96, {"pixel": 0.25, "kl": 2.0, "loss/t0.25": 9.0}))
    see = panel.controls
    assert panel.shown == [panel.view]
    assert (see.bar.value, see.bar.max) == (3, 3)
    assert see.words.value == "step 3 of 3, done"
    assert see.stop.disabled
    assert see.picture.value == b"png"
    assert {line.name: (list(line.x), list(line.y)) for line in see.chart.data} == {
        "pixel": ([1, 3], [0.5, 0.25]),
        "kl": ([3], [2.0]),
    }
    assert [line.split(",")[0] for line in panel.written] == ["tiny: step 3/3"], (
        "the last line stays in the notebook"
    )


def test_the_stop_button_is_there_where_a_click_can_be_heard_and_is_heard_between_two_steps(panel):
    async def cell():
        asyncio.get_running_loop().call_soon(panel.controls.stop.click)
        panel.update(StepRecord(1, 9, 32))
        assert panel.controls.stop.layout.display == "none"
        await panel.listen()
        assert panel.controls.stop.layout.display is None

    asyncio.run(cell())
    assert panel.stopping


def test_the_stop_button_asks_the_training_to_end(panel):
    first, second = StepRecord(1, 9, 32), StepRecord(2, 9, 64)
    panel.update(first)
    panel.controls.stop.click()
    assert panel.controls.stop.disabled
    assert not first.stops(1)
    panel.update(second)
    assert second.stops(1)
    assert panel.written == ["tiny: stopped at step 2 of 9; run the cell again to go on"]
    assert panel.controls.words.value == "step 2 of 9, stopped"


def test_a_panel_is_drawn_at_most_every_half_second(panel, monkeypatch):
    drawn = []
    monkeypatch.setattr(panel, "_draw", lambda: drawn.append(1))
    for step in range(1, 51):
        panel.update(StepRecord(step, 50, step, {"pixel": 1.0}))
    assert len(drawn) <= 4
