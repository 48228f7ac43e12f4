"""What a forward pass and a sampling cost: FLOPs in closed form, model rows known before anything runs, time left after."""

import dataclasses
import time
from collections.abc import Callable

from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, swiglu_width
from maetok_lab.diffusion.sampling import Guidance, Method, time_grid
from maetok_lab.layers.conditioning import NUM_FREQUENCIES


def flops(config: DiffusionConfig, num_tokens: int, *, latent_dim: int = 32) -> int:
    """FLOPs of one sample's forward pass: its matrix products, two FLOPs a multiply-add, as torch's counter counts them.

    SiT-XL: 116.7 GFLOP at 128 tokens and 1,049 at 1024, a ratio of 9.0. The paper (section 4.5) prints 48.5 and 373.3, a
    ratio of 7.7, by a count that it does not explain; neither one nor two FLOPs a multiply-add gives its figures.
    """
    n, d = num_tokens, config.width
    hidden = swiglu_width(d)
    mlp = 3 * d * hidden if config.mlp == "swiglu" else 8 * d * d
    block = (
        n * (4 * d * d + mlp) + 2 * n * n * d + 6 * d * d
    )  # projections and MLP, attention, modulation
    condition = NUM_FREQUENCIES * d + d * d
    ends = 2 * n * latent_dim * d + 2 * d * d  # first and last layer, last modulation
    return 2 * (config.depth * block + condition + ends)


@dataclasses.dataclass(frozen=True)
class SamplingCost:
    """Of `num_images` images: model rows and GFLOP an image, both None for dopri5, which chooses its steps on the way.

    `weak_rows` are the rows of autoguidance's weaker model, which are not among `rows`.
    """

    num_images: int
    rows: int | None
    weak_rows: int | None
    gflop: float | None

    def describe(self) -> str:
        """One line, for before the start."""
        if self.rows is None:
            return f"{self.num_images:,} images with dopri5: the number of model rows is only known afterwards"
        weak = f" and {self.weak_rows} of the weaker model" if self.weak_rows else ""
        return f"{self.num_images:,} images: {self.rows} model rows{weak} an image, {self.gflop:,.1f} GFLOP each"


def sampling_cost(
    model: DiffusionTransformer,
    num_images: int,
    *,
    num_steps: int,
    method: Method = "euler",
    guidance: Guidance | None = None,
    weak_model: DiffusionTransformer | None = None,
    time_shift: float = 1.0,
    **_: object,
) -> SamplingCost:
    """The cost of `sample` with these arguments (its others cost nothing), before it starts."""
    if method == "dopri5":
        return SamplingCost(num_images, None, None, None)
    times = time_grid(method, num_steps, time_shift)[:-1].tolist()
    evaluations = [
        2 if method == "heun" and step < num_steps else 1 for step in range(1, num_steps + 1)
    ]
    guided = sum(
        n for n, t in zip(evaluations, times) if guidance is not None and guidance.applies(t)
    )
    rows = sum(evaluations) + (guided if weak_model is None else 0)
    weak_rows = 0 if weak_model is None else guided
    total = rows * _model_flops(model) + (weak_rows * _model_flops(weak_model) if weak_rows else 0)
    return SamplingCost(num_images, rows, weak_rows, total / 1e9)


def _model_flops(model: DiffusionTransformer) -> int:
    return flops(model.config, model.num_tokens, latent_dim=model.latent_dim)


class SamplingProgress:
    """Says the cost when made; `update(images done)` after every batch says images/s and the time left, first at once."""

    def __init__(
        self, cost: SamplingCost, *, every: float = 30.0, write: Callable[[str], None] = print
    ):
        self.cost, self.every, self.write = cost, every, write
        self._start, self._told = time.monotonic(), None
        write(cost.describe())

    def update(self, done: int) -> None:
        """After the first batch, then at most every `every` seconds, and at the end."""
        now = time.monotonic()
        if self._told is not None and now - self._told < self.every and done < self.cost.num_images:
            return
        self._told = now
        speed = done / max(now - self._start, 1e-9)
        left = (self.cost.num_images - done) / speed
        self.write(
            f"{done:,} of {self.cost.num_images:,} images; {speed:.3g} images/s, {left:.0f} s left"
        )
