"""The ladder, the ablations, the rivals: by name, what each changes of a preset of any size."""

import dataclasses
import math
from typing import Any

from maetok_lab.config import Relative
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.training.recipe import TokenizerTraining

Changes = dict[str, Any]  # as `override` takes them

# Sizes that follow from the preset's --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Times(Relative):
    """So many times the preset's own size: of 32 tokens, Times(0.5) are 16."""

    factor: float

    def of(self, config: TokenizerTraining, path: str) -> int:
        """The size at `path`, changed. ValueError where it would not be a whole number over 0."""
        size = config
        for name in path.split("."):
            size = getattr(size, name)
        scaled = size * self.factor
        if scaled < 1 or scaled != int(scaled):
            raise ValueError(
                f"{path} must be a whole number over 0, but {self.factor:g} times {size} is "
                f"{scaled:g}; take a preset with another size, or set {path} yourself"
            )
        return int(scaled)


@dataclasses.dataclass(frozen=True)
class PerPatch(Relative):
    """One for each patch of the preset's images."""

    def of(self, config: TokenizerTraining, path: str) -> int:
        """The number of patches, whatever the path."""
        return math.prod(config.model.grid)


@dataclasses.dataclass(frozen=True)
class BesideSum(Relative):
    """A term's weight beside pixel errors that are summed over the image, where ours are averaged.

    So it is divided by the numbers of an image.
    """

    weight: float

    def of(self, config: TokenizerTraining, path: str) -> float:
        """The same weight beside averaged errors, whatever the path."""
        return self.weight / (3 * config.model.image_size**2)


@dataclasses.dataclass(frozen=True)
class SameSize(Relative):
    """As many channels as let one token a patch hold what the preset's tokens hold together."""

    def of(self, config: TokenizerTraining, path: str) -> int:
        """N * C / patches, whatever the path. ValueError where it is no whole number over 0."""
        numbers = config.model.num_latent_tokens * config.model.latent_dim
        patches = math.prod(config.model.grid)
        if numbers % patches:
            raise ValueError(
                f"{path} must be a whole number over 0, but {numbers} latent numbers on {patches} "
                f"patches are not; take a preset with another size, or set {path} yourself"
            )
        return numbers // patches


@dataclasses.dataclass(frozen=True)
class OwnCritic(Relative):
    """The preset's discriminator, or where it has none a small one that needs no weights."""

    def of(self, config: TokenizerTraining, path: str) -> AdversarialConfig:
        """Of the whole adversarial term, whatever the path."""
        if config.losses.adversarial:
            return config.losses.adversarial
        return AdversarialConfig(
            discriminator="patchgan",
            width=32,
            layers=2,
            consistency_weight=0.0,
            learning_rate=1e-3,
            trains_from=0,
            counts_from=config.num_steps // 10,
        )


# The ladder ---------------------------------------------------------------------------------------

_HOG = AuxiliaryConfig(target="hog")
_SEMANTIC = AuxiliaryConfig(target="semantic")
_COMBINED = (_HOG, _SEMANTIC)
# The paper's main rows (Tables 1a and 1b), each one line on top of any size.
LADDER: dict[str, Changes] = {
    "ae": {"masking.ratio": "none", "targets": ()},
    "kl": {"masking.ratio": "none", "targets": (), "model.bottleneck": "kl"},
    "ae-mask": {"targets": ()},
    "hog": {"targets": (_HOG,)},
    "semantic": {"targets": (_SEMANTIC,)},
    "all": {"targets": _COMBINED},
}

# The ablations ------------------------------------------------------------------------------------

# Names are the paper's table and row. Where a row says nothing, it is "all" of the ladder: masks as
# in the preset, and HOG and features for the paper's combined targets.

# Without masks no patch is hidden, so a target's error counts on all of them.
_UNMASKED = {"masking.ratio": "none"}
_UNMASKED_TARGETS = tuple(dataclasses.replace(target, loss_on="all") for target in _COMBINED)
# The image tokens are the latents: twice as many as in the other rows, as in the paper, but eight
# times in `small` and at 512 px. As they cannot leave the sequence, hidden ones are replaced, also
# where the preset drops them (`test`, `tiny`).
_PATCH_LATENTS = {
    "model.latent_tokens": "patches",
    "model.num_latent_tokens": PerPatch(),
    "model.masked": "replace",
}
# Table 6: the row's name lists its ticks.
_PARTS: dict[str, Changes] = {
    "6-mask-tokens-aux": LADDER["all"],
    "6-tokens-aux": _UNMASKED | {"targets": _UNMASKED_TARGETS},
    "6-mask-aux": _PATCH_LATENTS | {"targets": _COMBINED},
    "6-mask-tokens": LADDER["ae-mask"],
    "6-aux": _UNMASKED | _PATCH_LATENTS | {"targets": _UNMASKED_TARGETS},
    "6-mask": _PATCH_LATENTS | {"targets": ()},
    "6-tokens": LADDER["ae"],
}


def _masked(low: float, high: float) -> Changes:
    """A row of Table 1c, whose target is HOG."""
    return {"masking.low": low, "masking.high": high, "targets": (_HOG,)}


