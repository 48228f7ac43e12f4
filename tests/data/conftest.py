"""A small tokenizer, pictures, and caches of their latents."""

import pytest
import torch

from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.identity import remember_name
from maetok_lab.runs import Run
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=8, patch_size=4, num_latent_tokens=3, latent_dim=2, encoder=TOWER, decoder=TOWER
)


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(22, 8)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    tokenizer = Tokenizer(MODEL).eval()
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    remember_name(tokenizer, "weights")
    return tokenizer


@pytest.fixture
def caching(pictures):
    """`caching(**fields)`: the config of a cache of the pictures, in shards of eight."""

    def make(**fields) -> LatentCaching:
        settings = {
            "tokenizer": "weights",
            "images": pictures.fingerprint,
            "shard_size": 8,
            "batch_size": 3,
        }
        return LatentCaching(**settings | fields)

    return make


@pytest.fixture
def cache(tmp_path, pictures, tokenizer, caching):
    """`cache(**fields)`: caches the pictures into a new run and opens it."""

    def make(name: str = "cache", *, memory_limit: float | None = None, **fields) -> LatentDataset:
        config = caching(**fields)
        run = Run.open(name, config, root=tmp_path)
        list(write_latents(tokenizer, pictures, config, run, device=torch.device("cpu")))
        return LatentDataset(Run(run.folder), memory_limit=memory_limit)

    return make
