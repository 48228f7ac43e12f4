"""Latents that a diffusion model makes anew from noisy ones."""

import torch
from torch import Tensor

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionTransformer, own_labels
from maetok_lab.diffusion.path import PATHS
from maetok_lab.diffusion.sampling import sample


@torch.no_grad()
def regenerate(
    model: DiffusionTransformer,
    space: LatentSpace,
    latents: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    start: float,
    num_steps: int,
) -> Tensor:
    """Noise raw latents (B, N, C) to the time `start` in (0, 1], sample back unguided -> raw.

    labels (B,), noise (B, N, C) on the model's device. `num_steps` are those that sampling from
    t = 1 would take: it takes its share of them.
    """
    x = space.normalise(latents.float())
    times = torch.full((len(x),), start, device=x.device)
    x_t, _ = PATHS[model.trained_path].interpolate(x, noise, times)
    labels = own_labels(model, labels).to(x.device)
    steps = max(1, round(num_steps * start))
    return space.denormalise(sample(model, x_t, labels, num_steps=steps, start=start))