def _deep(depth: int) -> Changes:
    """A row of Table 1d. The preset's own depth is 3, or its pixel decoder's where that is less."""
    return {"targets": tuple(dataclasses.replace(target, depth=depth) for target in _COMBINED)}


def _sized(tokens: float, channels: float = 1) -> Changes:
    """Times as many tokens and channels as the preset has."""
    return {
        "model.num_latent_tokens": Times(tokens),
        "model.latent_dim": Times(channels),
        "targets": _COMBINED,
    }


def _kl(weight: float) -> Changes:
    """The ladder's "kl" with another weight, beside summed pixel errors."""
    return LADDER["kl"] | {"losses.kl_weight": BesideSum(weight)}


ABLATIONS: dict[str, Changes] = {
    **_PARTS,
    "1c-0-60": _masked(0.0, 0.6),
    "1c-10-40": _masked(0.1, 0.4),
    "1c-20-60": _masked(0.2, 0.6),
    "1c-40-40": _masked(0.4, 0.4),
    "1c-40-60": _masked(0.4, 0.6),
    "1d-linear": _deep(0),
    "1d-1": _deep(1),
    "1d-3": _deep(3),
    "1d-6": _deep(6),
    "1d-12": _deep(12),
    # 128 is the paper's own number, so the preset's here; without learnable tokens: 6-mask-aux
    "13a-256": _sized(2),
    "13a-128": _sized(1),
    # Not in the paper: the latents' size N * C stays, as tokens or as channels.
    "tokens-0.5x": _sized(0.5, 2),
    "tokens-1x": _sized(1, 1),
    "tokens-2x": _sized(2, 0.5),
    "tokens-4x": _sized(4, 0.25),
    # Not in the paper: the weights that arXiv 2603.21085 compares, taken to be in LDM's convention,
    # KL and pixel errors both summed. (Inferred, not read: beside averaged errors a weight of 1
    # brings our KL to 0.) `kl_weight` is of a summed KL beside averaged errors: the ladder's "kl",
    # 1e-6 of those, would be called 0.2 here at 256 px and 0.012 at 64.
    "kl-1e-6": _kl(1e-6),
    "kl-1e-2": _kl(1e-2),
    "kl-1": _kl(1.0),
    "kl-8": _kl(8.0),
}

# The rivals ---------------------------------------------------------------------------------------

# What others hold good latents to come from, each without masks and auxiliary decoders, unless that
# is what it is about: noise (`denoise`, `detok`), hidden latents, alignment, variance, codes,
# mixtures. Weights and sizes are those of the source; where these leave a small model hardly any
# pixels, a weaker one stands beside it (`denoise-1`, `ve-1e-3`). Where a rival needs a part of its
# own, the same part without the idea is a row as well: `rms` is the control of `denoise`, `critic`
# that of `between`, `ae-grid` that of `align-grid`.
_GRID = LADDER["ae"] | {
    "model.latent_tokens": "patches",
    "model.num_latent_tokens": PerPatch(),
    "model.latent_dim": SameSize(),
    "model.masked": "replace",
}
RIVALS: dict[str, Changes] = {
    "rms": LADDER["ae"] | {"model.bottleneck": "rms"},
    # Noise on latents as in l-DeTok; without a KL term latents would outgrow it, if not for `rms`.
    "denoise": LADDER["ae"] | {"model.bottleneck": "rms", "perturbation.noise": "interpolate"},
    "denoise-1": LADDER["ae"]
    | {
        "model.bottleneck": "rms",
        "perturbation.noise": "interpolate",
        "perturbation.noise_scale": 1.0,
    },
    # All of l-DeTok: noise, masked patches and a KL term.
    "detok": {
        "masking": MaskingConfig(ratio="uniform", low=-0.1, high=0.7),
        "targets": (),
        "model.bottleneck": "kl",
        "perturbation.noise": "interpolate",
    },
    "latent-mask": LADDER["ae"]
    | {
        "perturbation.masked_shares": (0.0, 0.25, 0.5, 0.75),
        "perturbation.masked_odds": (0.7, 0.1, 0.1, 0.1),
    },
    "align": LADDER["ae"] | {"targets": (AuxiliaryConfig(target="semantic", head="pooled"),)},
    "ae-grid": _GRID,
    # VA-VAE's weight, before it is balanced by gradients
    "align-grid": _GRID
    | {"targets": (AuxiliaryConfig(target="semantic", head="tokens", weight=0.1),)},
    "ve": LADDER["ae"] | {"model.bottleneck": "ve"},
    "ve-1e-3": LADDER["ae"] | {"model.bottleneck": "ve", "losses.ve_weight": 1e-3},
    "softvq": LADDER["ae"] | {"model.bottleneck": "softvq"},
    "fsq": LADDER["ae"] | {"model.bottleneck": "fsq"},
    "critic": LADDER["ae"] | {"losses.adversarial": OwnCritic()},
    "between": LADDER["ae"] | {"losses.adversarial": OwnCritic(), "perturbation.between": True},
}

# whatever `ladder_training` takes by name
RUNGS = LADDER | ABLATIONS | RIVALS
