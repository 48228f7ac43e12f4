"""Frequencies of latents on a grid: how much is fine detail, and is it as images have it?

Latents z are (n, N, C) with N = h w tokens in rows, as images are read; all is float64. What has no
value raises `NoValue`, whose text says why.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from maetok_lab.device import wide

Grid = tuple[int, int]  # h rows of w tokens
BINS = 16  # of frequencies by their length
SMALLEST = 1e-8  # added to powers and shares, as in SpectrumMatching's code
BLUR = 1.2  # standard deviation in pixels, before an image is made as small as the grid
BLUR_REACH = 3  # pixels to each side


class NoValue(ValueError):
    """A measure that these latents have no value of; the text says why."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean or ratio over images, and its standard error."""

    value: float
    error: float


def mean_ratio(tops: Tensor, bottoms: Tensor | None = None) -> Estimate:
    """sum tops / sum bottoms of images (n,), or without bottoms their mean; error by linearising.

    Raises NoValue where the bottoms' sum is 0.
    """
    bottoms = torch.ones_like(tops) if bottoms is None else bottoms
    if not bottoms.sum() > 0:
        raise NoValue("latents are constant over all images and tokens")
    ratio = tops.sum() / bottoms.sum()
    spread = (tops - ratio * bottoms).square().sum() / (len(tops) - 1)  # NaN of one image
    return Estimate(float(ratio), float((spread / len(tops)).sqrt() / bottoms.mean()))


def as_grid(latents: Tensor, grid: Grid) -> Tensor:
    """Latents (n, N, C) as float64 (n, C, h, w); ValueError unless N = h w."""
    height, width = grid
    if latents.ndim != 3 or latents.shape[1] != height * width:
        raise ValueError(
            f"a grid of {height} x {width} needs latents (n, {height * width}, C), not "
            f"{tuple(latents.shape)}; take the `grid_of` the tokenizer that made them"
        )
    return wide(latents).transpose(1, 2).unflatten(2, grid)


def dct(values: Tensor) -> Tensor:
    """Orthonormal two-dimensional DCT-II of the last two axes: (..., h, w) -> (..., h, w)"""
    height, width = values.shape[-2:]
    return _cosines(height).to(values) @ values @ _cosines(width).T.to(values)


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix: a row a frequency, (size, size) float64."""
    places = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    frequencies = torch.arange(size, dtype=torch.float64)[:, None]
    waves = (math.pi * frequencies * places).cos() * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves


def high_frequency_share(latents: Tensor, grid: Grid, share: float) -> Estimate:
    """SEC: energy of the DCT's frequencies u + v > share (h - 1 + w - 1), over all energy.

    latents (n, h w, C) -> [0, 1]. The constant part counts: give latents less their mean.
    """
    energy = dct(as_grid(latents, grid)).square().sum(dim=1)  # (n, h, w)
    height, width = grid
    u = torch.arange(height, device=energy.device)[:, None]
    v = torch.arange(width, device=energy.device)
    high = u + v > share * (height - 1 + width - 1)
    return mean_ratio(energy[:, high].sum(dim=1), energy.sum(dim=(1, 2)))


# The spectrum of images beside it -----------------------------------------------------------------


def spectrum_divergence(
    latents: Tensor, images: Tensor, grid: Grid, *, delta: float = 1.0
) -> Estimate:
    """ESM-KL: how far the latents' power over frequencies is from the images', in nats, >= 0.

    latents (n, h w, C), their images (n, 3, H, W) in [-1, 1]. The images' power is multiplied by
    f^delta in bin f = 1..16: detail counts for more.
    """
    if len(latents) != len(images):
        raise ValueError(f"{len(latents)} latents need as many images, not {len(images)}")
    # a grid of few tokens leaves some of the bins without any frequency: they are 0 in both
    lift = torch.arange(1, BINS + 1, dtype=torch.float64) ** delta
    target = _log_shares(_radial_power(small_images(wide(images), grid)) * lift)
    own = _log_shares(_radial_power(as_grid(latents, grid)))
    return mean_ratio((target * ((target + SMALLEST) / (own + SMALLEST)).log()).sum(dim=1))


def small_images(images: Tensor, grid: Grid) -> Tensor:
    """Images (n, C, H, W) blurred, with zeros around them, and made as small as the grid."""
    reach = torch.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=images.dtype, device=images.device)
    weights = (-reach.square() / (2 * BLUR**2)).exp()
    weights = weights / weights.sum()
    channels = images.flatten(0, 1)[:, None]
    for kernel in (weights[:, None], weights[None]):
        channels = functional.conv2d(channels, kernel[None, None], padding="same")
    blurred = channels[:, 0].unflatten(0, images.shape[:2])
    return functional.interpolate(blurred, size=grid, mode="bicubic", align_corners=False)


def _radial_power(values: Tensor) -> Tensor:
    """Mean power in each of `BINS` rings of frequencies, the constant part as 0: -> (n, BINS)"""
    power = dct(values).square().mean(dim=1)  # (n, h, w)
    power[:, 0, 0] = 0
    height, width = power.shape[1:]
    radius = torch.hypot(
        torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    )
    rings = (radius / radius.max().clamp(min=1) * BINS).long().clamp(max=BINS - 1).flatten()
    sums = torch.zeros(len(power), BINS, dtype=torch.float64)
    sums.index_add_(1, rings, power.flatten(1).cpu())
    return sums / torch.bincount(rings, minlength=BINS).clamp(min=1)


def _log_shares(power: Tensor) -> Tensor:
    """log(1 + power) of each ring as a share of all rings: (n, BINS), of each image summing to 1"""
    logs = power.log1p()
    return logs / (logs.sum(dim=1, keepdim=True) + SMALLEST)
