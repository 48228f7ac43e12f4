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


@dataclasses.dataclass(frozen=True)
class TrajectoryPoint:
    """Where a sampling is after some steps."""

    # steps behind it; 0 is the noise
    step: int
    # time: 1 is noise, 0 is data
    t: float
    # (B, N, C), on its way from noise
    state: Tensor
    # (B, N, C), the model's prediction of the end; at step 0 zeros, the mean of all latents
    guess: Tensor


@torch.no_grad()
def trajectory(
    model: DiffusionTransformer, labels: Tensor, *, seed: int = 0, **sampling: Any
) -> Iterator[TrajectoryPoint]:
    """Every step of sampling one image a label (B,), from the noise that `generate` draws.

    `sampling` goes to `sample_steps`. The last point is the sample. Latents are normalised.
    """
    # as `generate` draws it, so that the last point is the image that `generate` gives
    device = device_of(model)
    seeds = seeds_for(seed, len(labels))
    noise = draw_noise(seeds, model.num_tokens, model.latent_dim, device=device)
    yield TrajectoryPoint(0, 1.0, noise.float(), torch.zeros_like(noise, dtype=torch.float32))
    # the state is float64 on the way
    for step in sample_steps(model, noise, labels.to(device), seeds=seeds, **sampling):
        yield TrajectoryPoint(step.step, step.t, step.x.float(), step.x0.float())


@torch.inference_mode()
def decode_point(
    point: TrajectoryPoint,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    *,
    show: Literal["guess", "state"] = "guess",
) -> Tensor:
    """Images of a point's guess, or of its state as it is. -> (B, 3, H, W) in [-1, 1], CPU"""
    # the model works on normalised latents, the decoder on raw ones
    latents = space.denormalise(getattr(point, show))
    return tokenizer.decode(latents).float().clamp(-1, 1).cpu()
