"""What the tests of both trainings share: when two runs ended alike, small diffusion models, caches
and discriminators.
"""

import dataclasses

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.diffusion.model import DiffusionConfig
from maetok_lab.nets import FeatureNet, NetSpec
from maetok_lab.runs import Run
from maetok_lab.tokenizer import discriminators
from maetok_lab.training import adversary
from maetok_lab.training.diffusion import DiffusionTraining
from maetok_lab.training.optim import OptimizerConfig


@pytest.fixture(scope="session")
def assert_same_end():
    """`assert_same_end(run, other)`: every tensor of their newest checkpoints is the same, and
    every logged number.
    """

    def compare(first: Run, second: Run) -> None:
        mine, theirs = Run(first.folder).load_checkpoint(), Run(second.folder).load_checkpoint()
        assert (mine.step, mine.state) == (theirs.step, theirs.state)
        assert {g: sorted(t) for g, t in mine.tensors.items()} == {
            g: sorted(t) for g, t in theirs.tensors.items()
        }
        for group, tensors in mine.tensors.items():
            for name, value in tensors.items():
                assert torch.equal(value, theirs.tensors[group][name]), f"{group} {name}"
        assert (first.folder / "metrics.jsonl").read_text() == (
            second.folder / "metrics.jsonl"
        ).read_text()

    return compare


# Diffusion ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sit() -> DiffusionTraining:
    """Twenty steps of a small SiT on latents of three classes."""
    return DiffusionTraining(
        model=DiffusionConfig(width=16, depth=1, num_heads=2),
        num_classes=3,
        num_steps=20,
        batch_size=8,
        ema_decays=(0.9, 0.5),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        precision="fp32",
        log_every=2,
        save_every=9,
    )


@pytest.fixture(params=["sit", "data", "lightningdit"])
def diffusion_config(request, sit) -> DiffusionTraining:
    """The small SiT, one that predicts data at shifted times, and a LightningDiT with all that
    differs.
    """
    if request.param == "sit":
        return sit
    if request.param == "data":
        return override(sit, {"prediction": "data", "time_shift": "dimension"})
    return dataclasses.replace(
        sit,
        model=override(
            sit.model, {"norm": "rmsnorm", "mlp": "swiglu", "positions": "rope", "qk_norm": True}
        ),
        path="cosine",
        optimizer=OptimizerConfig(name="muon"),
        precision="bf16",
    )


class Averages(torch.nn.Module):
    """An encoder: the 2 x 2 patches of a picture, averaged, as 4 tokens of 3 channels."""

    fingerprint = "weights"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def make_cache(make_pictures, tmp_path_factory):
    """`make_cache(count, seed)`: a finished latent cache of random pictures with three classes."""

    def make(count: int = 12, seed: int = 0) -> LatentDataset:
        images = make_pictures(count, 8, seed=seed)
        config = LatentCaching(tokenizer="weights", images=images.fingerprint, dtype="fp32")
        run = Run.open("cache", config, root=tmp_path_factory.mktemp("cache"))
        list(write_latents(Averages(), images, config, run, device=torch.device("cpu")))
        return LatentDataset(run)

    return make


@pytest.fixture(scope="module")
def cache(make_cache) -> LatentDataset:
    return make_cache()


# Discriminators -----------------------------------------------------------------------------------


@pytest.fixture
def small_dino(monkeypatch):
    """ViT-S's depth with random weights, for images of 8 px: those of 16 px are cropped."""

    def load(name, **settings):
        from timm.models.vision_transformer import VisionTransformer

        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=8, patch_size=4, embed_dim=16, depth=12, num_heads=2, dynamic_img_size=True
        )
        spec = NetSpec(name=name, input_size=8, mean=(124,) * 3, std=(58,) * 3)
        return FeatureNet(vit, spec, weight_hash="random")

    monkeypatch.setattr(discriminators, "load_net", load)


@pytest.fixture
def break_hinge(monkeypatch):
    """`break_hinge(calls)`: hinge_d, as the adversary calls it from now on, is NaN on the given
    calls.
    """

    def set_up(calls: set[int]) -> None:
        count = []

        def hinge(real, fake):
            count.append(None)
            return discriminators.hinge_d(real, fake) * (
                torch.nan if len(count) - 1 in calls else 1
            )

        monkeypatch.setattr(adversary, "hinge_d", hinge)

    return set_up
