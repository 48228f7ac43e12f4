"""Where generation goes wrong: the distance of images whose sampling starts at some time.

A test latent is noised to time t and sampled back to 0. From t = 1 that is generation; a small t
asks the model for the last refinement only. Where the distance rises, the model fails.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.decoding import Decode, decoded
from maetok_lab.analysis.definitions import definition
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import draw_noise
from maetok_lab.evaluation.features import make_reference, metric_name
from maetok_lab.evaluation.metrics import kernel_distance
from maetok_lab.generation.regeneration import regenerate
from maetok_lab.inference import device_of, eval_mode
from maetok_lab.protocols import Net
from maetok_lab.rng import seeds_for

STARTS = (0.2, 0.4, 0.6, 0.8, 1.0)


def distance_by_start(
    model: DiffusionTransformer,
    decode: Decode,
    space: LatentSpace,
    latents: Tensor,
    labels: Tensor,
    *,
    net: Net,
    starts: Sequence[float] = STARTS,
    num_steps: int = 50,
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Kernel distance of sampled test latents to reconstructions, by the time sampling starts at.

    Raw test latents (n, N, C), labels (n,); every second one is noised and sampled, unguided, the
    others' reconstructions are the reference: an image is never beside itself. -> rows start,
    kid_gap_NET, low, high; the first is start 0, the floor.
    """
    # the two halves
    sampled = torch.arange(0, len(latents), 2)
    reference = torch.arange(1, len(latents), 2)
    options = {"num_steps": num_steps, "seed": seed, "batch_size": batch_size}
    real = decoded(decode, latents[reference], batch_size)
    features = make_reference(real, net, name="reconstructions").features

    rows = []
    for start in (0.0, *starts):
        states = latents[sampled]
        if start > 0:
            states = _sampled(model, space, states, labels[sampled], start, **options)
        images = make_reference(decoded(decode, states, batch_size), net, name=f"from {start:g}")
        kid = kernel_distance(images.features, features, seed=seed)
        value = {metric_name("kid", net).replace("kid", "kid_gap", 1): kid.value}
        rows.append({"start": start, **value, "low": kid.low, "high": kid.high})
    table = pd.DataFrame(rows)
    settings = {"images": len(sampled), "steps": num_steps, "net": net.name, "seed": seed}
    table.attrs = {"definition": definition("distance_by_start", **settings)}
    return table


@torch.inference_mode()
def _sampled(
    model: DiffusionTransformer,
    space: LatentSpace,
    latents: Tensor,
    labels: Tensor,
    start: float,
    *,
    num_steps: int,
    seed: int,
    batch_size: int,
) -> Tensor:
    """Latents noised to `start` and sampled back. (n, N, C) raw -> raw"""
    device = device_of(model)
    parts = []
    with eval_mode(model):
        for rows in torch.arange(len(latents)).split(batch_size):
            seeds = seeds_for(seed, len(rows), start=int(rows[0]))
            noise = draw_noise(seeds, *latents.shape[1:], device=device)
            # as many steps a unit of time as from the noise
            options = {"start": start, "num_steps": num_steps}
            batch = (latents[rows].to(device), labels[rows], noise)
            parts.append(regenerate(model, space, *batch, **options))
    return torch.cat(parts)
