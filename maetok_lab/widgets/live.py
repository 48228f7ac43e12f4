"""Follow a training: a panel with a stop button where a person can touch it, else a line at times.

await follow(train_tokenizer(config, images, run), "tokenizer")
"""

import asyncio
import bisect
import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from maetok_lab.plots.curves import colours_for
from maetok_lab.runs import Run
from maetok_lab.training.task import StepRecord
from maetok_lab.widgets.charts import chart, line, line_chart
from maetok_lab.widgets.front import BLANK, html_output, ipywidgets, is_live, png_image
from maetok_lab.widgets.panel import still

SECONDS_BETWEEN_VIEWS = 0.5  # of the panel: drawing the chart costs more than a small step
NO_LOSSES = ("step", "images", "split", "skipped")  # of a run's log
INTERRUPT_SECONDS = 0.2  # for a kernel to cancel its cell
STEPS_TO_TELL = 10  # before a stage's own speed says anything of the stages after it

Training = Generator[StepRecord, None, None]


class TrainingStopped(Exception):
    """A person stopped a training: cells below must not go on with half of it."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: all that a notebook shows of it."""
        return [str(self)]


async def follow(
    training: Training,
    title: str = "training",
    *,
    run: Run | None = None,
    every: float = 10.0,
    forecast: Any = None,
) -> None:
    """Run a training to its end.

    A live notebook shows a panel with a stop button; elsewhere a line is printed at most every
    `every` seconds. What its `run` holds is shown first; a `forecast` (`experiments.time_left`)
    adds how long all takes. Raises TrainingStopped where a person stopped it, which ends Run All:
    the same line then goes on.
    """
    live = LiveTraining(title, every=every, forecast=forecast)
    if run is not None:
        live.recall(run)
    with contextlib.closing(training):
        for record in training:
            live.update(record)
            await live.listen()
    # a kernel's interrupt, which the training heard first and passed on, comes up here some turns
    # of the kernel's loop later; without it cells below would go on
    try:
        await asyncio.sleep(INTERRUPT_SECONDS if live.is_short else 0)
    except asyncio.CancelledError:
        live.note_stop()
    if live.stopped:
        raise TrainingStopped(live.stopped)


def follow_to_end(
    training: Training, title: str = "training", *, run: Run | None = None, every: float = 10.0
) -> None:
    """`follow` for library code, which cannot await: the same panel or lines, no stop button.

    Nothing is said of a finished run, of which one call may read many.
    """
    live = LiveTraining(title, every=every)
    if run is not None and not run.finished:
        live.recall(run)
    with contextlib.closing(training):
        for record in training:
            live.update(record)


