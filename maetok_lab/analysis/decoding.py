"""What a decoder makes of latents that no encoder gave: with noise on them, and between two images."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.evaluation.metrics import psnr
from maetok_lab.rng import generator

Decode = Callable[[Tensor], Tensor]


@torch.inference_mode()
def decoder_robustness(
    decode: Decode,
    latents: Tensor,
    *,
    levels: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """PSNR in dB between images decoded with and without Gaussian noise on their latents, for each level.

    latents (n, N, C) -> columns `noise` (in standard deviations of each channel), `psnr` (mean over images), `error`
    (its standard error). A sampler's latents are off by some such noise: a decoder that forgives it is easier to sample
    for.
    """
    std = latents.float().std(dim=(0, 1), keepdim=True)  # (1, 1, C)
    noise = torch.randn(latents.shape, generator=generator(seed, "robustness")).to(latents.device)
    rows = []
    clean = [decode(part) for part in latents.split(batch_size)]
    for level in levels:
        moved = (latents + level * std * noise).to(latents.dtype)
        values = torch.cat(
            [
                psnr(decode(part).float(), x.float())
                for part, x in zip(moved.split(batch_size), clean)
            ]
        )
        values = values.clamp(max=100)  # a decoder that does not look at its latents has no error
        rows.append(
            {
                "noise": level,
                "psnr": float(values.mean()),
                "error": float(values.std() / len(values) ** 0.5),
            }
        )
    return pd.DataFrame(rows)


@torch.inference_mode()
def interpolation_smoothness(
    decode: Decode, latents: Tensor, *, pairs: int = 32, steps: int = 8, seed: int = 0
) -> pd.DataFrame:
    """How straight and even decoded images move along lines between the latents of two random images.

    latents (n, N, C) -> one row a pair: `detour`, the length of the path of images over the distance of its ends (at
    least 1; 1 for a linear decoder or cross-fade), and `unevenness`, the longest of `steps` moves over their mean (at
    least 1).
    """
    if len(latents) < 2 or steps < 2:
        raise ValueError(f"need at least two latents and two steps, not {len(latents)} and {steps}")
    random = generator(seed, "interpolation")
    first = torch.randint(len(latents), (pairs,), generator=random)
    other = (first + torch.randint(1, len(latents), (pairs,), generator=random)) % len(
        latents
    )  # never the same
    rows = []
    for a, b in zip(latents[first.to(latents.device)], latents[other.to(latents.device)]):
        t = torch.linspace(0, 1, steps + 1, device=latents.device, dtype=latents.dtype)[
            :, None, None
        ]
        images = decode(torch.lerp(a[None], b[None], t)).double().flatten(1)  # (steps + 1, pixels)
        moves = (images[1:] - images[:-1]).norm(dim=1)
        direct = (images[-1] - images[0]).norm()
        if direct > 0:
            rows.append(
                {
                    "detour": float(moves.sum() / direct),
                    "unevenness": float(moves.max() / moves.mean()),
                }
            )
    if not rows:
        raise ValueError("all pairs of latents decode to one image; there is nothing between them")
    return pd.DataFrame(rows)
