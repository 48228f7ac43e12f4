"""PSNR and SSIM of images as a file would hold them: clamped and rounded to uint8."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maetok_lab.pictures import to_uint8


def round_to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the integers 0..255 that a file would hold, but in float64.

    (B, 3, H, W) -> (B, 3, H, W). Raises ValueError for a wrong shape or type and for NaN or infinite pixels.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be float (B, C, H, W) in [-1, 1], not {images.dtype} {tuple(images.shape)}"
        )
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite pixels")
    return wide(to_uint8(images))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal to noise ratio of each image in dB, peak 255, after clamping and rounding both to uint8.

    (B, 3, H, W) twice, in [-1, 1] -> (B,) float64; infinite for an image that is equal to its reference.
    """
    _same_shape(images, reference)
    mse = (round_to_uint8(images) - round_to_uint8(reference)).square().mean(dim=(1, 2, 3))
    return 20 * math.log10(255) - 10 * mse.log10()


def ssim(
    images: Tensor, reference: Tensor, *, data_range: float = 255, window: str = "gaussian"
) -> Tensor:
    """Structural similarity of each image in [-1, 1], mean over channels and all windows inside the image.

    (B, 3, H, W) twice, in [-1, 1] -> (B,) float64. Both are rounded to uint8 first. `window="gaussian"` is Wang et al.
    2004 (11 x 11, sigma 1.5, population covariance; scikit-image's `gaussian_weights=True`,
    `use_sample_covariance=False`); `"uniform"` is scikit-image's default (7 x 7, sample covariance), which the authors
    used with a data range of 2 on images in [0, 1], that is `data_range=510` here: it makes SSIM look higher.
    Raises ValueError for images smaller than the window.
    """
    _same_shape(images, reference)
    weights, sample = _window(window, images.device)
    if min(images.shape[2:]) < len(weights):
        raise ValueError(
            f"SSIM's {window} window needs images of {len(weights)} pixels a side, not {images.shape[2:]}"
        )
    x, y = round_to_uint8(images), round_to_uint8(reference)
    mean_x, mean_y = _blur(x, weights), _blur(y, weights)
    var_x = sample * (_blur(x * x, weights) - mean_x * mean_x)
    var_y = sample * (_blur(y * y, weights) - mean_y * mean_y)
    covariance = sample * (_blur(x * y, weights) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window(name: str, device: torch.device) -> tuple[Tensor, float]:
    """One-dimensional window weights and the factor that turns population into sample covariance."""
    if name == "gaussian":
        weights = torch.exp(-0.5 * (torch.arange(-5.0, 6.0, dtype=torch.float64) / 1.5) ** 2)
        return (weights / weights.sum()).to(device), 1.0
    if name == "uniform":
        return torch.full((7,), 1 / 7, dtype=torch.float64, device=device), 49 / 48
    raise ValueError(f"unknown SSIM window {name!r}; choose one of ['gaussian', 'uniform']")


def _blur(x: Tensor, weights: Tensor) -> Tensor:
    """Separable filter where the whole window lies inside: (B, C, H, W) -> (B, C, H - w + 1, W - w + 1)."""
    planes = x.flatten(0, 1).unsqueeze(1)  # (B * C, 1, H, W)
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.view(*x.shape[:2], *planes.shape[2:])


def wide(x: Tensor) -> Tensor:
    """float64, on the same device where that has it (Apple's MPS does not)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _same_shape(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and reference {tuple(reference.shape)} must have one shape"
        )
