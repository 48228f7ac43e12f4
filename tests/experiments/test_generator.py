"""Models that belong together are found by their names, or by those of the main notebook."""

import pytest
import torch

from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.diffusion.loading import export_diffusion
from maetok_lab.experiments import generator as module
from maetok_lab.experiments.generator import open_generator
from maetok_lab.generation.images import generate
from maetok_lab.identity import tensors_fingerprint
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
    changes = {"num_steps": 2, "save_every": 1, "precision": "fp32", "ema_decays": (0.9, 0.5)}
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
    with pytest.raises(
        FileNotFoundError, match=r"no run tokenizer-test-s1-tuned: run 00_start_.*\"shipped/t"
    ):
        open_generator("test", seed=1, root=root)


def test_earlier_checkpoints_and_other_weights_can_guide(root, monkeypatch):
    def hashes(guides, **options):
        generator = open_generator("test", guides=guides, root=root, **options)
        for weak in generator.weak_models.values():
            assert weak is None or not weak.training
        return generator, [
            weak and tensors_fingerprint(weak.state_dict())
            for weak in generator.weak_models.values()
        ]

    guides = ["null class", "earliest", 1, 2, "diffusion-test-s0"]
    generator, (null, earliest, first, last, named) = hashes(guides)
    assert list(generator.weak_models) == guides
    assert null is None
    assert earliest == first != last
    assert last == named == tensors_fingerprint(generator.model.state_dict())
    assert [run.name for run in generator.parents].count("diffusion-test-s0") == 1
    # a checkpoint is taken at the rate of the model that it guides
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_diffusion", lambda *a, **k: calls.append(k) or generator.model)
        hashes([1], ema_rates=[0.5])
    assert [(call["ema"], call.get("step")) for call in calls] == [(0.5, None), (0.5, 1)]
    with pytest.raises(ValueError, match=r"diffusion-test-s0 has no checkpoint of step 7; it has"):
        hashes([7])
    with pytest.raises(FileNotFoundError, match="diffusion-test-s9 is not a run"):
        hashes(["diffusion-test-s9"])


def test_what_has_no_checkpoints_cannot_guide_itself(root, tmp_path):
    generator = open_generator("test", root=root)
    folder = export_diffusion(
        generator.model, tmp_path / "w", space=generator.space, tokenizer=generator.tokenizer
    )
    with pytest.raises(ValueError, match="w has no checkpoints, so 'earliest' cannot guide: name"):
        open_generator("test", diffusion=str(folder), guides=["earliest"], root=root)


def test_what_comes_with_the_project_is_a_generator_without_runs(tmp_path):
    generator = open_generator(
        "tiny", tokenizer="shipped/tokenizer", diffusion="shipped/diffusion",
        latents="shipped/diffusion", root=tmp_path,
    )  # fmt: skip
    assert generator.parents == []
    models = (generator.model, generator.tokenizer, generator.space)
    assert generate(*models, torch.tensor([0]), num_steps=2).shape == (1, 3, 64, 64)
