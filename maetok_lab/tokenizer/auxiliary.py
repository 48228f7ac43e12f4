"""Auxiliary decoders: shallow decoders that predict a target of the hidden patches, and so shape the latents (section 3.2).

They live beside the `Tokenizer`, are saved beside it, and are dropped in decoder tuning.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from maetok_lab.hints import did_you_mean
from maetok_lab.nets import check_timm_name
from maetok_lab.tokenizer.blocks import init_weights
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.targets import (
    TEACHERS,
    Captions,
    FeatureTarget,
    HogTarget,
    PixelTarget,
    Target,
    Teacher,
)
from maetok_lab.tokenizer.text import TextTarget
from maetok_lab.tokenizer.towers import LatentDecoder, TowerConfig

TARGETS = ("hog", "pixel", *TEACHERS, "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """One target with its decoder. The release: width 192, depth 3, 3 heads, weight 1, loss on hidden patches only.

    `target` may also be "timm:NAME", any network of timm fed as it wants. `weights` is a local file for a target's network,
    instead of the shipped or the hub's. Without a `tower` the decoder is in proportion to the pixel decoder as the release's
    is (see `shallow_tower`); one of depth 0 is one linear layer. "text" has one loss an image: `loss_on` does not matter to
    it.
    """

    target: Literal["hog", "pixel", "semantic", "dinov2", "clip", "text"] | str = "hog"
    weight: float = 1.0
    weights: str | None = None
    tower: TowerConfig | None = None
    loss_on: Literal["hidden", "all"] = "hidden"

    def __post_init__(self):
        if self.target.startswith("timm:"):
            check_timm_name(self.target.removeprefix("timm:"))
        elif self.target not in TARGETS:
            raise ValueError(
                f"unknown target {self.target!r}{did_you_mean(self.target, [*TARGETS, 'timm:NAME'])}"
            )
        elif self.weights and self.target not in TEACHERS:
            raise ValueError(
                f"target {self.target!r} has no network, so it cannot take weights={self.weights!r}"
            )

    @property
    def module_name(self) -> str:
        """The target's name as torch allows it for a module: without dots."""
        return self.target.replace(".", "_")


def shallow_tower(decoder: TowerConfig) -> TowerConfig:
    """A quarter of the pixel decoder's heads (two at least), as wide each, at most three layers, the same positions.

    For the Base size this is the release's: width 192, 3 layers, 3 heads, mixed RoPE.
    """
    heads = min(decoder.num_heads, max(2, decoder.num_heads // 4))
    width = heads * decoder.width // decoder.num_heads
    return dataclasses.replace(
        decoder, width=width, depth=min(3, decoder.depth), num_heads=heads, drop_path=0.0
    )


def make_target(config: AuxiliaryConfig, model: TokenizerConfig) -> Target:
    """The target a config names, for the patches of `model`; HOG cells are 8 px, or the patch where that is smaller.

    A network is not loaded yet: see `FeatureTarget.net`.
    """
    if config.target == "hog":
        return HogTarget(model.patch_size, min(8, model.patch_size))
    if config.target == "pixel":
        return PixelTarget(model.patch_size)
    if config.target == "text":
        return TextTarget()
    return FeatureTarget(
        TEACHERS.get(config.target, Teacher(config.target)), model.grid[0], config.weights
    )


class AuxiliaryDecoder(nn.Module):
    """Latents of a tokenizer to a prediction of one target for every patch (of one for the image where that is all)."""

    def __init__(self, config: AuxiliaryConfig, model: TokenizerConfig):
        super().__init__()
        self.config, self.grid = config, model.grid
        self.target = make_target(config, model)
        tower = config.tower or shallow_tower(model.decoder)
        self.decoder = LatentDecoder(
            tower,
            latent_dim=model.latent_dim,
            num_latent_tokens=model.num_latent_tokens,
            grid=model.grid,
            theta=model.rope_theta,
            modulation=True,
            scale_init=model.modulation_init,
            latent_init=model.latent_init,
        )
        self.to_target = nn.Linear(tower.width, self.target.width)
        self.apply(init_weights)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """latents (B, N, C) -> (B, patches, target width), or (B, target width) for a target of the whole image"""
        features = self.decoder(latents, self.grid)
        return self.to_target(features if self.target.by_patch else features.mean(1))

    def loss(
        self, latents: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """latents (B, N, C), target as `compute_targets` gives it, mask (B, patches) -> ()"""
        losses = self.target.loss(self(latents), target)
        return (
            auxiliary_loss(losses, mask, self.config.loss_on)
            if self.target.by_patch
            else losses.mean()
        )


def share_networks(decoders: Mapping[str, AuxiliaryDecoder]) -> None:
    """Load what the targets need, each network once: equal targets become one object. Raises as `FeatureTarget.net` does."""
    shared: dict[Target, Target] = {}
    for decoder in decoders.values():
        decoder.target = shared.setdefault(decoder.target, decoder.target)
        if isinstance(decoder.target, FeatureTarget):
            decoder.target.net  # noqa: B018


@torch.no_grad()
def compute_targets(
    decoders: Mapping[str, AuxiliaryDecoder], images: torch.Tensor, captions: Captions = None
) -> dict[str, torch.Tensor]:
    """Every decoder's target for one batch, by name; what equal targets share is computed once.

    images (B, 3, H, W) -> each (B, patches, width) or (B, width)
    """
    found: dict[Target, torch.Tensor] = {}
    for decoder in decoders.values():
        if decoder.target not in found:
            found[decoder.target] = decoder.target(images, captions)
    return {name: found[decoder.target] for name, decoder in decoders.items()}


def auxiliary_loss(
    per_patch: torch.Tensor, mask: torch.Tensor | None, loss_on: Literal["hidden", "all"]
) -> torch.Tensor:
    """Mean over hidden patches (over all without a mask, or when asked). per_patch, mask (B, patches) -> ()"""
    if mask is None or loss_on == "all":
        return per_patch.mean()
    return (per_patch * mask).sum() / mask.sum()
