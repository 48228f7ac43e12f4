"""A sampling as it goes: the latents after every step, what a tokenizer decodes from them, and how
straight the way is.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import draw_noise, sample_steps
from maetok_lab.inference import device_of, eval_mode
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import seeds_for

PATH_STEPS = 50  # M, equal Euler steps of the ways whose straightness is measured


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
    for step in sample_steps(model, noise, labels.to(device), seeds=seeds, start=1.0, **sampling):
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


# How straight the way is --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PathNumbers:
    """Means over samples and their standard errors; NaN where a sample stands still."""

    # cosine of one step with the next: 1 is straight
    straightness: tuple[float, float]
    # distance from noise to sample over the length of the way: 1 is straight
    efficiency: tuple[float, float]
    # length of each step, in parts of the distance times M: columns mean, error, (M, 2)
    length_ratio: Tensor


def path_numbers(states: Tensor) -> PathNumbers:
    """The shape of the ways of samplings (arXiv 2606.03578, equations 10 and 11).

    states (M + 1, B, N, C), from noise to sample. Raises ValueError for fewer than two steps or
    samples.
    """
    if states.ndim < 3 or len(states) < 3 or states.shape[1] < 2:
        raise ValueError(
            "the shape of ways needs states (M + 1, B, N, C) of M = 2 steps and B = 2 samples or"
            f" more, not {tuple(states.shape)}: take more steps or labels"
        )
    moves = states.double().flatten(2).diff(dim=0)  # (M, B, N C)
    lengths = moves.norm(dim=2)  # (M, B)
    distance = moves.sum(dim=0).norm(dim=1)  # (B,)
    cosines = (moves[:-1] * moves[1:]).sum(dim=2) / (lengths[:-1] * lengths[1:])
    return PathNumbers(
        straightness=tuple(_mean_and_error(cosines.mean(dim=0)).tolist()),
        efficiency=tuple(_mean_and_error(distance / lengths.sum(dim=0)).tolist()),
        length_ratio=_mean_and_error(len(moves) * lengths / distance),
    )


def _mean_and_error(values: Tensor) -> Tensor:
    """(..., B) -> (..., 2), on the CPU"""
    error = values.std(dim=-1) / values.shape[-1] ** 0.5
    return torch.stack([values.mean(dim=-1), error], dim=-1).cpu()


def trajectory_shape(
    model: DiffusionTransformer, labels: Tensor, *, seed: int = 0, num_steps: int = PATH_STEPS
) -> PathNumbers:
    """`path_numbers` of sampling one image a label (B,): equal Euler steps, without guidance.

    All states, (num_steps + 1, B, N, C), are in memory at once.
    """
    # equal steps whatever the model was trained with: the numbers are compared between models
    with eval_mode(model):
        points = trajectory(model, labels, seed=seed, num_steps=num_steps, time_shift=1.0)
        return path_numbers(torch.stack([point.state for point in points]))
