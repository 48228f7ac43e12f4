"""Trainings by name: for a test, a laptop, one GPU and the paper; and rungs on top of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from maetok_lab.config import override
from maetok_lab.data.latents import LatentDataset
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.hints import choose
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TOKENIZERS
from maetok_lab.training.diffusion import DiffusionTraining
from maetok_lab.training.optim import OptimizerConfig
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.rungs import ABLATIONS as ABLATIONS  # for whoever looks for them here
from maetok_lab.training.rungs import LADDER as LADDER
from maetok_lab.training.rungs import RUNGS

# Tokenizers ---------------------------------------------------------------------------------------

_TINY_TOWER = override(TOKENIZERS["tiny"].decoder, {"width": 64, "depth": 1, "num_heads": 2})
_TINY = TokenizerTraining(
    model=TOKENIZERS["tiny"],
    targets=(AuxiliaryConfig(weight=0.5, tower=_TINY_TOWER),),
    optimizer=OptimizerConfig(name="muon", learning_rate=2e-3, warmup=0.05, final_fraction=0.02),
    # At this size a perceptual term only slows both stages down.
    losses=LossConfig(perceptual="none", perceptual_weight=0.01, perceptual_warmup=0.0),
    # two parts whatever the machine: a CPU's cores take one each, and one core gives the same bits
    num_steps=950, batch_size=32, accumulate=2, ema_decay=0.998, log_every=50, save_every=250,
    picture_every=250,
)  # fmt: skip
# Emoji at 64 px on one GPU, about 590 times through the training images. Not tuned yet.
_SMALL = override(_TINY, {
    "model": TOKENIZERS["small"],
    "targets": (AuxiliaryConfig(), AuxiliaryConfig(target="semantic")),
    "optimizer.learning_rate": 1e-3, "num_steps": 20_000, "batch_size": 128, "accumulate": 1,
    "ema_decay": 0.9995, "log_every": 100, "save_every": 2000, "picture_every": 1000,
})  # fmt: skip

# ImageNet. Where paper (Table 7) and release differ, the release is taken, as the published weights
# come from its code:
#   crop        random, 0.8 to 1 of the short side (paper: centre)
#   rate        1e-4 * 512 / 256 = 2e-4 (paper: "base" 1e-4)
#   warm-up     5,000 steps (paper: 10,000)
#   clipping    1.0 (paper: not said)
#   features    negative cosine (paper: MSE); the second teacher is SigLIP SO400M (paper: Large)
#   critic      DINO's ViT-S (paper: DINOv2-S), with consistency
#   perceptual  warmed up over 10,000 steps
# Alike in both: AdamW (the release's command line, to the letter, trains with Adam), betas, weight
# decay 1e-4, cosine (to a tenth in the release), batch 512, 500,000 steps, weights 1, 1 and 0.4,
# masks of 0.4 to 0.6. The release's settings name a decoder drop path of 0.05 that its script never
# hands over: none here. Its HOG fits 256 px only, ours any size.
_PAPER = TokenizerTraining(
    model=TOKENIZERS["maetok-b-128"],
    crop="scale",
    targets=(
        AuxiliaryConfig(target="hog"),
        AuxiliaryConfig(target="dinov2"),
        AuxiliaryConfig(target="clip"),
    ),
    losses=LossConfig(perceptual="lpips", adversarial=AdversarialConfig(learning_rate=2e-4)),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.01),
    num_steps=500_000, batch_size=512, workers=16, log_every=100, save_every=5000,
    picture_every=5000,
)  # fmt: skip
TOKENIZER_TRAINING = {
    "test": override(_TINY, {
        "model": TOKENIZERS["test"], "num_steps": 20, "batch_size": 8, "ema_decay": 0.9,
        "log_every": 5, "save_every": 10, "picture_every": 10,
    }),
    "tiny": _TINY,
    "small": _SMALL,
    "maetok-b-128": _PAPER,
    "maetok-b-128-512": override(
        _PAPER, {"model": TOKENIZERS["maetok-b-128-512"], "recompute": True}
    ),
}  # fmt: skip


def tokenizer_training(preset: str, **changes: Any) -> TokenizerTraining:
    """A preset of `TOKENIZER_TRAINING`; `changes` are further fields, as `override` takes them."""
    return override(choose(preset, TOKENIZER_TRAINING, "preset"), changes)


# The second stage, as changes for `decoder_tuning`. The paper gives its length and masks only; its
# rate, and a new discriminator that trains for 5,000 steps before it counts, are ours.
_PAPER_TUNING = {
    "num_steps": 50_000,
    "optimizer.learning_rate": 1e-4,
    "losses.perceptual_warmup": 0.0,
    "losses.adversarial.trains_from": 0,
    "losses.adversarial.counts_from": 5000,
}
# Without a perceptual term, which takes half of a step here and leaves a weave in so few steps.
_TINY_TUNING = {"losses.perceptual": "none", "latent_noise": 0.4}
DECODER_TUNING: dict[str, dict[str, Any]] = {
    "test": {"num_steps": 10, **_TINY_TUNING},
    "tiny": {"num_steps": 220, **_TINY_TUNING},
    "small": {"num_steps": 5000, "losses.perceptual": "squeezenet", "latent_noise": 0.4},
    "maetok-b-128": _PAPER_TUNING,
    "maetok-b-128-512": _PAPER_TUNING,
}

# The ladder ---------------------------------------------------------------------------------------


def ladder_training(
    preset: str,
    rung: str,
    *,
    teacher: str = "semantic",
    weights: Mapping[str, str] | None = None,
    **changes: Any,
) -> TokenizerTraining:
    """A rung of `RUNGS` on a preset: `ladder_training("tiny", "hog")`; "preset": its own recipe.

    `teacher` stands in for "semantic", which needs no download: "dinov2" is the paper's. `changes`
    are further fields, as `override` takes them; for `weights` see `with_weights`.
    """
    config = choose(preset, TOKENIZER_TRAINING, "preset")
    if rung != "preset":
        config = override(config, choose(rung, RUNGS, "rung of the ladder"))
        targets = []
        for target in config.targets:
            name = teacher if target.target == "semantic" else target.target
            targets.append(dataclasses.replace(target, target=name))
        config = override(config, {"targets": targets})
    return with_weights(override(config, changes), weights or {})


def with_weights(config: TokenizerTraining, weights: Mapping[str, str]) -> TokenizerTraining:
    """The same training with networks from local files: {"dinov2": FILE, "lpips": FILE}.

    Names are those of its targets, of its perceptual loss, and "discriminator". Raises ValueError
    for a network that this training has not.
    """
    places = {config.losses.perceptual: "losses.perceptual_weights"}
    if config.losses.adversarial:
        places["discriminator"] = "losses.adversarial.weights"
    changes: dict[str, Any] = {}
    targets = {target.target: target for target in config.targets}
    for name, path in weights.items():
        choose(name, targets | places, "network of this training")
        if name in targets:
            targets[name] = dataclasses.replace(targets[name], weights=path)
        else:
            changes[places[name]] = path
    return override(config, {"targets": tuple(targets.values()), **changes})


# Diffusion models ---------------------------------------------------------------------------------

_MUON = OptimizerConfig(
    name="muon", learning_rate=2e-3, muon_learning_rate=0.03, betas=(0.9, 0.99), weight_decay=0.0,
    warmup=0.02, final_fraction=0.02,
)  # fmt: skip
# The paper's. Both: constant rate, no weight decay. EMA, clipping, class dropout and logit-normal
# times are the release's.
_CONSTANT = OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.999), schedule="constant", warmup=0.0)
# Table 8: AdamW at 1e-4, batch 256, 4M steps for XL; section 4.3 and release: 400,000 for others.
_SIT = {
    "optimizer": _CONSTANT, "num_steps": 400_000, "batch_size": 256,
    "save_every": 10_000, "picture_every": 10_000,
}  # fmt: skip
# Table 9: 2e-4, second beta 0.95, batch 1024, 400,000 steps, the velocity direction loss.
_LIGHTNING = _SIT | {
    "optimizer": override(_CONSTANT, {"learning_rate": 2e-4, "betas": (0.9, 0.95)}),
    "batch_size": 1024, "direction_weight": 1.0,
}  # fmt: skip
DIFFUSION_TRAINING: dict[str, dict[str, Any]] = {
    "test": {
        "optimizer": _MUON, "num_steps": 20, "batch_size": 16, "accumulate": 2,
        "ema_decays": (0.9,), "log_every": 5, "save_every": 10,
    },
    "tiny": {
        "optimizer": _MUON, "num_steps": 950, "batch_size": 64, "accumulate": 2,
        "ema_decays": (0.998,), "save_every": 250, "picture_every": 500,
    },
    "small": {  # not tuned yet
        "optimizer": _MUON, "num_steps": 20_000, "batch_size": 256, "ema_decays": (0.9995, 0.999),
        "save_every": 2000,
    },
    "sit-s": _SIT,
    "sit-b": _SIT,
    "sit-l": _SIT,
    "sit-xl": _SIT | {"num_steps": 4_000_000},
    "lightningdit-b": _LIGHTNING,
    "lightningdit-l": _LIGHTNING,
    "lightningdit-xl": _LIGHTNING,
}  # fmt: skip

# Either generator of the paper at any size, as changes on top of a preset, or the preset as it is.
# QK-norm, from Large up, is in the presets themselves.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "preset": {},
    "sit": {
        "model.norm": "layernorm", "model.mlp": "gelu", "model.positions": "sincos",
        "direction_weight": 0.0,
    },
    "lightningdit": {
        "model.norm": "rmsnorm", "model.mlp": "swiglu", "model.positions": "rope",
        "direction_weight": 1.0,
    },
}  # fmt: skip


def diffusion_training(
    preset: str,
    latents: LatentDataset,
    *,
    num_classes: int,
    architecture: str = "preset",
    **changes: Any,
) -> DiffusionTraining:
    """A preset of `DIFFUSION_TRAINING` bound to a latent cache, which gives tokens and channels.

    `architecture` is one of `ARCHITECTURES`; `changes` are further fields (`seed=1`), as `override`
    takes them.
    """
    config = DiffusionTraining(
        model=choose(preset, DIFFUSION, "preset"),
        num_classes=num_classes,
        latents=latents.fingerprint,
        tokenizer=latents.space.tokenizer,
        **choose(preset, DIFFUSION_TRAINING, "preset"),
    )
    return override(config, choose(architecture, ARCHITECTURES, "architecture") | changes)
