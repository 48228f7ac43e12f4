"""A training says how it goes, not too often, and always at the end; a person can end it."""

import asyncio
import re

import pytest

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.runs import Run
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.task import StepRecord
from maetok_lab.training.tokenizer import train_tokenizer
from maetok_lab.widgets import live as live_module
from maetok_lab.widgets.live import LiveTraining, TrainingStopped, follow, follow_to_end


class Clock:
    """Two seconds a step, started at step 1."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 2
        return self.now


@pytest.fixture
def written_lines(monkeypatch):
    """`written_lines(first, last, every)`: those of these steps of 10; even steps have losses."""
    monkeypatch.setattr(live_module, "time", Clock())

    def lines(first, last, every):
        written = []
        live = LiveTraining("tiny", every=every, write=written.append, live=False)
        for step in range(first, last + 1):
            losses = {"pixel": 1 / step, "loss/t0.25": 7.0} if step % 2 == 0 else None
            live.update(StepRecord(step, 10, step * 32, losses))
        return written

    return lines


def test_a_line_has_losses_speed_and_time_left_from_this_processs_own_steps(written_lines):
    assert (
        written_lines(1, 2, every=0)[-1] == "tiny: step 2/10, pixel 0.5000; 16 images/s, 16 s left"
    )


def test_lines_come_when_losses_do_and_enough_time_has_passed_and_at_the_end(written_lines):
    starts = [line.split(",")[0] for line in written_lines(1, 10, every=7)]
    assert starts == ["tiny: step 2/10", "tiny: step 6/10", "tiny: step 10/10"]
    starts = [line.split(",")[0] for line in written_lines(1, 10, every=1e9)]
    assert starts == ["tiny: step 10/10"]


def test_a_continued_training_says_so_and_counts_its_own_speed(written_lines):
    lines = written_lines(5, 6, every=0)
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
    views, written = [], []
    monkeypatch.setattr(display, "display", views.append)
    live = LiveTraining("tiny", write=written.append, live=True)
    live.displayed = views
    live.written = written
    return live


def test_a_panel_has_losses_progress_and_the_newest_picture(panel, tmp_path):
    picture = tmp_path / "step.png"
    picture.write_bytes(b"png")
    panel.update(StepRecord(1, 3, 32, {"pixel": 0.5, "kl": -1.0}))
    panel.update(StepRecord(2, 3, 64, None, str(picture)))
    panel.update(StepRecord(3, 3, 96, {"pixel": 0.25, "kl": 2.0, "loss/t0.25": 9.0}))
    controls = panel.controls
    assert panel.displayed[0] == panel.view
    assert (controls.bar.value, controls.bar.max) == (3, 3)
    assert controls.words.value == "step 3 of 3, done"
    assert controls.stop.disabled
    assert controls.picture.value == b"png"
    assert {line["name"]: (line["x"], line["y"]) for line in controls.chart.spec["lines"]} == {
        "pixel": ([1, 3], [0.5, 0.25]),
        "kl": ([1, 3], [-1.0, 2.0]),
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
    assert not first.stopping.is_set()
    panel.update(second)
    assert second.stopping.is_set()
    assert panel.stopped == "tiny: stopped at step 2 of 9; run the cell again to go on"
    assert panel.controls.words.value == "step 2 of 9, stopped"


def test_a_panel_is_drawn_at_most_every_half_second(panel, monkeypatch):
    drawn = []
    monkeypatch.setattr(panel, "_show_state", lambda *_, **__: drawn.append(1))
    for step in range(1, 51):
        panel.update(StepRecord(step, 50, step, {"pixel": 1.0}))
    assert len(drawn) <= 4


@pytest.fixture
def trained(tmp_path):
    """A run with losses at steps 2 and 4, and a picture."""
    run = Run.open("tiny", TOKENIZER_TRAINING["test"], root=tmp_path)
    for step in (2, 4):
        losses = {"pixel": 1 / step, "loss/t0.25": 7.0, "skipped": 0}
        run.log({"step": step, "images": 32 * step, "split": "train", **losses})
    run.log({"step": 4, "images": 128, "split": "val", "psnr": 20.0127})
    run.sample_path(4).write_bytes(b"png")
    return run


def test_a_finished_run_says_in_one_line_what_is_there(trained, capsys):
    trained.finish({"steps": 4, "images": 128, "skipped": 0, "pixel": 0.25, "loss/t0.25": 7.0})
    asyncio.run(follow(iter_of([]), "tiny", run=trained))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tiny: finished on 2")
    assert line.endswith(
        " UTC: 4 steps, 128 images, pixel 0.25, PSNR of its last pictures 20.01 dB"
    )


def test_a_panel_of_a_finished_run_has_its_curve_and_last_picture(panel, trained):
    trained.finish({"steps": 4, "images": 128, "skipped": 0, "pixel": 0.25})
    panel.recall(trained)
    view, still = panel.displayed
    assert view == panel.view
    # the curve stays when the notebook is stored
    assert '"name": "pixel", "x": [2.0, 4.0], "y": [0.5, 0.25]' in still.data
    controls = panel.controls
    (line,) = controls.chart.spec["lines"]
    assert (line["name"], line["x"], line["y"]) == ("pixel", [2, 4], [0.5, 0.25])
    assert controls.picture.value == b"png"
    assert (controls.bar.value, controls.bar.max, controls.stop.disabled) == (4, 4, True)
    assert controls.words.value == "4 steps, finished before"


def test_a_panel_of_a_training_that_goes_on_begins_with_its_past(panel, trained):
    panel.recall(trained)
    assert panel.displayed == []  # until a step comes
    # from the checkpoint of step 3: what was logged after it comes again
    panel.update(StepRecord(4, 5, 128, {"pixel": 0.3}))
    panel.update(StepRecord(5, 5, 160, {"pixel": 0.2}))
    (line,) = panel.controls.chart.spec["lines"]
    assert (line["x"], line["y"]) == ([2, 4, 5], [0.5, 0.3, 0.2])
    assert panel.written[0] == "tiny: continues at step 4 of 5"


def iter_of(records):
    """A training that yields these."""
    yield from records


class Training:
    """A training of three steps that notes how it ended."""

    def __init__(self, failure=None):
        self.failure = failure
        self.steps = 0
        self.closed = False

    def run(self):
        try:
            for step in (1, 2, 3):
                self.steps = step
                yield StepRecord(step, 3, 32 * step, {"pixel": 1 / step})
                if self.failure:
                    raise self.failure
        finally:
            self.closed = True


def test_one_line_follows_a_training_to_its_end_without_a_front_end(capsys):
    training = Training()
    assert asyncio.run(follow(training.run(), "tiny", every=0)) is None
    assert training.closed
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"tiny: step {n}/3" for n in (1, 2, 3)]


def test_library_code_follows_without_awaiting(capsys):
    training = Training()
    follow_to_end(training.run(), "tiny", every=0)
    assert training.closed
    assert len(capsys.readouterr().out.splitlines()) == 3


def in_a_cell(training, title):
    asyncio.run(follow(training, title))


@pytest.mark.parametrize("followed", [in_a_cell, follow_to_end])
def test_errors_and_interrupts_pass_through_and_leave_the_training_closed(followed, monkeypatch):
    for failure in (ValueError("bad"), KeyboardInterrupt()):
        training = Training(failure)
        with pytest.raises(type(failure)):
            followed(training.run(), "tiny")
        assert training.closed

    # one that hits the panel, not the training
    def interrupt(*_):
        raise KeyboardInterrupt

    training = Training()
    monkeypatch.setattr(LiveTraining, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        followed(training.run(), "tiny")
    assert training.closed
    assert training.steps == 1


def test_a_cancelled_task_closes_the_training():
    training = Training()

    async def cell():
        task = asyncio.create_task(follow(training.run(), "tiny"))
        await asyncio.sleep(0)  # its first step
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cell())
    assert training.closed
    assert training.steps == 1


def test_the_stop_button_ends_a_real_training_with_a_checkpoint_and_the_same_line_goes_on(
    monkeypatch, tmp_path, capsys
):
    pytest.importorskip("anywidget")
    display = pytest.importorskip("IPython.display")
    views = []
    monkeypatch.setattr(display, "display", views.append)
    monkeypatch.setattr(live_module, "is_live", lambda: True)
    images = open_images("emoji", split="val", image_size=64)
    config = override(
        TOKENIZER_TRAINING["test"],
        {"num_steps": 4, "batch_size": 2, "log_every": 1, "images": images.fingerprint},
    )

    async def cell(click):
        """The cell, and a click that the page sends while it runs."""
        with Run.open("live", config, root=tmp_path) as run:
            training = train_tokenizer(config, images, run, cpu=True)
            task = asyncio.create_task(follow(training, "tokenizer"))
            await asyncio.sleep(0)
            if click:
                head, *_ = views[0 if click else -1].children
                head.children[1].click()
            await task
        return run

    # an error that is one quiet line: Run All ends there, and no cell below trains on half of it
    with pytest.raises(TrainingStopped) as caught:
        asyncio.run(cell(click=True))
    line = "tokenizer: stopped at step 2 of 4; run the cell again to go on"
    assert caught.value._render_traceback_() == [line]
    run = Run(tmp_path / "live")
    assert run.checkpoint_steps() == [2]
    assert not run.finished
    assert not (run.folder / "lock").exists()
    run = asyncio.run(cell(click=False))
    assert run.finished
    assert "tokenizer: continues at step 3 of 4" in capsys.readouterr().out


INTERRUPTED = """
import maetok_lab as lab
from maetok_lab.config import override
from maetok_lab.training.presets import TOKENIZER_TRAINING
images = lab.open_images("emoji", split="val", image_size=64)
changes = {"num_steps": 10**6, "batch_size": 2, "log_every": 1, "save_every": 10**6}
config = override(TOKENIZER_TRAINING["test"], changes | {"images": images.fingerprint})
run = lab.Run.open("live", config, root=ROOT)
await lab.follow(lab.train_tokenizer(config, images, run, cpu=True), "tokenizer", every=0)
"""


def test_a_kernels_interrupt_saves_a_checkpoint_gives_up_the_lock_and_ends_run_all(tmp_path):
    manager = pytest.importorskip("jupyter_client.manager")
    kernel, client = manager.start_new_kernel()
    try:
        # as papermill asks, so that lines are printed; as Run All queues cells
        client.execute(f"ROOT = {str(tmp_path)!r}", allow_stdin=False)
        cell = client.execute(INTERRUPTED, allow_stdin=False)
        below = client.execute("print('the next cell')", allow_stdin=False)
        printed = ""
        is_sent = False
        while True:
            message = client.get_iopub_msg(timeout=120)
            printed += message["content"].get("text", "")
            if "step 2/" in printed and not is_sent:
                kernel.interrupt_kernel()
                is_sent = True
            if message["header"]["msg_type"] == "error":
                assert message["parent_header"]["msg_id"] == cell
                (line,) = message["content"]["traceback"]
                break
        # one quiet line, and nothing below it runs
        step = int(re.fullmatch(r"tokenizer: stopped at step (\d+) of .* again to go on", line)[1])
        replies = {}
        while {cell, below} - replies.keys():
            reply = client.get_shell_msg(timeout=60)
            replies[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
        assert replies[below] == "aborted"
        # the kernel lives on, and anybody may continue the run
        run = Run(tmp_path / "live")
        assert run.checkpoint_steps() == [step]
        assert not (run.folder / "lock").exists()
        assert kernel.is_alive()
    finally:
        kernel.shutdown_kernel(now=True)
        client.stop_channels()
