"""Sample with any class, seed, guidance and sampler, see the pictures as they form, and walk back along their way."""

import asyncio
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.cost import SamplingCost, sampling_cost
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import INTEGRATORS, Guidance
from maetok_lab.generation.trajectories import TrajectoryPoint, decode_point, trajectory
from maetok_lab.pictures import image_grid
from maetok_lab.plots.images import plot_rows
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.widgets.front import Studio, escaped, ipywidgets, png_bytes, png_image

SIDE = 512  # px of the grid
SECONDS_BETWEEN_PICTURES = 0.15


class SamplerStudio(Studio):
    """`model` is one diffusion transformer, or several by EMA rate ({0.998: ..., 0.9: ...}); `latent_space` and `tokenizer`
    turn its samples into images.

    `class_names` are the model's classes; `count` images are drawn of one class, or one of each of the first `count` classes.
    Attributes to read: `points` (the trajectory so far), `cost`, `settings`, `labels`; `sample()` draws at once.
    Raises ValueError where model, latent space and tokenizer do not belong together.
    """

    def __init__(
        self,
        model: DiffusionTransformer | Mapping[float | None, DiffusionTransformer],
        latent_space: LatentSpace,
        tokenizer: AnyTokenizer,
        *,
        class_names: Sequence[str] | None = None,
        count: int = 16,
        seed: int = 0,
        guidance: Guidance | None = None,
        num_steps: int = 25,
        method: str = "euler",
    ):
        self.models = dict(model) if isinstance(model, Mapping) else {None: model}
        self.space, self.tokenizer, self.count = latent_space, tokenizer, count
        for owner in (
            latent_space.tokenizer,
            *(m.tokenizer_fingerprint for m in self.models.values()),
        ):
            if owner and owner != tokenizer.fingerprint:
                raise ValueError(
                    f"model and latent space belong to tokenizer {owner}, not to {tokenizer.fingerprint}"
                )
        first = next(iter(self.models.values()))
        self.class_names = list(
            class_names or [f"class {index}" for index in range(first.num_classes)]
        )
        if len(self.class_names) != first.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class names for a model of {first.num_classes} classes"
            )
        self.ema, self.label, self.seed = (
            next(iter(self.models)),
            -1,
            seed,
        )  # label -1: one image of each class
        self.settings = {
            "method": method,
            "num_steps": num_steps,
            "guidance": guidance or Guidance(3.0, 0.0, 0.75),
        }
        self.points: list[TrajectoryPoint] = []
        self._task: asyncio.Task | None = None

    # State ------------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> DiffusionTransformer:
        """The weights of the chosen EMA rate."""
        return self.models[self.ema]

    @property
    def labels(self) -> Tensor:
        """The label of each image. -> (count,)"""
        if not self.class_names:
            return torch.zeros(self.count, dtype=torch.long)
        every = torch.arange(self.count) % len(self.class_names)
        return every if self.label < 0 else torch.full_like(every, self.label)

    @property
    def cost(self) -> SamplingCost:
        """What one more sampling costs."""
        return sampling_cost(self.model, self.count, **self.settings)

    def steps(self) -> Iterator[TrajectoryPoint]:
        """Sample, one step at a time."""
        settings = dict(self.settings)
        if not self.class_names:
            settings["guidance"] = None
        return trajectory(self.model, self.labels, seed=self.seed, **settings)

    def sample(self) -> Tensor:
        """Sample to the end. -> images (count, 3, H, W)"""
        self.points = list(self.steps())
        return decode_point(self.points[-1], self.tokenizer, self.space, show="state")

    def twin(self) -> Any:
        """What forms at five places of the way, a row each, as a matplotlib figure."""
        if not self.points:
            self.sample()
        kept = sorted({round(share * (len(self.points) - 1)) for share in (0.2, 0.4, 0.6, 0.8)}) + [
            len(self.points) - 1
        ]
        rows = {}
        for index in kept:
            point = self.points[index]
            last = index == len(self.points) - 1
            title = "sample" if last else f"guess at t = {point.t:.2f}"
            rows[title] = decode_point(
                point, self.tokenizer, self.space, show="state" if last else "guess"
            )
        return plot_rows(rows).figure

    # View -------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package, now = ipywidgets(), self.settings
        wide = {
            "layout": {"width": "380px"},
            "style": {"description_width": "120px"},
            "continuous_update": False,
        }
        lists = {name: value for name, value in wide.items() if name != "continuous_update"}
        names = [
            ("one of each", -1),
            *((name, index) for index, name in enumerate(self.class_names)),
        ]
        # by number: a control whose value is None shows nothing
        rates = [
            ("the model's" if rate is None else f"{rate:g}", number)
            for number, rate in enumerate(self.models)
        ]
        guide = now["guidance"]
        return SimpleNamespace(
            label=package.Dropdown(options=names, value=self.label, description="class", **lists),
            seed=package.BoundedIntText(
                value=self.seed, min=0, max=99_999, description="seed", **wide
            ),
            scale=package.FloatSlider(
                value=guide.scale, min=0, max=8, step=0.25, description="guidance scale", **wide
            ),
            interval=package.FloatRangeSlider(
                value=(guide.low, guide.high),
                min=0,
                max=1,
                step=0.05,
                description="guided for t in",
                **wide,
            ),
            steps=package.IntSlider(
                value=now["num_steps"], min=1, max=100, description="steps", **wide
            ),
            method=package.Dropdown(
                options=list(INTEGRATORS), value=now["method"], description="sampler", **lists
            ),
            ema=package.Dropdown(options=rates, value=0, description="EMA rate", **lists),
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
        """The widget; it samples once, when it is first shown."""
        package, see = ipywidgets(), self.controls
        self.grid = png_image(width=f"{SIDE}px", height=f"{SIDE}px")
        self.told, self.price = package.HTML(), package.HTML()
        for name in ("label", "seed", "scale", "interval", "steps", "method", "ema"):
            getattr(see, name).observe(self._on_setting, "value")
        for name in ("place", "show"):
            getattr(see, name).observe(lambda _: self._show(), "value")
        left = [
            see.label,
            see.seed,
            see.scale,
            see.interval,
            see.steps,
            see.method,
            see.ema,
            self.price,
        ]
        wrap = {"flex_flow": "row wrap", "max_width": "1160px"}
        view = package.HBox(
            [package.VBox(left), package.VBox([see.place, see.show, self.told, self.grid])],
            layout=wrap,
        )
        self.start()
        return view

    def _on_setting(self, _: Any) -> None:
        see = self.controls
        self.label, self.seed, self.ema = (
            see.label.value,
            see.seed.value,
            list(self.models)[see.ema.value],
        )
        guidance = Guidance(see.scale.value, *see.interval.value)
        self.settings = {
            "method": see.method.value,
            "num_steps": see.steps.value,
            "guidance": guidance,
        }
        self.start()

    def start(self) -> None:
        """Sample anew: in the background where an event loop runs, so that the next change can end it; else at once."""
        if self._task is not None:
            self._task.cancel()
        self.points = []
        self.price.value = escaped(self.cost.describe())
        self._began = time.perf_counter()
        try:
            self._task = asyncio.get_running_loop().create_task(self._run())
        except RuntimeError:
            for point in self.steps():
                self._take(point)
            self._finish()

    async def _run(self) -> None:
        shown = 0.0
        for point in self.steps():
            self._take(point)
            if time.perf_counter() - shown > SECONDS_BETWEEN_PICTURES:
                self._follow()
                shown = time.perf_counter()
            await asyncio.sleep(0.001)  # lets a control's change through, which may cancel this
        self._finish()

    def _take(self, point: TrajectoryPoint) -> None:
        self.points.append(point)

    def _follow(self) -> None:
        """The slider to the newest point, which shows it."""
        place = self.controls.place
        place.max = len(self.points) - 1
        if place.value == place.max:
            self._show()
        place.value = place.max

    def _finish(self) -> None:
        self._follow()
        seconds = time.perf_counter() - self._began
        self.price.value = escaped(f"{self.cost.describe()}; took {seconds:.1f} s")

    def _show(self) -> None:
        see = self.controls
        if not self.points:
            return
        point = self.points[min(see.place.value, len(self.points) - 1)]
        images = decode_point(point, self.tokenizer, self.space, show=see.show.value)
        self.grid.value = png_bytes(image_grid(images), size=SIDE)
        self.told.value = f"after step {point.step}, t = {point.t:.2f} (1 is noise)"
