"""The terms that train a tokenizer (paper eq. 6 and 8), named, and weighted in one visible place."""

import dataclasses
from typing import Literal

import torch
from torch.nn.functional import l1_loss, mse_loss

from maetok_lab.tokenizer.discriminators import AdversarialConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms. Paper: pixel MSE 1, perceptual 1 (warmed up over 10,000 steps in the release), adversarial 0.4.

    `perceptual_warmup` is a share of the steps over which the perceptual weight rises linearly; `perceptual_weights` is a
    local file with the network's weights, instead of the shipped or cached one. `kl_weight` counts for the `kl` bottleneck
    only (1e-6 in the release, on the KL summed over tokens and channels).
    """

    pixel: Literal["mse", "l1"] = "mse"
    pixel_weight: float = 1.0
    perceptual: Literal["none", "squeezenet", "lpips"] = "squeezenet"
    perceptual_weight: float = 1.0
    perceptual_warmup: float = 0.02
    perceptual_weights: str | None = None
    kl_weight: float = 1e-6
    adversarial: AdversarialConfig | None = None


def pixel_loss(
    config: LossConfig, reconstructions: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """On the whole image, hidden patches or not. (B, 3, H, W) twice -> ()"""
    return {"mse": mse_loss, "l1": l1_loss}[config.pixel](reconstructions, images)


def loss_weights(
    config: LossConfig, auxiliary: dict[str, float], *, progress: float
) -> dict[str, float]:
    """The weight of every term at `progress` in [0, 1] of the training: the one place where terms are weighed."""
    ramp = min(1.0, progress / config.perceptual_warmup) if config.perceptual_warmup else 1.0
    weights = {
        "pixel": config.pixel_weight,
        "perceptual": config.perceptual_weight * ramp,
        "kl": config.kl_weight,
    }
    if config.adversarial:  # and times its adaptive weight, which is known only with the gradients
        weights["adversarial"] = config.adversarial.weight
    return weights | {f"auxiliary/{target}": weight for target, weight in auxiliary.items()}


def discriminator_weights(config: AdversarialConfig) -> dict[str, float]:
    """The weight of every term that trains the discriminator."""
    return {
        "discriminator": 1.0,
        "lecam": config.lecam_weight,
        "consistency": config.consistency_weight,
    }


def total_loss(terms: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    """Sum of weight * term over the terms that there are. -> ()"""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
