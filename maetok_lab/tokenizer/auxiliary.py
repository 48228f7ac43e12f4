"""Auxiliary decoders: shallow ones that predict a target, and so shape the latents (section 3.2).

They live beside the `Tokenizer`, are saved beside it, and are dropped in decoder tuning.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from maetok_lab.config import content_counts, younger
from maetok_lab.hints import check_choice
from maetok_lab.layers.transformer import check_size
from maetok_lab.nets import check_timm_name
from maetok_lab.tokenizer.config import TokenizerConfig, TowerConfig
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
from maetok_lab.tokenizer.towers import LatentDecoder, init_weights

TARGETS = ("hog", "pixel", *TEACHERS, "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """One target with its decoder. The defaults are the release's for each of its three."""

    # what is predicted; "timm:NAME" is any network of timm, fed as it was trained
    target: Literal["hog", "pixel", "semantic", "dinov2", "clip", "text"] | str = "hog"
    # factor of its loss
    weight: float = 1.0
    # a local file for the target's network, instead of the shipped one or the hub's
    weights: str | None = content_counts()
    # the head: "decoder" predicts the target of every patch (the paper). The others only turn and
    # scale the latents: "pooled" aligns their mean with the mean feature (SoftVQ), "tokens" each
    # with the feature at its place (VA-VAE), for latent_tokens="patches"
    head: Literal["decoder", "pooled", "tokens"] = younger("decoder")
    # of the decoder; None: as `shallow_tower` says; depth 0: one linear layer
    tower: TowerConfig | None = None
    # of the same tower, in place of its own depth (Table 1d)
    depth: int | None = younger(None)
    # patches whose error counts; no matter for "text", which has one error an image
    loss_on: Literal["hidden", "all"] = "hidden"

    def __post_init__(self):
        if self.depth is not None:
            check_size(1, self.depth, 1)
        if self.target.startswith("timm:"):
            check_timm_name(self.target.removeprefix("timm:"))
            return
        check_choice(self.target, [*TARGETS, "timm:NAME"], "target")
        if self.weights and self.target not in TEACHERS:
            raise ValueError(
                f"target {self.target!r} has no network, so it cannot take weights={self.weights!r}"
            )
        if self.head != "decoder" and self.target not in TEACHERS:
            raise ValueError(
                f"head {self.head!r} aligns latents with a network's features, which "
                f"target {self.target!r} has not: use one of {', '.join(TEACHERS)}"
            )

    def decoder_tower(self, pixel_decoder: TowerConfig) -> TowerConfig:
        """The transformer of this target's decoder, beside that pixel decoder."""
        tower = self.tower or shallow_tower(pixel_decoder)
        return tower if self.depth is None else dataclasses.replace(tower, depth=self.depth)

    @property
    def module_name(self) -> str:
        """The target's name as torch allows it for a module: without dots."""
        return self.target.replace(".", "_")


def shallow_tower(decoder: TowerConfig) -> TowerConfig:
    """A small copy of the pixel decoder: a quarter of its heads, at most three layers.

    For the Base size this is the release's: width 192, 3 layers, 3 heads, mixed RoPE.
    """
    # heads keep their width; two at least, as far as the decoder has them
    heads = min(decoder.num_heads, max(2, decoder.num_heads // 4))
    width = heads * decoder.width // decoder.num_heads
    return dataclasses.replace(
        decoder, width=width, depth=min(3, decoder.depth), num_heads=heads, drop_path=0.0
    )


def make_target(config: AuxiliaryConfig, model: TokenizerConfig) -> Target:
    """The target a config names, for the patches of `model`. No network is loaded yet."""
    if config.target == "hog":
        # the release's cells of 8 px, or the patch where that is smaller
        return HogTarget(model.patch_size, min(8, model.patch_size))
    if config.target == "pixel":
        return PixelTarget(model.patch_size)
    if config.target == "text":
        return TextTarget()
    teacher = TEACHERS.get(config.target, Teacher(config.target))
    return FeatureTarget(teacher, model.grid[0], config.weights)


class AuxiliaryDecoder(nn.Module):
    """Latents to a prediction of one target, for every patch or for the whole image."""

    def __init__(self, config: AuxiliaryConfig, model: TokenizerConfig):
        super().__init__()
        self.config = config
        self.grid = model.grid
        self.target = make_target(config, model)
        tower = config.decoder_tower(model.decoder)
        self.decoder = LatentDecoder(model, tower, modulation=True)
        self.to_target = nn.Linear(tower.width, self.target.width)
        self.apply(init_weights)

    def forward(self, latents: Tensor) -> Tensor:
        """latents (B, N, C) -> (B, patches, width), or (B, width) for a target of the image"""
        features = self.decoder(latents, self.grid)
        if not self.target.by_patch:
            features = features.mean(1)
        return self.to_target(features)

    def loss(self, latents: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """latents (B, N, C), target as `compute_targets` gives it, mask (B, patches) -> ()"""
        losses = self.target.loss(self(latents), target)
        if not self.target.by_patch:
            return losses.mean()
        return auxiliary_loss(losses, mask, self.config.loss_on)


def share_networks(decoders: Mapping[str, AuxiliaryDecoder]) -> None:
    """Load what the targets need, each network once. Raises as `FeatureTarget.net` does."""
    # targets are values: equal ones become one object, and so have one network and one memory
    shared: dict[Target, Target] = {}
    for decoder in decoders.values():
        decoder.target = shared.setdefault(decoder.target, decoder.target)
        if isinstance(decoder.target, FeatureTarget):
            decoder.target.net  # noqa: B018  loads it


@torch.no_grad()
def compute_targets(
    decoders: Mapping[str, AuxiliaryDecoder], images: Tensor, captions: Captions = None
) -> dict[str, Tensor]:
    """Every decoder's target for one batch, by name; what equal targets share is computed once.

    images (B, 3, H, W) -> each (B, patches, width) or (B, width)
    """
    computed: dict[Target, Tensor] = {}
    targets = {}
    for name, decoder in decoders.items():
        if decoder.target not in computed:
            computed[decoder.target] = decoder.target(images, captions)
        targets[name] = computed[decoder.target]
    return targets


def auxiliary_loss(
    per_patch: Tensor, mask: Tensor | None, loss_on: Literal["hidden", "all"]
) -> Tensor:
    """Mean over hidden patches (eq. 8); over all of them without a mask or with loss_on="all".

    per_patch, mask (B, patches) -> ()
    """
    if mask is None or loss_on == "all":
        return per_patch.mean()
    return (per_patch * mask).sum() / mask.sum()
