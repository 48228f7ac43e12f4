"""Trainings by name: sizes that suit a test, a laptop, one GPU and the paper, and the ablation ladder on top of any of them."""

from typing import Any

from maetok_lab.config import choose, override
from maetok_lab.data.latents import LatentDataset
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TOKENIZERS
from maetok_lab.training.common import OptimizerConfig
from maetok_lab.training.diffusion import DiffusionTraining
from maetok_lab.training.tokenizer import TokenizerTraining

_TINY_TARGET = AuxiliaryConfig(weight=0.5, tower=override(TOKENIZERS["tiny"].decoder, {"width": 64, "num_heads": 2}))
_TINY_OPTIMIZER = OptimizerConfig(name="muon", learning_rate=2e-3, warmup=0.05, final_fraction=0.02)
# At 32 px the perceptual term only slows the first stage down; decoder tuning has it from its first step on.
_TINY_LOSSES = LossConfig(perceptual="none", perceptual_weight=0.01, perceptual_warmup=0.0)
_TINY = TokenizerTraining(
    model=TOKENIZERS["tiny"], targets=(_TINY_TARGET,), optimizer=_TINY_OPTIMIZER, losses=_TINY_LOSSES, num_steps=900,
    batch_size=32, ema_decay=0.998, log_every=50, save_every=300, picture_every=300,
)  # fmt: skip
TOKENIZER_TRAINING = {
    "test": override(
        _TINY,
        {"model": TOKENIZERS["test"], "num_steps": 20, "batch_size": 8, "ema_decay": 0.9, "log_every": 5, "save_every": 10,
         "picture_every": 10},
    ),
    "tiny": _TINY,
}  # fmt: skip

# Changes for the second stage, see training.tokenizer.decoder_tuning.
DECODER_TUNING: dict[str, dict[str, Any]] = {
    "test": {"num_steps": 10, "losses__perceptual": "squeezenet", "latent_noise": 0.4},
    "tiny": {"num_steps": 400, "losses__perceptual": "squeezenet", "latent_noise": 0.4},
}

_FLOW_OPTIMIZER = OptimizerConfig(
    name="muon", learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup=0.02, final_fraction=0.02
)
DIFFUSION_TRAINING: dict[str, dict[str, Any]] = {
    "test": {"num_steps": 20, "batch_size": 16, "ema_decays": (0.9,), "log_every": 5, "save_every": 10},
    "tiny": {"num_steps": 1000, "batch_size": 64, "ema_decays": (0.998,), "save_every": 250},
}


def diffusion_training(preset: str, latents: LatentDataset, *, num_classes: int, **changes: Any) -> DiffusionTraining:
    """A preset of `DIFFUSION_TRAINING` bound to a latent cache; token count and channels come from the cache.

    `changes` are further fields (`seed=1, precision="fp32"`), checked as `override` does.
    """
    config = DiffusionTraining(
        model=choose(preset, DIFFUSION, "preset"), num_classes=num_classes, optimizer=_FLOW_OPTIMIZER,
        latents=latents.fingerprint, tokenizer=latents.space.tokenizer, **choose(preset, DIFFUSION_TRAINING, "preset"),
    )  # fmt: skip
    return override(config, changes)
