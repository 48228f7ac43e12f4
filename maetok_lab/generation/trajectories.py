"""A sampling as it goes: the latents after every step, and what a tokenizer decodes from them."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import draw_noise, sample_steps
from maetok_lab.inference import device_of
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import seeds_for

Shown = Literal["guess", "state"]


@dataclasses.dataclass(frozen=True)
class TrajectoryPoint:
    """After `step` steps, at time `t`: the `state` (B, N, C) on its way from noise, and the model's `guess` of its end."""

    step: int
    t: float
    state: Tensor
    guess: Tensor


@torch.no_grad()
def trajectory(
    model: DiffusionTransformer, labels: Tensor, *, seed: int = 0, **sampling: Any
) -> Iterator[TrajectoryPoint]:
    """Every step of sampling one image a label (B,), from the noise that `evaluation.samples.generate` draws for this seed.

    `sampling` goes to `sample_steps`. The first point is the noise itself, the last one the sample. Latents are normalised.
    """
    device = device_of(model)
    seeds = seeds_for(seed, len(labels))
    noise = draw_noise(seeds, model.num_tokens, model.latent_dim, device=device)
    yield TrajectoryPoint(0, 1.0, noise.float(), torch.zeros_like(noise, dtype=torch.float32))
    for step in sample_steps(model, noise, labels.to(device), seeds=seeds, **sampling):
        yield TrajectoryPoint(step.step, step.t, step.x.float(), step.x0.float())


@torch.inference_mode()
def decode_point(
    point: TrajectoryPoint, tokenizer: AnyTokenizer, space: LatentSpace, *, show: Shown = "guess"
) -> Tensor:
    """Images of a point's guess, or of its state as it is. -> (B, 3, H, W) in [-1, 1] on the CPU

    Of the noise there is no guess yet: it shows the mean of all latents, decoded.
    """
    latents = space.denormalise(point.guess if show == "guess" else point.state)
    return tokenizer.decode(latents).float().clamp(-1, 1).cpu()
