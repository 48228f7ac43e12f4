"""Will it fit, and how long does it take? A training measured on this device for some seconds, and estimated for GPUs.

The training loops themselves run, on random images or latents, with batches that grow until the seconds are spent: memory,
work and time of a step are lines in the batch size, so two batches give what the recipe's own would need.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

from maetok_lab.config import override
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.experiments.trial import Measured, try_training
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.autoencoding import TokenizerTraining
from maetok_lab.training.presets import diffusion_training
from maetok_lab.training.tokenizer import train_tokenizer

BYTES = (
    4 * 4
)  # a parameter takes at least: itself, gradient, one moment and one average, in float32
SHIPPED = {
    "targets": ("hog", "semantic"),
    "perceptual": ("none", "squeezenet"),
}  # what needs no download


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """Published figures of a GPU: memory, and the peak rate of dense matrix products in `precision`, sums in fp32."""

    memory_gb: float
    tflops: float
    precision: str
    source: str


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_GEFORCE = "https://images.nvidia.com/aem-dam/Solutions"
# Dense rates: where a data sheet prints the rate "with sparsity", half of it.
GPUS = {
    "T4": Gpu(memory_gb=16, tflops=65, precision="fp16", source=f"{_NVIDIA}/tesla-t4/"),
    "V100": Gpu(memory_gb=32, tflops=125, precision="fp16", source=f"{_NVIDIA}/v100/"),
    "RTX 3090": Gpu(
        memory_gb=24,
        tflops=71,
        precision="bf16",
        source="https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
    "RTX 4090": Gpu(
        memory_gb=24,
        tflops=165.2,
        precision="bf16",
        source=f"{_GEFORCE}/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    "L4": Gpu(memory_gb=24, tflops=121, precision="bf16", source=f"{_NVIDIA}/l4/"),
    "L40S": Gpu(memory_gb=48, tflops=362, precision="bf16", source=f"{_NVIDIA}/l40s/"),
    "A100": Gpu(memory_gb=80, tflops=312, precision="bf16", source=f"{_NVIDIA}/a100/"),
    "H100": Gpu(memory_gb=80, tflops=989.5, precision="bf16", source=f"{_NVIDIA}/h100/"),
    "H200": Gpu(memory_gb=141, tflops=989.5, precision="bf16", source=f"{_NVIDIA}/h200/"),
}


def measure_tokenizer(
    config: TokenizerTraining, *, device: torch.device, seconds: float = 20.0
) -> Measured:
    """Time, memory and work of a tokenizer's training on random images; reading real ones is not in it (`doctor` times that).

    The perceptual term and the discriminator count from the first step, as they do in most of a training.
    """
    changes: dict[str, Any] = {"crop": "center", "workers": 0, "accumulate": 1, "images": ""}
    changes |= {"losses.perceptual_warmup": 0.0} if config.losses.perceptual != "none" else {}
    if config.losses.adversarial:
        changes |= {"losses.adversarial.trains_from": 0, "losses.adversarial.counts_from": 0}
    images = _RandomImages(config.model.image_size)
    weights = _count(lambda: Tokenizer(config.model)) * BYTES
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
    """The same of a diffusion preset on random latents of the tokenizer's shape; `changes` are further fields of its config."""
    with tempfile.TemporaryDirectory() as folder:
        latents = random_latents(Path(folder), tokenizer, device)
        config = diffusion_training(preset, latents, num_classes=num_classes, **changes)
        sizes = {
            "num_tokens": latents.num_tokens,
            "latent_dim": latents.latent_dim,
            "num_classes": num_classes,
        }
        weights = _count(lambda: DiffusionTransformer(config.model, **sizes)) * BYTES
        return try_training(
            "diffusion",
            config,
            lambda sized, run: train_diffusion(sized, latents, run, cpu=device.type == "cpu"),
            weights=weights,
            device=device,
            seconds=seconds,
        )


