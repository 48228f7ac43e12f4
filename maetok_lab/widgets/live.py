"""Follow a training: where a person can touch it a panel with a stop button, elsewhere a line at most every few seconds."""

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from maetok_lab.plots.curves import colours_for
from maetok_lab.training.records import StepRecord
from maetok_lab.widgets.front import escaped, figure_widget, ipywidgets, is_live, png_image

SECONDS_BETWEEN_VIEWS = 0.5


class LiveTraining:
    """`live.update(record)` after every step; `await live.listen()` as well, in a cell, to have a stop button.

    Without a live front end (`live` False; None finds out) it prints when losses came in and `every` seconds have passed, and
    at the end. With one it shows losses, speed, time left, the newest picture of fixed seeds and, once it listens, a stop button,
    which ends the training after the step with a checkpoint: the same cell goes on from there.
    """

    def __init__(
        self,
        title: str,
        *,
        every: float = 10.0,
        write: Callable[[str], None] = print,
        live: bool | None = None,
    ):
        self.title, self.every, self.write = title, every, write
        self.live = is_live() if live is None else live
        self.stop_asked = False
        self.history: dict[str, tuple[list[int], list[float]]] = {}  # loss: its steps and values
        self._start: tuple[float, StepRecord] | None = None
        self._told = self._shown = 0.0

    def update(self, record: StepRecord) -> None:
        """Take a record; the speed is measured from the first one on, so a continued run counts its own steps only."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, record
            if self.live:
                from IPython.display import display

                display(self.view)
            if record.step > 1:
                self.write(f"{self.title}: continues at step {record.step} of {record.num_steps}")
        for name, value in self._plain_losses(record).items():
            steps, values = self.history.setdefault(name, ([], []))
            steps.append(record.step)
            values.append(value)
        done = record.step == record.num_steps
        if self.stop_asked and not done:
            record.stop()
            self.write(
                f"{self.title}: stopped at step {record.step} of {record.num_steps}; run the cell again to go on"
            )
        if self.live:
            self._show(record, now, last=done or self.stop_asked)
        if record.losses and (done or (not self.live and now - self._told >= self.every)):
            self._told = now
            self.write(self._line(record, now))

    async def listen(self) -> None:
        """Let the kernel hear the stop button: what a page says waits while a cell runs, but for where the cell awaits."""
        if self.live and self._start is not None:
            self.controls.stop.layout.display = None
        await asyncio.sleep(0)

    def stop(self) -> None:
        """End the training after its present step, with a checkpoint."""
        self.stop_asked = True

    def _plain_losses(self, record: StepRecord) -> dict[str, float]:
        return {name: value for name, value in (record.losses or {}).items() if "/t" not in name}

    def _progress(self, record: StepRecord, now: float) -> str:
        start, first = self._start
        seconds = max(now - start, 1e-9)
        steps = max(record.step - first.step, 1)
        left = seconds / steps * (record.num_steps - record.step)
        speed = (record.images - first.images) / seconds
        return f"{speed:.0f} images/s, {left:.0f} s left"

    def _line(self, record: StepRecord, now: float) -> str:
        losses = ", ".join(
            f"{name} {value:.4f}" for name, value in self._plain_losses(record).items()
        )
        return f"{self.title}: step {record.step}/{record.num_steps}, {losses}; {self._progress(record, now)}"

    # View -------------------------------------------------------------------------------------------------------------

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
            stop=package.Button(
                description="stop",
                icon="stop",
                tooltip="end after this step, with a checkpoint",
                layout={"display": "none"},
            ),
            words=package.HTML(),
            picture=png_image(width="512px", height="256px", object_fit="contain"),
            chart=figure_widget(
                width=520, height=256, xaxis_title="step", yaxis={"type": "log", "title": "loss"}
            ),
        )
        controls.stop.on_click(lambda _: self._on_stop())
        return controls

    @functools.cached_property
    def view(self) -> Any:
        """The panel."""
        package, see = ipywidgets(), self.controls
        wrap = {"flex_flow": "row wrap", "max_width": "1160px"}
        chart = package.Box([see.chart], layout={"width": "530px"})
        return package.VBox(
            [
                package.HBox([see.bar, see.stop, see.words]),
                package.HBox([chart, see.picture], layout=wrap),
            ]
        )

    def _on_stop(self) -> None:
        self.stop()
        self.controls.stop.disabled = True
        self.controls.words.value = "stopping after this step ..."

    def _show(self, record: StepRecord, now: float, *, last: bool) -> None:
        see = self.controls
        if record.picture:
            see.picture.value = Path(record.picture).read_bytes()
        if not last and now - self._shown < SECONDS_BETWEEN_VIEWS:
            return
        self._shown = now
        see.bar.max, see.bar.value = record.num_steps, record.step
        state = "stopped" if self.stop_asked else "done" if last else self._progress(record, now)
        see.words.value = escaped(f"step {record.step} of {record.num_steps}, {state}")
        see.stop.disabled = last
        self._draw()

    def _draw(self) -> None:
        """Lines of all losses above 0 (a logarithm has no others)."""
        chart, colours = self.controls.chart, colours_for(self.history)
        known = {line.name: line for line in chart.data}
        for name in self.history:
            if name not in known:
                chart.add_scatter(name=name, mode="lines", line={"color": colours[name]})
        with chart.batch_update():
            for line in chart.data:
                steps, values = self.history[line.name]
                kept = [(step, value) for step, value in zip(steps, values) if value > 0]
                line.x, line.y = [step for step, _ in kept], [value for _, value in kept]
