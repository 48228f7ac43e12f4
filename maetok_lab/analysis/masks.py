"""What a tokenizer still knows of an image whose patches are hidden: one image in full, and held-out images by ratio."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.evaluation.pixels import psnr
from maetok_lab.hints import did_you_mean
from maetok_lab.layers.patches import patchify
from maetok_lab.rng import generator
from maetok_lab.tokenizer.anatomy import TokenStatistics, error_map, token_shift
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.masking import block_mask, random_mask
from maetok_lab.tokenizer.model import Tokenizer

PatchClass = Literal["flat", "soft", "busy"]
PATCH_CLASSES: dict[
    PatchClass, tuple[float, float]
] = {  # std of a patch's pixels, on the scale of [-1, 1]
    "flat": (0.0, 0.02),
    "soft": (0.02, 0.25),
    "busy": (0.25, float("inf")),
}
MASK_KINDS = ("random", "block", *PATCH_CLASSES)
Distance = Callable[[Tensor, Tensor], Tensor]


def patch_contrast(images: Tensor, patch_size: int) -> Tensor:
    """Standard deviation of each patch's pixels around the mean of their channel. (B, 3, H, W) -> (B, patches)"""
    pixels = patchify(images.float(), patch_size).unflatten(-1, (-1, 3))  # (B, patches, pixels, 3)
    return (pixels - pixels.mean(2, keepdim=True)).square().mean((2, 3)).sqrt()


def draw_masks(
    images: Tensor, patch_size: int, *, kind: str = "random", ratio: float, seed: int = 0
) -> Tensor:
    """One mask an image, from `seed`: "random" patches, a "block", or a share of one class of patches.

    The classes are "flat" (one colour), "soft" and "busy" (edges, drawings), by contrast (`PATCH_CLASSES`); of those the
    `ratio` is a share of that class. A higher ratio hides the same patches and more, except for blocks, which move.
    images (B, 3, H, W) -> (B, patches) bool, True = hidden. Raises ValueError for another kind or ratio.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"a mask ratio is in [0, 1], not {ratio}")
    if kind not in MASK_KINDS:
        raise ValueError(f"unknown kind of mask {kind!r}{did_you_mean(kind, MASK_KINDS)}")
    grid, draw = (
        (images.shape[-2] // patch_size, images.shape[-1] // patch_size),
        generator(seed, "studio", kind),
    )
    if kind == "block":
        return block_mask(len(images), grid, ratio, generator=draw).to(images.device)
    if kind == "random":
        return random_mask(len(images), grid, ratio, generator=draw).to(images.device)
    low, high = PATCH_CLASSES[kind]
    contrast = patch_contrast(images, patch_size)
    member = (contrast >= low) & (contrast < high)
    order = torch.rand(member.shape, generator=draw).to(images.device).masked_fill(~member, 2.0)
    wanted = (member.sum(1, keepdim=True) * ratio - 1e-6).ceil()
    return order.argsort(1).argsort(1) < wanted


@dataclasses.dataclass(frozen=True)
class MaskStudy:
    """All that is known of one image under one mask.

    `latents` are of the masked image, `moved` (N,) how far each token is from where the whole image puts it, `error` (H, W),
    `psnr` in dB; `perceptual` is None without a distance. `seen` holds what each auxiliary decoder predicts, (patches, width),
    and `targets` what it should.
    """

    image: Tensor
    mask: Tensor
    latents: Tensor
    moved: Tensor
    reconstruction: Tensor
    error: Tensor
    psnr: float
    perceptual: float | None
    seen: dict[str, Tensor]
    targets: dict[str, Tensor]

    @property
    def hidden(self) -> float:
        """Share of the patches that are hidden."""
        return float(self.mask.float().mean())


@torch.inference_mode()
def study_mask(
    tokenizer: Tokenizer,
    image: Tensor,
    mask: Tensor,
    statistics: TokenStatistics,
    *,
    whole: Tensor | None = None,
    decoders: Mapping[str, AuxiliaryDecoder] | None = None,
    targets: Mapping[str, Tensor] | None = None,
    distance: Distance | None = None,
) -> MaskStudy:
    """Encode and decode one image under a mask, and compare.

    image (3, H, W), mask (patches,) bool, True = hidden. `whole` (N, C), the unmasked latents, and `targets`, the decoders'
    (see `image_targets`), are computed where they are not given: they do not depend on the mask.
    """
    whole = tokenizer.encode(image[None])[0] if whole is None else whole
    decoders = decoders or {}
    targets = image_targets(decoders, image) if targets is None else dict(targets)
    latents = tokenizer.encode(image[None], mask=mask[None])
    reconstruction = tokenizer.decode(latents, tuple(image.shape[-2:]))
    score = psnr(reconstruction, image[None]).clamp(max=100).item()
    seen = {name: decoders[name](latents)[0].float() for name in targets}
    return MaskStudy(
        image,
        mask,
        latents[0],
        token_shift(latents[0], whole, statistics.std),
        reconstruction[0],
        error_map(image, reconstruction[0]),
        score,
        None if distance is None else float(distance(reconstruction, image[None])),
        seen,
        targets,
    )


@torch.inference_mode()
def image_targets(decoders: Mapping[str, AuxiliaryDecoder], image: Tensor) -> dict[str, Tensor]:
    """What every auxiliary decoder with a target a patch should say of an image (3, H, W). -> name: (patches, width)"""
    shown = {name: decoder for name, decoder in decoders.items() if decoder.target.by_patch}
    return {name: decoder.target(image[None])[0].float() for name, decoder in shown.items()}


@torch.inference_mode()
def ratio_curve(
    tokenizer: Tokenizer,
    images: Tensor,
    *,
    kind: str = "random",
    ratios: Sequence[float] = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9),
    seed: int = 0,
    distance: Distance | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """PSNR (dB) and perceptual distance of reconstructed images against the ratio of hidden patches.

    images (n, 3, H, W) -> one row a ratio: `ratio`, `hidden` (the share that was, less than the ratio for a class of
    patches), `psnr` and `psnr_error` (mean and its standard error), and `perceptual` where there is a `distance`.
    """
    rows = []
    for ratio in ratios:
        mask = draw_masks(images, tokenizer.config.patch_size, kind=kind, ratio=ratio, seed=seed)
        parts = list(zip(images.split(batch_size), mask.split(batch_size)))
        made = [tokenizer(part, mask=hidden) for part, hidden in parts]
        scores = torch.cat([psnr(picture, part) for picture, (part, _) in zip(made, parts)]).clamp(
            max=100
        )
        row = {
            "ratio": float(ratio),
            "hidden": float(mask.float().mean()),
            "psnr": float(scores.mean()),
        }
        row["psnr_error"] = (
            float(scores.std() / len(scores) ** 0.5) if len(scores) > 1 else float("nan")
        )
        if distance is not None:
            found = [distance(picture, part) for picture, (part, _) in zip(made, parts)]
            row["perceptual"] = float(torch.cat(found).mean())
        rows.append(row)
    return pd.DataFrame(rows)
