"""The terms that train a tokenizer (paper eq. 6 and 8), by name, and weighed in one place."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from maetok_lab.config import content_counts, younger
from maetok_lab.tokenizer.discriminators import AdversarialConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms. The paper's: pixel MSE 1, perceptual 1, adversarial 0.4."""

    # of reconstructions and images in [-1, 1]
    pixel: Literal["mse", "l1"] = "mse"
    # of the pixel term
    pixel_weight: float = 1.0
    # "lpips" is the release's (VGG16, a download); "squeezenet" is shipped
    perceptual: Literal["none", "squeezenet", "lpips"] = "squeezenet"
    # of the perceptual term; 0 does not compute it
    perceptual_weight: float = 1.0
    # share of the steps over which it rises linearly from 0; 10,000 of 500,000 in the release
    perceptual_warmup: float = 0.02
    # a local file with the network's weights, instead of the shipped or cached ones
    perceptual_weights: str | None = content_counts()
    # of the KL summed over tokens and channels, for the `kl` bottleneck only; the release's
    kl_weight: float = 1e-6
    # of the `ve` bottleneck's term: large variances, bounded means
    ve_weight: float = younger(0.1)
    # of SoftVQ's term: few codes a token, many for all of them
    entropy_weight: float = younger(0.01)
    # the discriminator's term; None has no discriminator
    adversarial: AdversarialConfig | None = None


def pixel_loss(config: LossConfig, reconstructions: Tensor, images: Tensor) -> Tensor:
    """Mean over the whole image, hidden patches or not (as released). (B, 3, H, W) twice -> ()"""
    loss = {"mse": mse_loss, "l1": l1_loss}[config.pixel]
    return loss(reconstructions, images)


def loss_weights(
    config: LossConfig, auxiliary: dict[str, float], *, progress: float
) -> dict[str, float]:
    """The weight of every term at `progress` in [0, 1] of the training.

    `auxiliary` holds those of the auxiliary targets, by target.
    """
    ramp = 1.0
    if config.perceptual_warmup:
        ramp = min(1.0, progress / config.perceptual_warmup)
    weights = {
        "pixel": config.pixel_weight,
        "perceptual": config.perceptual_weight * ramp,
        "kl": config.kl_weight,
        "ve": config.ve_weight,
        "entropy": config.entropy_weight,
    }
    # times its adaptive factor, which is known only with the gradients
    if config.adversarial:
        weights["adversarial"] = config.adversarial.weight
    for target, weight in auxiliary.items():
        weights[f"auxiliary/{target}"] = weight
    return weights


def discriminator_weights(config: AdversarialConfig) -> dict[str, float]:
    """The weight of every term that trains the discriminator.

    As in the release, hinge and LeCAM also have the weight of its verdict in the tokenizer's loss.
    """
    return {
        "discriminator": config.weight,
        "lecam": config.weight * config.lecam_weight,
        "consistency": config.consistency_weight,
    }


def total_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Sum of weight * term over the terms that there are. -> ()"""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
