"""What guidance does, on a line: two classes, of which every velocity is known in closed form.

Nothing is learned here, so that what is seen is guidance alone. t = 1 is noise.
"""

import dataclasses
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.denoisers import Axes, Leading, MixtureDenoiser
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.diffusion.sampling import Guidance, sample, sample_steps
from maetok_lab.rng import generator

# Weight, mean and standard deviation of each Gaussian of a class. The first class is asked for; its
# second mode lies between its first and the other class.
CLASSES = (((0.5, -1.6, 0.35), (0.5, 0.0, 0.35)), ((1.0, 1.2, 0.5),))
BETWEEN = -0.8  # halfway between the first class's two modes
STEPS = 60  # of Euler's method
WAYS = 48  # samples whose way from noise is kept
SPOT = (0.6, 0.0)  # time and place at which the velocities are read


class LineModel:
    """The exact velocity of the classes, called as a diffusion model is; class 2 is the null one.

    Without a label it is that of both classes, equally often.
    """

    num_classes = len(CLASSES)

    def __init__(self) -> None:
        both = [(weight / len(CLASSES), *mode) for modes in CLASSES for weight, *mode in modes]
        # a line is its own principal axis, and nothing lies beyond it
        nothing = Axes(torch.zeros(0, 1), torch.zeros(0), 0.0)
        line = Leading(torch.zeros(1), torch.ones(1, 1), nothing)
        self.mixtures = [line_mixture(modes) for modes in (*CLASSES, both)]
        self.denoisers = [MixtureDenoiser(line, mixture) for mixture in self.mixtures]

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x_t (B, 1, 1), t (B,) in (0, 1], labels (B,) -> velocity (B, 1, 1)"""
        velocities = torch.stack([denoiser(x_t, t, labels) for denoiser in self.denoisers])
        return velocities[labels, torch.arange(len(labels))]

    def density(self, label: int, x: Tensor) -> Tensor:
        """The density of a class, or of all with the null label: (n,) -> (n,)"""
        return self.mixtures[label].log_prob(x[:, None]).exp()


def line_mixture(modes: Sequence[tuple[float, float, float]]) -> Mixture:
    """A mixture on a line from weight, mean and standard deviation of each of its Gaussians."""
    weights, means, deviations = torch.tensor(modes, dtype=torch.float64).T
    return Mixture(weights, means[:, None], deviations.square()[:, None])


@dataclasses.dataclass(frozen=True)
class GuidanceToy:
    """Samples of the first class at several guidance scales, all from the same noise."""

    model: LineModel
    samples: dict[float, Tensor]  # by scale: (n,)
    times: Tensor  # (STEPS + 1,), from 1 to 0
    ways: Tensor  # (STEPS + 1, WAYS), unguided samples on their way
    # the velocity at `SPOT`: without label, with it, and guided by the largest scale
    unconditional: float
    conditional: float
    guided: float

    @property
    def table(self) -> pd.DataFrame:
        """A row a scale: mean and standard deviation, and the share of the mode that is nearer to
        the other class; first those of the class itself.
        """
        (weight, mean, deviation), second = CLASSES[0]
        middle = weight * mean + second[0] * second[1]
        variance = weight * (deviation**2 + mean**2) + second[0] * (second[2] ** 2 + second[1] ** 2)
        rows = {"the class": [middle, (variance - middle**2) ** 0.5, second[0]]}
        for scale, values in self.samples.items():
            share = (values > BETWEEN).double().mean()
            rows[f"scale {scale:g}"] = [float(values.mean()), float(values.std()), float(share)]
        return pd.DataFrame(rows, index=["mean", "std", "nearer mode"]).T


def guidance_toy(
    scales: Sequence[float] = (1.0, 2.0, 4.0), *, num_samples: int = 4000, seed: int = 0
) -> GuidanceToy:
    """Sample the first class at each scale, with the library's sampler and exact velocities."""
    model = LineModel()
    noise = torch.randn(num_samples, 1, 1, generator=generator(seed, "guidance-toy"))
    labels = torch.zeros(num_samples, dtype=torch.long)
    samples = {}
    for scale in scales:
        guided = sample(model, noise, labels, num_steps=STEPS, guidance=Guidance(scale))
        samples[float(scale)] = guided[:, 0, 0]

    # some ways, without guidance
    steps = list(sample_steps(model, noise[:WAYS], labels[:WAYS], num_steps=STEPS))
    ways = torch.stack([noise[:WAYS].double(), *(step.x for step in steps)])[:, :, 0, 0]
    times = torch.tensor([1.0, *(step.t for step in steps)])

    # one place, where the first class and both together pull in two directions
    time, place = SPOT
    x = torch.full((2, 1, 1), place)
    with_label, without = model(x, torch.full((2,), time), torch.tensor([0, 2])).flatten().tolist()
    guided = without + max(scales) * (with_label - without)
    return GuidanceToy(model, samples, times, ways, without, with_label, guided)
