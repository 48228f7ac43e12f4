"""What each latent token carries: which patches move it, where it draws, what changed tokens give.

Maps of one image for the mask studio; ours, not the paper's.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from maetok_lab.hints import check_choice
from maetok_lab.layers.grid import patchify
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator
from maetok_lab.tokenizer.model import Tokenizer

SurgeryKind = Literal["none", "drop", "swap", "interpolate", "noise"]
SURGERIES: tuple[SurgeryKind, ...] = ("none", "drop", "swap", "interpolate", "noise")


# ---- How far tokens move ----


@dataclasses.dataclass(frozen=True)
class TokenStatistics:
    """Of tokens over many images."""

    # of each token: (N, C)
    mean: Tensor
    # of each channel over all tokens: (C,), the unit in which tokens move
    std: Tensor


def token_statistics(latents: Tensor) -> TokenStatistics:
    """Latents of at least two images (n, N, C) -> their statistics. Raises ValueError for fewer."""
    if latents.ndim != 3 or len(latents) < 2:
        raise ValueError(
            "statistics need the latents of at least two images (n, N, C), "
            f"not {tuple(latents.shape)}"
        )
    return TokenStatistics(latents.mean(0), latents.std(dim=(0, 1)).clamp(min=1e-6))


def token_shift(latents: Tensor, moved: Tensor, std: Tensor) -> Tensor:
    """How far each token moved: root mean square over its channels, in their std (C,).

    latents, moved (..., N, C) -> (..., N)
    """
    return ((latents - moved) / std).square().mean(-1).sqrt()


# ---- Maps of one image ----


@torch.inference_mode()
def occlusion(
    tokenizer: Tokenizer, image: Tensor, *, patch_size: int, std: Tensor, batch_size: int = 256
) -> Tensor:
    """How far each token moves when one patch alone is hidden: what carries which patch.

    image (3, H, W) -> (N, patches), as `token_shift` measures.
    """
    patches = image.shape[-2] * image.shape[-1] // patch_size**2
    whole = tokenizer.encode(image[None])
    shifts = []
    # one encoding a patch: row k of the identity hides patch k
    for mask in torch.eye(patches, dtype=torch.bool, device=image.device).split(batch_size):
        latents = tokenizer.encode(image.expand(len(mask), *image.shape), mask=mask)  # (b, N, C)
        shifts.append(token_shift(latents, whole, std))
    return torch.cat(shifts).T


@torch.inference_mode()
def footprint(
    tokenizer: AnyTokenizer,
    latents: Tensor,
    fill: Tensor,
    *,
    patch_size: int,
    batch_size: int = 256,
) -> Tensor:
    """Where each token draws: the change of each patch when `fill` takes the place of that token.

    latents, fill (N, C) -> (N, patches), mean absolute difference of pixels in [-1, 1].
    """
    whole = tokenizer.decode(latents[None])
    changes = []
    # one decoding a token
    for tokens in torch.arange(len(latents), device=latents.device).split(batch_size):
        without = latents.repeat(len(tokens), 1, 1)  # (b, N, C)
        without[torch.arange(len(tokens)), tokens] = fill[tokens]
        change = (tokenizer.decode(without) - whole).abs()
        changes.append(patchify(change, patch_size).mean(-1))
    return torch.cat(changes)


def error_map(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error over channels. (3, H, W) twice, in [-1, 1] -> (H, W) in [0, 2]"""
    return (image - reconstruction.clamp(-1, 1)).abs().mean(0)


# ---- Surgery ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surgery:
    """One change of some tokens."""

    # "drop": to their mean over images; "swap": another image's; "interpolate": on the way to them
    kind: SurgeryKind = "none"
    # which ones; all where it is empty
    tokens: tuple[int, ...] = ()
    # share of the way for "interpolate", standard deviations for "noise"
    amount: float = 0.5
    # of the Gaussian noise
    seed: int = 0

    def __post_init__(self):
        check_choice(self.kind, SURGERIES, "surgery")
        if not math.isfinite(self.amount) or self.amount < 0:
            raise ValueError(f"the amount of a surgery must be 0 or more, not {self.amount}")


def operate(
    latents: Tensor, surgery: Surgery, statistics: TokenStatistics, *, other: Tensor | None = None
) -> Tensor:
    """Latents (N, C) with some tokens changed; `other` (N, C) are the other image's.

    Raises ValueError for a token that is not there, and where `other` is needed and missing.
    """
    tokens = list(surgery.tokens) or list(range(len(latents)))
    if min(tokens) < 0 or max(tokens) >= len(latents):
        raise ValueError(f"tokens must be in 0 .. {len(latents) - 1}, not {sorted(tokens)}")
    if surgery.kind in ("swap", "interpolate") and other is None:
        raise ValueError(f"{surgery.kind} needs the latents of another image")

    changed = latents.clone()
    if surgery.kind == "drop":
        changed[tokens] = statistics.mean[tokens].to(latents)
    elif surgery.kind == "swap":
        changed[tokens] = other[tokens]
    elif surgery.kind == "interpolate":
        changed[tokens] = torch.lerp(latents[tokens], other[tokens], surgery.amount)
    elif surgery.kind == "noise":
        # drawn for all tokens: a token's noise does not depend on which others are changed
        noise = torch.randn(latents.shape, generator=generator(surgery.seed, "surgery")).to(latents)
        changed[tokens] += surgery.amount * statistics.std.to(latents) * noise[tokens]
    return changed
