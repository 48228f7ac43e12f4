"""Sample with any class, seed, guidance and sampler, see pictures form, walk back on their way."""

import asyncio
import functools
import html
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.cost import SamplingCost, sampling_cost
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import INTEGRATORS, NULL_CLASS, Guidance, Guide, guide_words
from maetok_lab.generation.trajectories import TrajectoryPoint, decode_point, trajectory
from maetok_lab.identity import check_owner
from maetok_lab.pictures import image_grid
from maetok_lab.plots.images import plot_rows
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.widgets.front import BLANK, Studio, as_png, ipywidgets, kernel_line
from maetok_lab.widgets.panel import panel, picture_still

SECONDS_BETWEEN_PICTURES = 0.2  # while it samples: decoding costs as much as a step
EACH_CLASS = -1  # the label that stands for images of different classes


class SamplerStudio(Studio):
    """`model` is one diffusion transformer, or several by EMA rate ({0.998: ..., 0.9: ...}).

    Of `weak_models` ({250: ...}) the first guides instead of the null class. `count` images are
    drawn, of one class or of several. Attributes: `points` (the trajectory), `cost`, `settings`,
    `labels`; `sample()` draws at once. Raises ValueError where model, latent space and tokenizer do
    not belong together.
    """

    def __init__(
        self,
        model: DiffusionTransformer | Mapping[float | None, DiffusionTransformer],
        space: LatentSpace,
        tokenizer: AnyTokenizer,
        *,
        class_names: Sequence[str] | None = None,
        weak_models: Mapping[Guide, DiffusionTransformer | None] | None = None,
        count: int = 16,
        seed: int = 0,
        guidance: Guidance | None = None,
        num_steps: int = 25,
        method: str = "euler",
    ):
        self.models = dict(model) if isinstance(model, Mapping) else {None: model}
        # by their words; the null class is no model
        self.guides = {guide_words(guide): net for guide, net in (weak_models or {}).items()}
        self.guides.setdefault(NULL_CLASS, None)
        self.space = space
        self.tokenizer = tokenizer
        self.count = count

        check_owner(tokenizer, space.tokenizer, "latent space")
        for net in [*self.models.values(), *self.guides.values()]:
            # a model made by hand names no tokenizer, so there is nothing to compare
            if net and net.tokenizer_fingerprint:
                check_owner(tokenizer, net.tokenizer_fingerprint, "diffusion model")
        self.ema = next(iter(self.models))  # the rate whose weights sample
        num_classes = self.model.num_classes
        self.class_names = list(class_names or map("class {}".format, range(num_classes)))
        if len(self.class_names) != num_classes:
            raise ValueError(
                f"{len(self.class_names)} class names for a model of {num_classes} classes"
            )
        self.label = EACH_CLASS
        self.seed = seed
        # guidance near pure noise costs variety (Kynkaanniemi et al. 2024): none for t > 0.75
        guidance = guidance or Guidance(3.0, 0.0, 0.75)
        self.settings = {"method": method, "num_steps": num_steps, "guidance": guidance}
        self.settings["weak_model"] = next(iter(self.guides.values()))
        self.points: list[TrajectoryPoint] = []
        self._task: asyncio.Task | None = None  # the sampling that runs in the background

    # State ----------------------------------------------------------------------------------------

    @property
    def model(self) -> DiffusionTransformer:
        """The weights of the present EMA rate."""
        return self.models[self.ema]

    @property
    def labels(self) -> Tensor:
        """The label of each image. -> (count,)"""
        if not self.class_names:
            return torch.zeros(self.count, dtype=torch.long)
        if self.label == EACH_CLASS:
            # fewer images than classes: spread over all; more: begin again at the first
            num_classes = len(self.class_names)
            if self.count < num_classes:
                return torch.linspace(0, num_classes - 1, self.count).round().long()
            return torch.arange(self.count) % num_classes
        return torch.full((self.count,), self.label)

    @property
    def cost(self) -> SamplingCost:
        """What one more sampling costs."""
        return sampling_cost(self.model, self.count, **self.settings)

    @property
    def guidable(self) -> bool:
        """Whether there is a class to be guided to, or a weaker model to be guided away from."""
        return bool(self.class_names) or self.settings["weak_model"] is not None

    def steps(self) -> Iterator[TrajectoryPoint]:
        """Sample, one step at a time."""
        settings = dict(self.settings)
        if not self.guidable:
            settings["guidance"] = None
        return trajectory(self.model, self.labels, seed=self.seed, **settings)

    def sample(self) -> Tensor:
        """Sample to the end. -> images (count, 3, H, W)"""
        self.points = list(self.steps())
        return self._images(self.points[-1], "state")

    def still(self) -> str:
        # while it samples there is nothing to store yet; `moved` does at the end
        return super().still() if len(self.points) > 1 else picture_still(BLANK)

    def twin(self) -> Any:
        """The model's guess at four places of the way and the sample, as a matplotlib figure."""
        if not self.points:
            self.sample()
        end = len(self.points) - 1
        places = {round(share * end) for share in (0.2, 0.4, 0.6, 0.8)}
        rows = {}
        for place in sorted(places - {end}):
            point = self.points[place]
            rows[f"guess at t = {point.t:.2f}"] = self._images(point, "guess")
        rows["sample"] = self._images(self.points[end], "state")
        return plot_rows(rows).figure

    def _images(self, point: TrajectoryPoint, show: str) -> Tensor:
        return decode_point(point, self.tokenizer, self.space, show=show)

    # View -----------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package = ipywidgets()
        settings = self.settings
        guidance = settings["guidance"]
        lists = {"layout": {"width": "380px"}, "style": {"description_width": "120px"}}
        # a slider reports where it is let go, not each place on the way: each would sample anew
        wide = lists | {"continuous_update": False}
        dropdown = functools.partial(package.Dropdown, **lists)
        classes = list(zip(self.class_names, range(len(self.class_names))))
        # rates by number: a control whose value is None shows nothing
        rates = []
        for number, rate in enumerate(self.models):
            name = "the model's" if rate is None else f"{rate:g}"
            rates.append((name, number))
        return SimpleNamespace(
            label=dropdown(
                options=[("different ones", EACH_CLASS), *classes],
                value=self.label,
                description="class",
            ),
            seed=package.BoundedIntText(
                value=self.seed, min=0, max=99_999, description="seed", **wide
            ),
            scale=package.FloatSlider(
                value=guidance.scale, min=0, max=8, step=0.25, description="guidance scale", **wide
            ),
            interval=package.FloatRangeSlider(
                value=(guidance.low, guidance.high),
                min=0,
                max=1,
                step=0.05,
                description="guided for t in",
                **wide,
            ),
            guide=dropdown(options=list(self.guides), description="guided by"),
            steps=package.IntSlider(
                value=settings["num_steps"], min=1, max=100, description="steps", **wide
            ),
            method=dropdown(
                options=list(INTEGRATORS), value=settings["method"], description="sampler"
            ),
            ema=dropdown(options=rates, value=0, description="EMA rate"),
            # these two only look at what was sampled
            place=package.IntSlider(
                value=0,
                min=0,
                max=0,
                description="step of the way",
                layout={"width": "500px"},
                style={"description_width": "120px"},
            ),
            show=package.ToggleButtons(
                options=[("the model's guess", "guess"), ("the state itself", "state")],
                description="picture of",
                style={"description_width": "120px"},
            ),
        )

    @functools.cached_property
    def view(self) -> Any:
        """The widget; it samples once, when it is first displayed."""
        package = ipywidgets()
        controls = self.controls
        self.position = package.HTML()  # of the picture on the way
        self.cost_line = package.HTML()  # of one sampling
        inputs = [controls.label, controls.seed, controls.scale, controls.interval]
        inputs += [controls.guide, controls.steps, controls.method, controls.ema]
        for control in inputs:
            control.observe(self._on_setting, "value")
        for control in (controls.place, controls.show):
            control.observe(lambda _: self._show(), "value")

        # what is sampled on the left, how it looks on the right
        left = package.VBox(
            [kernel_line(), *inputs, self.cost_line], layout={"width": "400px", "flex": "none"}
        )
        right = package.VBox(
            [controls.place, controls.show, self.position, self.tiles],
            layout={"flex": "1 1 auto", "min_width": "0", "max_width": "700px"},
        )
        self.start()
        return package.HBox([left, right], layout={"max_width": "1120px", "width": "100%"})

    @functools.cached_property
    def tiles(self) -> Any:
        """The page of samples; noise at first."""
        first = next(self.steps())
        state = {"tiles": self._tiles(first, "state"), "way": self._way([first], 0), "goto": -1}
        page = panel(["chart.js", "samples.js"], state, pages_own=("goto",))
        page.observe(self._on_goto, "goto")
        return page

    def _on_goto(self, change: Any) -> None:
        if change["new"] >= 0:
            self.controls.place.value = change["new"]
            change["owner"].goto = -1  # a second click on the same place is heard too

    def _tiles(self, point: TrajectoryPoint, show: str) -> dict[str, Any]:
        """A point's images on one sheet, and their classes."""
        images = self._images(point, show)
        columns = math.ceil(len(images) ** 0.5)
        names = [""] * len(images)
        if self.class_names:
            names = [self.class_names[label] for label in self.labels.tolist()]
        return {
            "sheet": as_png(image_grid(images, columns=columns, padding=0)),
            "columns": columns,
            "side": images.shape[-1],
            "names": names,
        }

    def _way(self, points: Sequence[TrajectoryPoint], place: int) -> dict[str, Any]:
        guidance = self.settings["guidance"]
        times = [round(float(point.t), 4) for point in points]
        scale = guidance.scale if self.guidable else 1.0
        way = {"times": times, "place": place, "scale": scale}
        return way | {"low": guidance.low, "high": guidance.high}

    def _on_setting(self, _: Any) -> None:
        controls = self.controls
        self.label = controls.label.value
        self.seed = controls.seed.value
        self.ema = list(self.models)[controls.ema.value]
        self.settings = {
            "method": controls.method.value,
            "num_steps": controls.steps.value,
            "guidance": Guidance(controls.scale.value, *controls.interval.value),
            "weak_model": self.guides[controls.guide.value],
        }
        self.start()

    def start(self) -> None:
        """Sample anew: in the background where an event loop runs, else at once.

        In the background the next change of a control can end it.
        """
        if self._task is not None:
            self._task.cancel()
        self.points = []
        # its cost is known before it starts, its time afterwards
        self.cost_line.value = html.escape(self.cost.describe())
        self._began = time.perf_counter()
        try:
            self._task = asyncio.get_running_loop().create_task(self._run())
        except RuntimeError:
            self.points = list(self.steps())
            self._finish()

    async def _run(self) -> None:
        last_picture = 0.0
        for point in self.steps():
            self.points.append(point)
            if time.perf_counter() - last_picture > SECONDS_BETWEEN_PICTURES:
                self._follow()
                last_picture = time.perf_counter()
            await asyncio.sleep(0.001)  # lets a control's change through, which may cancel this
        self._finish()

    def _follow(self) -> None:
        """Move the slider to the newest point, which shows it."""
        # a slider that moves calls `_show`; one that already stands there does not
        place = self.controls.place
        place.max = len(self.points) - 1
        if place.value == place.max:
            self._show()
        place.value = place.max

    def _finish(self) -> None:
        self._follow()
        seconds = time.perf_counter() - self._began
        self.cost_line.value = html.escape(f"{self.cost.describe()}; took {seconds:.1f} s")
        self.moved()

    def _show(self) -> None:
        if not self.points:
            return
        controls = self.controls
        place = min(controls.place.value, len(self.points) - 1)
        point = self.points[place]
        self.tiles.tiles = self._tiles(point, controls.show.value)
        self.tiles.way = self._way(self.points, place)
        self.position.value = f"after step {point.step}, t = {point.t:.2f} (1 is noise)"
