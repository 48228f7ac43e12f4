"""What each latent token carries: which patches move it, where it draws, and what a decoder makes of tokens that were changed."""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from maetok_lab.hints import did_you_mean
from maetok_lab.layers.patches import patchify
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator
from maetok_lab.tokenizer.model import Tokenizer

SurgeryKind = Literal["none", "drop", "swap", "interpolate", "noise"]
SURGERIES: tuple[SurgeryKind, ...] = ("none", "drop", "swap", "interpolate", "noise")


@dataclasses.dataclass(frozen=True)
class TokenStatistics:
    """Of each token's values over many images: mean (N, C), and one std a channel (C,), the unit in which tokens move."""

    mean: Tensor
    std: Tensor


def token_statistics(latents: Tensor) -> TokenStatistics:
    """Latents of at least two images (n, N, C) -> their statistics. Raises ValueError for fewer."""
    if latents.ndim != 3 or len(latents) < 2:
        raise ValueError(
            f"statistics need the latents of at least two images (n, N, C), not {tuple(latents.shape)}"
        )
    return TokenStatistics(latents.mean(0), latents.std(dim=(0, 1)).clamp(min=1e-6))


def token_shift(latents: Tensor, others: Tensor, std: Tensor) -> Tensor:
    """How far each token moved: root mean square over its channels, in their std (C,). (..., N, C) twice -> (..., N)"""
    return ((latents - others) / std).square().mean(-1).sqrt()


@torch.inference_mode()
def occlusion(
    tokenizer: Tokenizer, image: Tensor, *, patch_size: int, std: Tensor, batch_size: int = 256
) -> Tensor:
    """How far each token moves when one patch alone is hidden: what carries which patch.

    image (3, H, W) -> (N, patches), in std of the channels (see `token_shift`). Costs one encoding a patch.
    """
    patches = image.shape[-2] * image.shape[-1] // patch_size**2
    whole = tokenizer.encode(image[None])
    moved = []
    for mask in torch.eye(patches, dtype=torch.bool, device=image.device).split(batch_size):
        hidden = tokenizer.encode(image.expand(len(mask), *image.shape), mask=mask)  # (b, N, C)
        moved.append(token_shift(hidden, whole, std))
    return torch.cat(moved).T


@torch.inference_mode()
def footprint(
    tokenizer: AnyTokenizer,
    latents: Tensor,
    fill: Tensor,
    *,
    patch_size: int,
    batch_size: int = 256,
) -> Tensor:
    """Where each token draws: how much each patch changes when the token alone is replaced by `fill`'s.

    latents, fill (N, C) -> (N, patches), mean absolute difference of pixels in [-1, 1]. Costs one decoding a token.
    """
    whole = tokenizer.decode(latents[None])
    changed = []
    for rows in torch.arange(len(latents), device=latents.device).split(batch_size):
        without = latents.repeat(len(rows), 1, 1)
        without[torch.arange(len(rows)), rows] = fill[rows]
        changed.append(patchify((tokenizer.decode(without) - whole).abs(), patch_size).mean(-1))
    return torch.cat(changed)


def error_map(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error of each pixel over its channels. (3, H, W) twice, in [-1, 1] -> (H, W) in [0, 2]"""
    return (image - reconstruction.clamp(-1, 1)).abs().mean(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surgery:
    """One change of some tokens (all where `tokens` is empty).

    "drop" puts each at its mean over images; "swap" takes another image's; "interpolate" goes `amount` of the way to it;
    "noise" adds `amount` standard deviations of Gaussian noise, drawn from `seed`.
    """

    kind: SurgeryKind = "none"
    tokens: tuple[int, ...] = ()
    amount: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if self.kind not in SURGERIES:
            raise ValueError(f"unknown surgery {self.kind!r}{did_you_mean(self.kind, SURGERIES)}")
        if not math.isfinite(self.amount) or self.amount < 0:
            raise ValueError(f"the amount of a surgery must be 0 or more, not {self.amount}")


def operate(
    latents: Tensor, surgery: Surgery, statistics: TokenStatistics, *, other: Tensor | None = None
) -> Tensor:
    """Latents (N, C) with some tokens changed; `other` (N, C) are those of the other image, for swap and interpolate.

    Raises ValueError for a token that is not there, and for a missing `other`.
    """
    count = len(latents)
    chosen = list(surgery.tokens) or list(range(count))
    if not all(0 <= token < count for token in chosen):
        raise ValueError(f"tokens must be in 0 .. {count - 1}, not {sorted(chosen)}")
    if surgery.kind in ("swap", "interpolate") and other is None:
        raise ValueError(f"{surgery.kind} needs the latents of another image")
    changed = latents.clone()
    if surgery.kind == "drop":
        changed[chosen] = statistics.mean[chosen].to(latents)
    elif surgery.kind == "swap":
        changed[chosen] = other[chosen]
    elif surgery.kind == "interpolate":
        changed[chosen] = torch.lerp(latents[chosen], other[chosen], surgery.amount)
    elif surgery.kind == "noise":
        noise = torch.randn(latents.shape, generator=generator(surgery.seed, "surgery")).to(latents)
        changed[chosen] += surgery.amount * statistics.std.to(latents) * noise[chosen]
    return changed
