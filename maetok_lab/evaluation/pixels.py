"""PSNR and SSIM of images as a file would hold them: clamped and rounded to uint8."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maetok_lab.device import wide
from maetok_lab.pictures import Rounding, to_uint8


def round_to_uint8(images: Tensor, rounding: Rounding = "uint8") -> Tensor:
    """Images in [-1, 1] as the integers 0..255 that a file would hold, but in float64.

    (B, 3, H, W) -> (B, 3, H, W). Raises ValueError for a wrong shape or type, NaN and infinities.
    """
    if images.ndim != 4 or not images.is_floating_point():
        shape = tuple(images.shape)
        raise ValueError(
            f"images must be float (B, C, H, W) in [-1, 1], not {images.dtype} {shape}"
        )
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite pixels")
    return wide(to_uint8(images, rounding))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal to noise ratio of each image in dB, peak 255, both rounded to uint8 first.

    (B, 3, H, W) twice, in [-1, 1] -> (B,) float64; infinite for an image equal to its reference.
    """
    _check_shapes(images, reference)
    error = round_to_uint8(images) - round_to_uint8(reference)
    return 20 * math.log10(255) - 10 * error.square().mean(dim=(1, 2, 3)).log10()


def ssim(
    images: Tensor, reference: Tensor, *, data_range: float = 255, window: str = "gaussian"
) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image, both rounded to uint8 first.

    (B, 3, H, W) twice, in [-1, 1] -> (B,) float64, the mean over channels and all windows inside
    the image. `window` is "gaussian" or "uniform", scikit-image's default. Raises ValueError for
    images smaller than the window.
    """
    # The authors used scikit-image's default with a data range of 2 on images in [0, 1], which is
    # window="uniform", data_range=510 here: it makes SSIM look higher.
    _check_shapes(images, reference)
    weights, sample = _window(window, images.device)
    if min(images.shape[2:]) < len(weights):
        raise ValueError(
            f"SSIM's {window} window needs images of {len(weights)} pixels a side, "
            f"not {tuple(images.shape[2:])}"
        )
    # moments inside each window
    x = round_to_uint8(images)
    y = round_to_uint8(reference)
    mean_x = _blur(x, weights)
    mean_y = _blur(y, weights)
    variance_x = sample * (_blur(x * x, weights) - mean_x * mean_x)
    variance_y = sample * (_blur(y * y, weights) - mean_y * mean_y)
    covariance = sample * (_blur(x * y, weights) - mean_x * mean_y)
    # equation 13; the constants keep flat windows from dividing by zero
    c1 = (0.01 * data_range) ** 2
    c2 = (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window(name: str, device: torch.device) -> tuple[Tensor, float]:
    """Weights along one side, and the factor from population to sample covariance."""
    if name == "gaussian":  # 11 x 11, sigma 1.5, population covariance, as in the article
        weights = torch.exp(-0.5 * (torch.arange(-5.0, 6.0, dtype=torch.float64) / 1.5) ** 2)
        return (weights / weights.sum()).to(device), 1.0
    if name == "uniform":  # 7 x 7, sample covariance
        return torch.full((7,), 1 / 7, dtype=torch.float64, device=device), 49 / 48
    raise ValueError(f"unknown SSIM window {name!r}; choose one of ['gaussian', 'uniform']")


def _blur(x: Tensor, weights: Tensor) -> Tensor:
    """Separable filter, where all w weights lie inside: (B, C, H, W) -> (B, C, H-w+1, W-w+1)."""
    planes = x.flatten(0, 1).unsqueeze(1)  # (B * C, 1, H, W)
    planes = F.conv2d(planes, weights.view(1, 1, -1, 1))
    planes = F.conv2d(planes, weights.view(1, 1, 1, -1))
    return planes.unflatten(0, x.shape[:2]).squeeze(2)


def _check_shapes(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape:
        shapes = f"images {tuple(images.shape)} and reference {tuple(reference.shape)}"
        raise ValueError(f"{shapes} must have one shape")
