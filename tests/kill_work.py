"""What test_kills.py and the attack start and kill: one stage of the path at preset `test`, into
runs that earlier stages may have left.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, load_latent_space, write_latents
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.evaluation.sample_sets import (
    class_labels,
    sample_set,
    sampling_protocol,
    write_samples,
)
from maetok_lab.identity import file_hash
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


def sampling(root: Path) -> None:
    trained = Run(root / "diffusion")
    model = load_diffusion(trained.folder)
    decoder = load_tokenizer(root / "tuned")
    space = load_latent_space(root / "latents")
    facts = {"num_images": 48, "labels": "equal", "steps": 2, "precision": "fp32"}
    protocol = sampling_protocol(trained, **facts)
    labels = class_labels(protocol, model.num_classes)
    config = sample_set(protocol, model, decoder, labels)
    with Run.open("samples", config, root=root, parents=[trained]) as run:
        list(write_samples(model, decoder, space, labels, config, run, batch_size=4))


STAGES = {
    "tokenizer": tokenizer,
    "tuning": tuning,
    "caching": caching,
    "diffusion": diffusion,
    "sampling": sampling,
}
RUNS = {
    "tokenizer": "tokenizer",
    "tuning": "tuned",
    "caching": "latents",
    "diffusion": "diffusion",
    "sampling": "samples",
}


def outcome(folder: Path) -> tuple[Any, ...]:
    """Everything that a run computed, without times of day: numbers, hashes of its newest weights,
    latents and pictures.
    """
    run = Run(folder)
    assert run.finished, run.problem
    table = run.metrics().drop(columns=["time", "seconds"], errors="ignore")
    summary = {
        key: value for key, value in run.summary.items() if key != "ended" and "second" not in key
    }
    patterns = ("samples/*.png", "images/*.png", "latents/*.npy", "*.npy", "*.npz", "*.safetensors")
    files = {
        path.relative_to(folder).as_posix(): file_hash(path)
        for pattern in patterns
        for path in folder.glob(pattern)
    }
    numbers = table.to_json() if table.size else ""
    return run.checkpoint_steps(), run.checkpoint_hash(), numbers, summary, files


def main(stage: str, root: str) -> None:
    torch.set_num_threads(1)
    print("started", flush=True)
    STAGES[stage](Path(root))


if __name__ == "__main__":
    main(*sys.argv[1:])
