"""Will it fit, and how long does it take? A training measured on this device for some seconds.

The training loops themselves run, on random images or latents, with batches that grow until the
seconds are spent.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from maetok_lab.config import override
from maetok_lab.data.batches import Pictures
from maetok_lab.data.caching import cached_latents
from maetok_lab.data.latents import LatentDataset
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.experiments.trial import Measured, try_training
from maetok_lab.rng import generator
from maetok_lab.runs.provenance import clock
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import diffusion_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import train_tokenizer

# A parameter takes at least: itself, gradient, one moment and one average, in float32.
BYTES_A_PARAMETER = 4 * 4
SHIPPED_TARGETS = ("hog", "semantic")  # what needs no download
SHIPPED_PERCEPTUAL = ("none", "squeezenet")


def measure_tokenizer(
    config: TokenizerTraining, *, device: torch.device, seconds: float = 20.0
) -> Measured:
    """Time, memory and work of a tokenizer's training on random images.

    Reading real ones is not in it: `doctor` times that.
    """
    # the perceptual term and the discriminator count from the first step, as in most of a training
    changes: dict[str, Any] = {"crop": "center", "workers": 0, "accumulate": 1, "images": ""}
    if config.losses.perceptual != "none":
        changes["losses.perceptual_warmup"] = 0.0
    if config.losses.adversarial:
        changes |= {"losses.adversarial.trains_from": 0, "losses.adversarial.counts_from": 0}
    images = RandomImages(config.model.image_size)
    weights = _count(lambda: Tokenizer(config.model)) * BYTES_A_PARAMETER
    return try_training(
        "tokenizer",
        override(config, changes),
        lambda sized, run: train_tokenizer(sized, images, run, cpu=device.type == "cpu"),
        weights=weights,
        device=device,
        seconds=seconds,
    )


def measure_diffusion(
    preset: str,
    tokenizer: TokenizerConfig,
    *,
    num_classes: int,
    device: torch.device,
    seconds: float = 20.0,
    **changes: Any,
) -> Measured:
    """As `measure_tokenizer`, for a diffusion preset on random latents of the tokenizer's shape.

    `changes` are further fields of its config.
    """
    # the loop reads a cache, so there is one: a random one, which takes as long as any
    with tempfile.TemporaryDirectory() as folder:
        latents = random_latents(Path(folder), tokenizer, device)
        # memory and work are counted in this thread: no parts on other cores
        changes = {"accumulate": 1} | changes
        config = diffusion_training(preset, latents, num_classes=num_classes, **changes)
        sizes = {
            "num_tokens": latents.num_tokens,
            "latent_dim": latents.latent_dim,
            "num_classes": num_classes,
        }
        weights = _count(lambda: DiffusionTransformer(config.model, **sizes)) * BYTES_A_PARAMETER
        return try_training(
            "diffusion",
            config,
            lambda sized, run: train_diffusion(sized, latents, run, cpu=device.type == "cpu"),
            weights=weights,
            device=device,
            seconds=seconds,
        )


def without_downloads(config: TokenizerTraining) -> tuple[TokenizerTraining, list[str]]:
    """The training without the networks that are not shipped, and their names.

    A lower bound of time and memory that needs no network.
    """
    # teachers first, in the order of the config, then what the losses need
    left_out = []
    targets = []
    for target in config.targets:
        if target.target in SHIPPED_TARGETS:
            targets.append(target)
        else:
            left_out.append(target.target)
    changes: dict[str, Any] = {"targets": tuple(targets)}
    if config.losses.perceptual not in SHIPPED_PERCEPTUAL:
        left_out.append(config.losses.perceptual)
        changes["losses.perceptual"] = "none"
    adversarial = config.losses.adversarial
    if adversarial and adversarial.discriminator != "patchgan":
        left_out.append(f"{adversarial.discriminator} discriminator")
        changes["losses.adversarial"] = None
    return override(config, changes), left_out


def recipe_of(preset: str) -> dict[str, Any]:
    """What goes with a tokenizer's preset: diffusion (a preset), num_images, num_classes."""
    if preset.startswith("maetok"):
        return {"diffusion": "sit-xl", "num_images": 1_281_167, "num_classes": 1000}  # ImageNet
    return {"diffusion": preset, "num_images": 4306, "num_classes": 26}  # the shipped emoji


def latent_cache_bytes(num_images: int, config: TokenizerConfig, *, flips: bool = True) -> int:
    """Size of a latent cache in 16 bits, with mirror images or without.

    ImageNet at 128 x 32: 21.0 or 10.5 GB.
    """
    return num_images * (1 + flips) * config.num_latent_tokens * config.latent_dim * 2


def measured_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """What was measured, and what follows for the recipe, in words: one column a stage."""
    # what was measured, at the largest batch that was tried, then the recipe
    columns = {}
    for stage in measured:
        seconds = 3600 * stage.hours
        columns[stage.stage] = {
            "images/s": f"{stage.images_per_second:.3g}",
            "at batch": f"{stage.batch:,}",
            "GFLOP an image": f"{stage.flop_per_image / 1e9:.3g}",
            "TFLOP/s": f"{stage.flop_per_image * stage.images_per_second / 1e12:.3g}",
            "MB an image": f"{stage.bytes_per_image / 1e6:.3g}",
            "recipe's batch": f"{stage.recipe_batch:,}",
            "GB at it": f"{stage.memory() / 1e9:.3g}",
            "images in all": f"{stage.images:,}",
            "time for them": clock(seconds) if math.isfinite(seconds) else "not measured",
        }
    return pd.DataFrame(columns)


def _count(make: Callable[[], torch.nn.Module]) -> int:
    """Parameters of a model that is not really made: on "meta" it takes no memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


# Stand-ins for data -------------------------------------------------------------------------------


class RandomImages:
    """As many of an ImageSource's traits as a training on images in memory uses."""

    fingerprint = ""
    in_memory = True

    def __init__(self, image_size: int, count: int = 64):
        self.image_size = image_size
        self.labels = torch.zeros(count, dtype=torch.long)
        self.flippable = torch.ones(count, dtype=torch.bool)
        self.captions = ["a picture"] * count
        shape = (count, 3, image_size, image_size)
        draws = generator(0, "planner")
        self._pixels = torch.randint(256, shape, generator=draws, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self,
        indices: torch.Tensor,
        *,
        flip: torch.Tensor | None = None,
        scale_crops: torch.Tensor | None = None,
    ) -> Pictures:
        """8-bit pixels (B, 3, H, W); mirroring is skipped."""
        return Pictures(self._pixels[indices], indices)

    def batch(
        self, indices: torch.Tensor, *, flip: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W) and labels (B,)."""
        return self.read(indices).images, self.labels[indices]

    def count_broken(self, messages: tuple[str, ...]) -> None:
        """Nothing to count: none of these images is broken."""


class _RandomTokenizer(torch.nn.Module):
    """Latents of the right shape, out of nothing."""

    fingerprint = "random"

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.shape = (config.num_latent_tokens, config.latent_dim)
        self.generator = generator(0, "planner")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, N, C)"""
        return torch.randn(len(images), *self.shape, generator=self.generator).to(images.device)


def random_latents(folder: Path, config: TokenizerConfig, device: torch.device) -> LatentDataset:
    """A cache of 512 random latents of a tokenizer's shape, written into `folder`."""
    images = RandomImages(8, count=512)
    tokenizer = _RandomTokenizer(config)
    return cached_latents(tokenizer, images, "latents", flips=True, root=folder, device=device)
