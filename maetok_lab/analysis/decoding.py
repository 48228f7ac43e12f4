"""What a decoder makes of latents that no encoder gave: noisy ones, and between two images."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.definitions import definition
from maetok_lab.analysis.preprocess import take_rows
from maetok_lab.evaluation.features import image_batches
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.evaluation.reconstruction import Distance
from maetok_lab.rng import generator

Decode = Callable[[Tensor], Tensor]  # latents (B, N, C) -> images (B, 3, H, W) in [-1, 1]
MAX_PSNR = 100.0  # dB, for images without any error
STEPS = 8  # of the line between two latents


@torch.inference_mode()
def decoded(decode: Decode, latents: Any, batch_size: int) -> Iterator[Tensor]:
    """Images (b, 3, H, W) in float32 of latents (n, N, C), from batches that are always full."""
    parts = torch.arange(latents.shape[0]).split(batch_size)
    rows = (take_rows(latents, part).float() for part in parts)
    for batch, count in image_batches(rows, batch_size):
        yield decode(batch)[:count].float()


def finite_psnr(images: Tensor, references: Tensor) -> Tensor:
    """`psnr` in dB, at most `MAX_PSNR`: a decoder that looks at nothing makes no error. -> (B,)"""
    return psnr(images, references).clamp(max=MAX_PSNR)


@torch.inference_mode()
def decoder_robustness(
    decode: Decode,
    latents: Tensor,
    *,
    levels: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """PSNR in dB between images decoded with and without Gaussian noise on their latents.

    latents (n, N, C) -> one row a level: `noise` (in standard deviations of each channel), `psnr`
    (mean over images), `error` (its standard error).
    """
    # A sampler's latents are off by some such noise: a decoder that forgives it helps sampling.
    std = latents.float().std(dim=(0, 1), keepdim=True)  # (1, 1, C)
    noise = torch.randn(latents.shape, generator=generator(seed, "robustness")).to(latents.device)
    clean = [decode(part) for part in latents.split(batch_size)]
    rows = []
    for level in levels:
        noisy = (latents + level * std * noise).to(latents.dtype)
        scores = []
        for part, images in zip(noisy.split(batch_size), clean):
            scores.append(finite_psnr(decode(part).float(), images.float()))
        values = torch.cat(scores)
        error = values.std() / len(values) ** 0.5
        rows.append({"noise": level, "psnr": float(values.mean()), "error": float(error)})
    table = pd.DataFrame(rows)
    table.attrs = {"definition": definition("psnr_at_noise", images=len(latents), seed=seed)}
    return table


@torch.inference_mode()
def interpolation_smoothness(
    decode: Decode, latents: Tensor, *, pairs: int = 32, seed: int = 0
) -> pd.DataFrame:
    """How straight and even images move along the line between two latents, for random pairs.

    latents (n, N, C) -> one row a pair, both >= 1: `detour`, path of the images over the distance
    of its ends (1 for a linear decoder or a cross-fade); `unevenness`, the longest move over the
    mean.
    """
    if len(latents) < 2:
        raise ValueError(f"need at least two latents to go between, not {len(latents)}")
    random = generator(seed, "interpolation")
    first = torch.randint(len(latents), (pairs,), generator=random)
    # 1 to n - 1 places further on, around the end: never the same latent
    shift = torch.randint(1, len(latents), (pairs,), generator=random)
    second = (first + shift) % len(latents)
    share = torch.linspace(0, 1, STEPS + 1, device=latents.device, dtype=latents.dtype)
    rows = []
    for start, end in zip(first.tolist(), second.tolist()):
        line = torch.lerp(latents[start], latents[end], share[:, None, None])
        images = decode(line).double().flatten(1)  # (STEPS + 1, pixels)
        moves = (images[1:] - images[:-1]).norm(dim=1)
        direct = (images[-1] - images[0]).norm()
        if direct > 0:  # a pair that decodes to one image says nothing
            detour = moves.sum() / direct
            unevenness = moves.max() / moves.mean()
            rows.append({"detour": float(detour), "unevenness": float(unevenness)})
    if not rows:
        raise ValueError("all pairs of latents decode to one image; there is nothing between them")
    return pd.DataFrame(rows)


@torch.inference_mode()
def local_perceptual_continuity(
    decode: Decode,
    latents: Tensor,
    distance: Distance,
    *,
    radii: Sequence[float] = (0.1, 0.5, 1, 2),
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """LPC: how far images move, by `distance`, where latents z go +-radius |z| in one direction.

    |z| is the length from the latents' mean. (n, N, C) -> one row a radius, `radius, lpc, error`;
    `.attrs` hold `lpc` and `error` of the mean by weights 1 / radius. Images are not clamped.
    Raises ValueError for fewer than two latents.
    """
    if len(latents) < 2 or not radii or min(radii) <= 0:
        raise ValueError(
            f"need two latents or more and radii above 0, not {len(latents)} and {list(radii)}"
        )
    # an offset that all latents share is no size: without it |z| is the spread of the cloud
    centred = latents.float() - latents.float().mean(dim=0)
    direction = torch.randn(latents.shape, generator=generator(seed, "continuity"))
    direction = direction.to(latents.device) / direction.flatten(1).norm(dim=1)[:, None, None]
    steps = centred.flatten(1).norm(dim=1)[:, None, None] * direction  # (n, N, C)

    # both ways from each latent, by every radius
    parts = []
    for start in range(0, len(latents), batch_size):
        rows = slice(start, start + batch_size)
        images = decode(latents[rows]).float()
        moves = []
        for signed in (sign * radius for radius in radii for sign in (1, -1)):
            moved = decode((latents[rows] + signed * steps[rows]).to(latents.dtype)).float()
            moves.append(distance(moved, images).double().cpu())
        parts.append(torch.stack(moves, dim=1).unflatten(1, (len(radii), 2)).mean(dim=2))
    values = torch.cat(parts)  # (n, radii)

    weights = 1 / torch.tensor(radii, dtype=torch.float64)
    every = torch.cat([values, values @ (weights / weights.sum())[:, None]], dim=1)
    means = every.mean(dim=0).tolist()
    errors = (every.std(dim=0) / len(every) ** 0.5).tolist()
    table = pd.DataFrame({"radius": list(radii), "lpc": means[:-1], "error": errors[:-1]})
    settings = {"radii": list(radii), "images": len(latents), "seed": seed}
    table.attrs = {
        "lpc": means[-1],
        "error": errors[-1],
        "definition": definition("lpc", **settings),
    }
    return table
