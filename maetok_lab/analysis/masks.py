"""What a tokenizer still knows of an image whose patches are hidden.

One image under one mask in full (`study_mask`), and held-out images by ratio (`ratio_curve`). In
every mask True = hidden.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.decoding import finite_psnr
from maetok_lab.hints import check_choice
from maetok_lab.layers.grid import patchify
from maetok_lab.rng import generator
from maetok_lab.tokenizer.anatomy import TokenStatistics, error_map, token_shift
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.masking import block_mask, random_mask
from maetok_lab.tokenizer.model import Tokenizer

PatchClass = Literal["flat", "soft", "busy"]
# From and below which contrast a patch is of the class: std of its pixels on the scale of [-1, 1].
PATCH_CLASSES: dict[PatchClass, tuple[float, float]] = {
    "flat": (0.0, 0.02),  # one colour
    "soft": (0.02, 0.25),
    "busy": (0.25, math.inf),  # edges, drawings
}
MASK_KINDS = ("random", "block", *PATCH_CLASSES)
# what a slider hides first, by the names that people read
HIDE_ORDERS = ("scattered", "block", "flat first", "detail first")
Distance = Callable[[Tensor, Tensor], Tensor]  # images (B, 3, H, W) twice -> (B,)


# Masks --------------------------------------------------------------------------------------------


def patch_contrast(images: Tensor, patch_size: int) -> Tensor:
    """Std of each patch's pixels around their channel's mean: (B, 3, H, W) -> (B, patches)."""
    pixels = patchify(images.float(), patch_size).unflatten(-1, (-1, 3))  # (B, patches, pixels, 3)
    return (pixels - pixels.mean(2, keepdim=True)).square().mean((2, 3)).sqrt()


def draw_masks(
    images: Tensor, patch_size: int, *, kind: str = "random", ratio: float, seed: int = 0
) -> Tensor:
    """One mask an image: images (B, 3, H, W) -> (B, patches) bool, True = hidden.

    `kind` is "random", "block", or one of `PATCH_CLASSES`, of whose patches alone the share `ratio`
    is hidden. Raises ValueError for another kind or ratio.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"a mask ratio is in [0, 1], not {ratio}")
    check_choice(kind, MASK_KINDS, "kind of mask")
    grid = (images.shape[-2] // patch_size, images.shape[-1] // patch_size)
    random = generator(seed, "studio", kind)
    if kind == "block":
        return block_mask(len(images), grid, ratio, generator=random).to(images.device)
    if kind == "random":
        return random_mask(len(images), grid, ratio, generator=random).to(images.device)

    # A class's patches come first in random order, and its share of them is hidden: a higher ratio
    # hides the same patches and more. (So do random masks; blocks move.)
    low, high = PATCH_CLASSES[kind]
    contrast = patch_contrast(images, patch_size)
    member = (contrast >= low) & (contrast < high)
    order = torch.rand(member.shape, generator=random).to(images.device).masked_fill(~member, 2.0)
    # rounded up; less 1e-6, or float rounding of a whole number would hide one patch more
    count = (member.sum(1, keepdim=True) * ratio - 1e-6).ceil()
    ranks = order.argsort(1).argsort(1)
    return ranks < count


def hide_order(image: Tensor, patch_size: int, *, kind: str, seed: int = 0) -> Tensor:
    """Patches of an image (3, H, W) in the order in which a slider hides them. -> (patches,) int64

    `kind` is one of `HIDE_ORDERS`: in random order, as a growing square around a random patch, the
    plainest first, the richest in contrast first. Raises ValueError for another one.
    """
    check_choice(kind, HIDE_ORDERS, "order of hiding")
    down, across = image.shape[-2] // patch_size, image.shape[-1] // patch_size
    random = generator(seed, "hide", kind)
    chance = torch.rand(down * across, generator=random)  # also among equals
    if kind == "scattered":
        return chance.argsort()
    if kind == "block":
        # not at the border, where a block would have one direction to grow in
        row = int(torch.randint(down // 4, down - down // 4, (), generator=random))
        column = int(torch.randint(across // 4, across - across // 4, (), generator=random))
        rows = (torch.arange(down) - row).abs()[:, None]
        columns = (torch.arange(across) - column).abs()[None]
        return (torch.maximum(rows, columns).flatten() + chance / 2).argsort()
    contrast = patch_contrast(image[None], patch_size)[0].cpu()
    if kind == "detail first":
        contrast = -contrast
    return (contrast + 1e-6 * chance).argsort()


def masks_along(order: Tensor, num_ratios: int) -> Tensor:
    """Masks from nothing to everything hidden, evenly: order (patches,) -> (num_ratios, patches)"""
    ranks = order.argsort()
    counts = torch.linspace(0, len(order), num_ratios).round()
    return ranks[None] < counts[:, None]


# One image ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MaskStudy:
    """One image under one mask: what was encoded, what came out, and how far off it is."""

    image: Tensor  # (3, H, W)
    mask: Tensor  # (patches,) bool, True = hidden
    latents: Tensor  # (N, C), of the masked image
    moved: Tensor  # (N,), how far each token is from where the whole image puts it, in std
    reconstruction: Tensor  # (3, H, W)
    error: Tensor  # (H, W), mean absolute error over colours
    psnr: float  # dB
    perceptual: float | None  # None without a distance
    predictions: dict[str, Tensor]  # by auxiliary decoder: (patches, width)
    targets: dict[str, Tensor]  # what they should be

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
    """Encode and decode one image (3, H, W) under a mask (patches,), and compare.

    `whole` (N, C), the unmasked latents, and `targets` of the decoders (see `image_targets`) do not
    depend on the mask: a caller with many masks gives them.
    """
    # What the mask does not change, unless it is computed already.
    if whole is None:
        whole = tokenizer.encode(image[None])[0]
    decoders = decoders or {}
    if targets is None:
        targets = image_targets(decoders, image)

    # What it does.
    latents = tokenizer.encode(image[None], mask=mask[None])
    reconstruction = tokenizer.decode(latents, tuple(image.shape[-2:]))
    perceptual = None
    if distance is not None:
        perceptual = float(distance(reconstruction, image[None]))
    return MaskStudy(
        image=image,
        mask=mask,
        latents=latents[0],
        moved=token_shift(latents[0], whole, statistics.std),
        reconstruction=reconstruction[0],
        error=error_map(image, reconstruction[0]),
        psnr=finite_psnr(reconstruction, image[None]).item(),
        perceptual=perceptual,
        predictions={name: decoders[name](latents)[0].float() for name in targets},
        targets=dict(targets),
    )


@torch.inference_mode()
def image_targets(decoders: Mapping[str, AuxiliaryDecoder], image: Tensor) -> dict[str, Tensor]:
    """What each auxiliary decoder should say of an image (3, H, W), by name: (patches, width).

    Decoders of one target an image, not one a patch, are left out.
    """
    targets = {}
    for name, decoder in decoders.items():
        if decoder.target.by_patch:
            targets[name] = decoder.target(image[None])[0].float()
    return targets


@torch.inference_mode()
def reconstruct_masked(
    tokenizer: Tokenizer, image: Tensor, masks: Tensor, *, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """One image (3, H, W) under many masks (n, patches). -> images (n, 3, H, W), PSNR in dB (n,)"""
    images = []
    for mask in masks.to(image.device).split(batch_size):
        images.append(tokenizer(image.expand(len(mask), *image.shape), mask=mask))
    images = torch.cat(images)
    return images, finite_psnr(images, image.expand_as(images))


# Many images --------------------------------------------------------------------------------------


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
    """PSNR (dB) and perceptual distance of reconstructions over the ratio of hidden patches.

    images (n, 3, H, W) -> a row a ratio: `ratio`, `hidden` (share of all patches), `psnr` (mean
    over images), `psnr_error` (its standard error), and `perceptual` where there is a `distance`.
    """
    # One seed for all ratios: a higher one hides the same patches and more, so the curve is smooth.
    rows = []
    for ratio in ratios:
        masks = draw_masks(images, tokenizer.config.patch_size, kind=kind, ratio=ratio, seed=seed)
        scores = []
        distances = []
        for batch, mask in zip(images.split(batch_size), masks.split(batch_size)):
            reconstructions = tokenizer(batch, mask=mask)
            scores.append(finite_psnr(reconstructions, batch))
            if distance is not None:
                distances.append(distance(reconstructions, batch))
        scores = torch.cat(scores)
        error = math.nan
        if len(scores) > 1:
            error = float(scores.std() / len(scores) ** 0.5)
        row = {
            "ratio": float(ratio),
            "hidden": float(masks.float().mean()),  # less than the ratio for a class of patches
            "psnr": float(scores.mean()),
            "psnr_error": error,
        }
        if distance is not None:
            row["perceptual"] = float(torch.cat(distances).mean())
        rows.append(row)
    return pd.DataFrame(rows)
