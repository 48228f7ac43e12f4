"""Models that belong together are found by their names, or by those of the main notebook."""

import pytest
import torch

from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.experiments.generator import open_generator
from maetok_lab.generation.images import generate
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import diffusion_training, ladder_training
from maetok_lab.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs named as the main notebook names them, of two steps each."""
    root = tmp_path_factory.mktemp("runs")
    images = open_images("emoji", split="val", image_size=64)
    config = ladder_training("test", "ae", num_steps=2, precision="fp32")
    run = Run.open("tokenizer-test-s0-tuned", config, root=root)
    list(train_tokenizer(config, images, run, cpu=True))
    tokenizer = load_tokenizer(run.folder)
    caching = LatentCaching(tokenizer=tokenizer.fingerprint, images=images.fingerprint, flips=False)
    cache = Run.open("latents-test-s0-train", caching, root=root)
    list(write_latents(tokenizer, images, caching, cache, device=torch.device("cpu")))
    changes = {"num_steps": 2, "precision": "fp32", "ema_decays": (0.9, 0.5)}
    config = diffusion_training("test", LatentDataset(cache), num_classes=9, **changes)
    run = Run.open("diffusion-test-s0", config, root=root)
    list(train_diffusion(config, LatentDataset(cache), run, cpu=True))
    return root


def test_the_main_notebooks_models_are_found_and_draw_images(root):
    generator = open_generator("test", root=root)
    assert generator.name == "test-s0"
    assert list(generator.models) == [0.9, 0.5]
    assert generator.ema == 0.9
    assert [run.name for run in generator.parents] == [
        "tokenizer-test-s0-tuned",
        "diffusion-test-s0",
        "latents-test-s0-train",
    ]
    labels = torch.tensor([0, 5])
    models = (generator.model, generator.tokenizer, generator.space)
    assert generate(*models, labels, num_steps=2).shape == (2, 3, 64, 64)


def test_named_models_and_rates_go_before(root):
    generator = open_generator(
        "tiny", diffusion="diffusion-test-s0", tokenizer="tokenizer-test-s0-tuned",
        latents="latents-test-s0-train", ema_rates=[0.5], root=root,
    )  # fmt: skip
    assert list(generator.models) == [0.5]
    with pytest.raises(FileNotFoundError, match="tokenizer-test-s1-tuned is not a run"):
        open_generator("test", seed=1, root=root)
