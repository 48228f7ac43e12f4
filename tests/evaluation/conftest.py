"""A tokenizer and a diffusion model of a few weights, for tests that draw images."""

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig

TOWER = TowerConfig(width=16, depth=2, num_heads=2)
MODEL = TokenizerConfig(
    image_size=8, patch_size=4, num_latent_tokens=3, latent_dim=2, encoder=TOWER, decoder=TOWER
)


def fill(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.eval()


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = fill(
        Tokenizer(override(MODEL, {"encoder.drop_path": 0.5, "decoder.drop_path": 0.5}))
    )
    tokenizer.fingerprint = "weights"
    return tokenizer


@pytest.fixture
def model() -> DiffusionTransformer:
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    return fill(DiffusionTransformer(config, num_tokens=3, latent_dim=2, num_classes=4))
