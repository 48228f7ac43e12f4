"""What a forward pass and a sampling cost: FLOPs and model rows before, time left on the way."""

import dataclasses
import time
from collections.abc import Callable

from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, swiglu_width
from maetok_lab.diffusion.sampling import Guidance, Method, shift_to_follow, time_grid
from maetok_lab.layers.conditioning import NUM_FREQUENCIES


def flops(config: DiffusionConfig, num_tokens: int, *, latent_dim: int = 32) -> int:
    """FLOPs of one sample's forward pass: its matrix products, as torch's counter counts them."""
    # SiT-XL: 116.7 GFLOP at 128 tokens and 1,049 at 1024, a ratio of 9.0. The paper (section 4.5)
    # prints 48.5 and 373.3, a ratio of 7.7, by a count that it does not explain; neither one nor
    # two FLOPs a multiply-add gives its figures.
    n = num_tokens
    d = config.width
    mlp = 8 * d * d
    if config.mlp == "swiglu":
        mlp = 3 * d * swiglu_width(d)

    # multiply-adds: a token's projections and MLP, attention, modulation
    block = n * (4 * d * d + mlp) + 2 * n * n * d + 6 * d * d
    condition = NUM_FREQUENCIES * d + d * d
    ends = 2 * n * latent_dim * d + 2 * d * d  # first and last layer, last modulation
    return 2 * (config.depth * block + condition + ends)


@dataclasses.dataclass(frozen=True)
class SamplingCost:
    """The cost of one image, and how many there are; None for dopri5, which chooses its steps."""

    num_images: int
    rows: int | None  # model rows an image
    weak_rows: int | None  # of autoguidance's weaker model; not among `rows`
    gflop: float | None  # of both models

    def describe(self) -> str:
        """One line, for before the start."""
        images = f"{self.num_images:,} images"
        if self.rows is None:
            return f"{images} with dopri5: the number of model rows is only known afterwards"
        rows = f"{self.rows} model rows"
        if self.weak_rows:
            rows += f" and {self.weak_rows} of the weaker model"
        return f"{images}: {rows} an image, {self.gflop:,.1f} GFLOP each"


def sampling_cost(
    model: DiffusionTransformer,
    num_images: int,
    *,
    num_steps: int,
    method: Method = "euler",
    guidance: Guidance | None = None,
    weak_model: DiffusionTransformer | None = None,
    time_shift: float | None = None,
    start: float = 1.0,
    **_: object,
) -> SamplingCost:
    """The cost of `sample` with these arguments (its others cost nothing), before it starts."""
    if method == "dopri5":  # chooses its steps on the way
        return SamplingCost(num_images, None, None, None)

    # a row for every evaluation, and a second one, of the null class, where guidance applies
    rows = guided = 0
    times = time_grid(method, num_steps, shift_to_follow(model, time_shift), start).tolist()
    for step, t in enumerate(times[:-1], start=1):
        evaluations = 1
        if method == "heun" and step < num_steps:
            evaluations = 2
        rows += evaluations
        if guidance is not None and guidance.applies(t):
            guided += evaluations

    # autoguidance has the second row computed by the weaker model
    if weak_model is None:
        rows += guided
        weak_rows = weak_flops = 0
    else:
        weak_rows = guided
        weak_flops = guided * _model_flops(weak_model)
    gflop = (rows * _model_flops(model) + weak_flops) / 1e9
    return SamplingCost(num_images, rows, weak_rows, gflop)


def _model_flops(model: DiffusionTransformer) -> int:
    return flops(model.config, model.num_tokens, latent_dim=model.latent_dim)


class SamplingProgress:
    """Says the cost before the start; `update` after every batch says images/s and time left."""

    def __init__(self, cost: SamplingCost, *, write: Callable[[str], None] = print):
        self.cost = cost
        self.write = write
        self._start = time.monotonic()
        self._next_line = self._start
        write(cost.describe())

    def update(self, count: int) -> None:
        """Say that `count` images are there: at the first call, twice a minute, and at the end."""
        now = time.monotonic()
        total = self.cost.num_images
        if now < self._next_line and count < total:
            return
        self._next_line = now + 30
        speed = count / max(now - self._start, 1e-9)
        left = (total - count) / speed
        self.write(f"{count:,} of {total:,} images; {speed:.3g} images/s, {left:.0f} s left")