def without_downloads(config: TokenizerTraining) -> tuple[TokenizerTraining, list[str]]:
    """The training without the networks that are not shipped, and their names: a lower bound that needs no network."""
    left_out = [
        target.target for target in config.targets if target.target not in SHIPPED["targets"]
    ]
    changes: dict[str, Any] = {
        "targets": tuple(t for t in config.targets if t.target in SHIPPED["targets"])
    }
    if config.losses.perceptual not in SHIPPED["perceptual"]:
        left_out.append(config.losses.perceptual)
        changes["losses.perceptual"] = "none"
    if config.losses.adversarial and config.losses.adversarial.discriminator != "patchgan":
        left_out.append(f"{config.losses.adversarial.discriminator} discriminator")
        changes["losses.adversarial"] = None
    return override(config, changes), left_out


def latent_cache_bytes(num_images: int, config: TokenizerConfig, *, flips: bool = True) -> int:
    """Size of a latent cache in 16 bits, with the mirror images or without. ImageNet at 128 x 32: 21.0 or 10.5 GB."""
    return num_images * (1 + flips) * config.num_latent_tokens * config.latent_dim * 2


def estimate(measured: Sequence[Measured], *, utilisation: float) -> pd.DataFrame:
    """An ESTIMATE for the GPUs of the table: hours to the recipes' ends at a share `utilisation` of the published peak rate,
    and the largest batch by the memory that was measured here. Raises ValueError for a share outside of (0, 1].
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is a share of the peak rate in (0, 1], not {utilisation}")
    rows = []
    for name, gpu in GPUS.items():
        row: dict[str, Any] = {
            "GPU": name,
            "memory GB": gpu.memory_gb,
            "peak TFLOP/s": gpu.tflops,
            "in": gpu.precision,
        }
        for stage in measured:
            rate = gpu.tflops * 1e12 * utilisation / stage.flop_per_image
            row |= {f"{stage.stage} hours (estimate)": stage.images / rate / 3600}
            row |= {
                f"{stage.stage} largest batch (estimate)": stage.largest_batch(
                    0.9 * gpu.memory_gb * 1e9
                )
            }
        rows.append(row | {"peak from": gpu.source})
    return pd.DataFrame(rows).set_index("GPU")


def measured_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row a stage: what was measured, and what follows for the recipe."""
    rows = [
        {
            "stage": each.stage,
            "images/s": each.images_per_second,
            "at batch": each.batch,
            "GFLOP an image": each.flop_per_image / 1e9,
            "TFLOP/s": each.flop_per_image * each.images_per_second / 1e12,
            "MB an image": each.bytes_per_image / 1e6,
            "recipe's batch": each.recipe_batch,
            "GB at it": each.memory() / 1e9,
            "images in all": each.images,
            "hours": each.hours,
        }
        for each in measured
    ]
    return pd.DataFrame(rows).set_index("stage")


def _count(make: Callable[[], torch.nn.Module]) -> int:
    """Parameters of a model, which is not really made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


class _RandomImages(SimpleNamespace):
    """As many of an ImageSource's traits as a training on images in memory uses."""

    def __init__(self, image_size: int, count: int = 64):
        super().__init__(
            image_size=image_size, fingerprint="", in_memory=True, labels=torch.zeros(count).long()
        )
        self.captions = ["a picture"] * count
        self._images = (
            torch.rand(count, 3, image_size, image_size, generator=generator(0, "planner")) * 2 - 1
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, indices: torch.Tensor, *, flip: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W) and labels (B,); mirroring is skipped."""
        return self._images[indices], self.labels[indices]


class _RandomTokenizer(torch.nn.Module):
    """Latents of the right shape, out of nothing."""

    fingerprint = "random"

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.shape, self.draw = (
            (config.num_latent_tokens, config.latent_dim),
            generator(0, "planner"),
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, N, C)"""
        return torch.randn(len(images), *self.shape, generator=self.draw).to(images.device)


def random_latents(folder: Path, config: TokenizerConfig, device: torch.device) -> LatentDataset:
    """A cache of 512 random latents of a tokenizer's shape, written into `folder`: what speed is measured on."""
    images = _RandomImages(8, count=512)
    caching = LatentCaching(tokenizer="random", images=images.fingerprint)
    run = Run.open("latents", caching, root=folder)
    for _ in write_latents(
        _RandomTokenizer(config), images, caching, run, device=torch.device("cpu")
    ):
        pass
    return LatentDataset(run, device=device)
