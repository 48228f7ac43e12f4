"""What test_kills.py starts and kills: one stage of the path at preset `test`, into runs that
earlier stages may have left.
"""

import sys
from pathlib import Path

import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING, diffusion_training
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

CPU = torch.device("cpu")


def first(root: Path) -> tuple[Run, object]:
    """The first stage's config and images."""
    config = TOKENIZER_TRAINING["test"]
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    changes = {
        "images": images.fingerprint,
        "precision": "fp32",
        "save_every": 2,
        "picture_every": 4,
    }
    return override(config, changes), images


def tokenizer(root: Path) -> None:
    config, images = first(root)
    with Run.open("tokenizer", config, root=root) as run:
        list(train_tokenizer(config, images, run, preview=images, cpu=True))


def tuning(root: Path) -> None:
    config, images = first(root)
    parent = Run(root / "tokenizer")
    config = decoder_tuning(config, parent=parent, **DECODER_TUNING["test"])
    with Run.open("tuned", config, root=root, parents=[parent]) as run:
        list(finetune_decoder(config, images, run, parent=parent, cpu=True))


def caching(root: Path) -> None:
    _, images = first(root)
    model = load_tokenizer(root / "tuned")
    config = LatentCaching(tokenizer=model.fingerprint, images=images.fingerprint, shard_size=64)
    with Run.open("latents", config, root=root, parents=[Run(root / "tuned")]) as run:
        list(write_latents(model, images, config, run, device=CPU))


def diffusion(root: Path) -> None:
    latents = LatentDataset(Run(root / "latents"))
    classes = int(latents.labels.max()) + 1
    config = diffusion_training(
        "test", latents, num_classes=classes, precision="fp32", save_every=2
    )
    with Run.open("diffusion", config, root=root, parents=[latents.run]) as run:
        list(train_diffusion(config, latents, run, validation=latents, cpu=True))


STAGES = {"tokenizer": tokenizer, "tuning": tuning, "caching": caching, "diffusion": diffusion}


def main(stage: str, root: str) -> None:
    torch.set_num_threads(1)
    print("started", flush=True)
    STAGES[stage](Path(root))


if __name__ == "__main__":
    main(*sys.argv[1:])