class LiveTraining:
    """`live.update(record)` after every step, and `await live.listen()` to have a stop button.

    Without a live front end (`live` False; None looks for one) it writes when losses came in and
    `every` seconds have passed, and at the end. With one it shows losses, speed, time left, the
    newest picture and, once it listens, a stop button.
    """

    def __init__(
        self,
        title: str,
        *,
        every: float = 10.0,
        write: Callable[[str], None] = print,
        live: bool | None = None,
        forecast: Any = None,
    ):
        self.title = title
        self.every = every
        self.forecast = forecast
        self.write = write
        self.live = is_live() if live is None else live
        self.stopping = False
        self.stopped = ""  # where, in words, once it is
        self.history: dict[str, tuple[list[int], list[float]]] = {}  # loss: its steps and values
        # the first record and when it came: the speed of a continued run counts its own steps only
        self._first: StepRecord | None = None
        self._last: StepRecord | None = None
        self._start = 0.0
        self._last_line = 0.0  # time of the last written line
        self._last_view = 0.0  # and of the last drawn panel

    def update(self, record: StepRecord) -> None:
        """Take the record of a step."""
        now = time.monotonic()
        if self._first is None:
            self._begin(record, now)
        self._last = record
        losses = self._remember(record.step, record.losses or {})

        # a stop ends the training after this step, with a checkpoint
        last = record.step == record.num_steps
        if self.stopping and not last:
            record.stop()
            self.note_stop()

        # a panel is followed by one line at the end, which stays when the notebook is closed
        if self.live:
            self._show(record, now, last=last or self.stopping)
        due = not self.live and now - self._last_line >= self.every
        if losses and (last or due):
            self._last_line = now
            words = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            place = f"{self.title}: step {record.step}/{record.num_steps}"
            self.write(f"{place}, {words}; {self._progress(record, now)}")

    @property
    def is_short(self) -> bool:
        """Whether the training's last step has not come."""
        return self._last is not None and self._last.step < self._last.num_steps

    def note_stop(self) -> None:
        """Remember that the training ends with the record that came last."""
        place = f"step {self._last.step} of {self._last.num_steps}" if self._last else "the start"
        self.stopped = f"{self.title}: stopped at {place}; run the cell again to go on"

    def recall(self, run: Run) -> None:
        """Take the losses that `run` holds; of a finished one its end is told, in the panel too."""
        for record in run.metrics("train").to_dict("records"):
            losses = {name: value for name, value in record.items() if name not in NO_LOSSES}
            self._remember(int(record["step"]), losses)
        if not run.finished:
            return

        # one line, which stays when the notebook is closed, then the curves and the last picture
        summary = run.summary
        words = [f"{summary['steps']:,} steps, {summary['images']:,} images"]
        for name, value in summary.items():
            if isinstance(value, float) and "/t" not in name:
                words.append(f"{name} {value:.4g}")
        scores = run.metrics("val")
        if "psnr" in scores:
            words.append(f"PSNR of its last pictures {scores['psnr'].iloc[-1]:.2f} dB")
        day, _, hour = summary["ended"].partition("T")
        self.write(f"{self.title}: finished on {day} at {hour[:5]} UTC: {', '.join(words)}")
        if self.live:
            self._display(self.view)
            steps = summary["steps"]
            for picture in sorted((run.folder / "samples").glob("*.png"))[-1:]:
                self.controls.picture.value = picture.read_bytes()
            self._show_state(steps, steps, f"{steps} steps, finished before", ended=True)

    def _remember(self, step: int, losses: Mapping[str, float]) -> dict[str, float]:
        """Keep the losses of a step for the chart; those that it shows."""
        drawable = {}
        for name, value in losses.items():
            # without those by time, such as loss/t0.25: too many lines for one small chart
            if "/t" in name or not math.isfinite(value):
                continue
            drawable[name] = value
            steps, values = self.history.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
        return drawable

    async def listen(self) -> None:
        """Let the kernel hear the stop button.

        What a page says waits while a cell runs, but for where the cell awaits.
        """
        # the first time that this is called, somebody can be heard: show the button
        if self.live and self._first is not None:
            self.controls.stop.layout.display = None
        await asyncio.sleep(0)

    def stop(self) -> None:
        """End the training after its present step, with a checkpoint."""
        self.stopping = True

    def _begin(self, record: StepRecord, now: float) -> None:
        self._first = record
        self._start = now
        # what came after the checkpoint that it goes on from comes again
        for name, (steps, values) in self.history.items():
            count = bisect.bisect_left(steps, record.step)
            self.history[name] = (steps[:count], values[:count])
        if self.live:
            self._display(self.view)
        if record.step > 1:
            self.write(f"{self.title}: continues at step {record.step} of {record.num_steps}")

    def _progress(self, record: StepRecord, now: float) -> str:
        seconds = max(now - self._start, 1e-9)
        steps = max(record.step - self._first.step, 1)  # at the first record none is measured yet
        left = seconds / steps * (record.num_steps - record.step)
        speed = (record.images - self._first.images) / seconds
        progress = f"{speed:.0f} images/s, {left:.0f} s left"
        if self.forecast is None or record.step - self._first.step < STEPS_TO_TELL:
            return progress
        whole = seconds / steps * record.num_steps  # of this stage, at its present speed
        to_the_end = left + self.forecast.after(self.title, whole)
        return f"{progress}; about {to_the_end:.0f} s to the end of all"

    # View -----------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Bar, button, words, picture and chart by name."""
        package = ipywidgets()
        controls = SimpleNamespace(
            bar=package.IntProgress(
                min=0,
                max=1,
                description=self.title[:40],
                layout={"width": "420px"},
                style={"description_width": "initial"},
            ),
            # hidden until `listen` is called: before, no click would be heard
            stop=package.Button(
                description="stop",
                icon="stop",
                tooltip="end after this step, with a checkpoint",
                layout={"display": "none"},
            ),
            words=package.HTML(),
            picture=png_image(max_width="100%", max_height="256px", object_fit="contain"),
            chart=line_chart(self.chart_spec()),
        )
        controls.stop.on_click(lambda _: self._on_stop())
        return controls

    @functools.cached_property
    def view(self) -> Any:
        """The panel."""
        package = ipywidgets()
        controls = self.controls
        head = package.HBox([controls.bar, controls.stop])
        # side by side, so that both share a screen
        half = {"width": "49%", "max_width": "550px"}
        chart = package.Box([controls.chart], layout=half)
        picture = package.Box([controls.picture], layout=half)
        return package.VBox([head, controls.words, package.HBox([chart, picture])])

    def chart_spec(self) -> dict[str, Any]:
        """The spec of all losses so far; a logarithm has those above 0 only."""
        colours = colours_for(self.history)
        lines = []
        for name, (steps, values) in self.history.items():
            lines.append(line(name, steps, values, colours[name]))
        y = {"label": "loss", "log": True}
        return chart(lines, x={"label": "step"}, y=y, width=530, height=256)

    def _on_stop(self) -> None:
        self.stop()
        self.controls.stop.disabled = True
        self.controls.words.value = "stopping after this step ..."

    def _display(self, output: Any) -> None:
        from IPython.display import display

        display(output)

    def _show(self, record: StepRecord, now: float, *, last: bool) -> None:
        # a picture is rare (each some hundred steps): it is shown at once
        if record.picture:
            self.controls.picture.value = Path(record.picture).read_bytes()
        if not last and now - self._last_view < SECONDS_BETWEEN_VIEWS:
            return
        self._last_view = now
        if self.stopping:
            state = "stopped"
        elif last:
            state = "done"
        else:
            state = self._progress(record, now)
        words = f"step {record.step} of {record.num_steps}, {state}"
        self._show_state(record.step, record.num_steps, words, ended=last)

    def _show_state(self, step: int, num_steps: int, words: str, *, ended: bool) -> None:
        """Bar, words, button and chart."""
        controls = self.controls
        controls.bar.max = num_steps
        controls.bar.value = step
        controls.words.value = words
        controls.stop.disabled = ended
        controls.chart.spec = self.chart_spec()
        if ended:
            # what stays of the panel in a stored notebook
            self._display(html_output(still(controls.chart, BLANK)))
