"""A tokenizer to look at, and its latents: what is there already, else trained or made first."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maetok_lab.config import choose, override
from maetok_lab.data.images import ImageSource, open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.device import pick_precision
from maetok_lab.runs import Run, run_suffix, runs_root
from maetok_lab.runs.weights import SHIPPED
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.tokenizer import TokenizerTraining
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING
from maetok_lab.training.loop import StepRecord
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

SHIPPED_PRESET = "tiny"
Follow = Callable[[str], Callable[[StepRecord], None]]


def find_tokenizer(
    preset: str, *, seed: int = 0, source: str | Path = "emoji", root: str | Path | None = None
) -> Path | None:
    """The folder of the main job's decoder-tuned tokenizer if its run is finished, else of the shipped weights; None without.

    Shipped weights are those of preset `tiny` on the emoji, seed 0.
    """
    run = runs_root(root) / f"tokenizer-{run_suffix(preset, seed, source)}-tuned"
    if (run / "summary.json").exists():
        return run
    shipped = SHIPPED / "tokenizer"
    meant = (preset, seed, str(source)) == (SHIPPED_PRESET, 0, "emoji")
    return shipped if meant and (shipped / "config.json").exists() else None


def ready_tokenizer(
    preset: str,
    *,
    seed: int = 0,
    source: str | Path = "emoji",
    labels: str = "category-style",
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    follow: Follow,
    write: Callable[[str], None] = print,
) -> Path:
    """What `find_tokenizer` finds; where it finds nothing, trains both stages as `00_start_here` does, into the same runs.

    `follow(title)` gives what takes each step's record, such as `LiveTraining(title).update`. -> the folder to load
    """
    found = find_tokenizer(preset, seed=seed, source=source, root=root)
    if found is not None:
        write(f"tokenizer: {found.name}")
        return found
    name, device = f"tokenizer-{run_suffix(preset, seed, source)}", torch.device(device)
    write(f"there is no trained tokenizer {name}-tuned yet: it is trained first, and kept")
    config = choose(preset, TOKENIZER_TRAINING, "preset")
    train, val = (
        open_images(source, split=s, image_size=config.model.image_size, labels=labels)
        for s in ("train", "val")
    )
    config = override(
        config, {"seed": seed, "precision": pick_precision(device), "images": train.fingerprint}
    )
    _, tuned = train_both_stages(
        name, config, DECODER_TUNING[preset], train, val, root=root, device=device, follow=follow
    )
    return tuned.folder


def train_both_stages(
    name: str,
    config: TokenizerTraining,
    tuning: Mapping[str, Any],
    train: ImageSource,
    val: ImageSource,
    *,
    root: str | Path | None,
    device: torch.device,
    follow: Follow,
) -> tuple[Run, Run]:
    """The tokenizer's training into run NAME, and its decoder's tuning, by `decoder_tuning`'s changes, into NAME-tuned."""
    where = {"preview": val, "cpu": device.type == "cpu"}
    with Run.open(name, config, root=root) as masked:
        take = follow("tokenizer")
        for record in train_tokenizer(config, train, masked, **where):
            take(record)
        second = decoder_tuning(config, parent=masked, **tuning)
        with Run.open(f"{name}-tuned", second, root=root, parents=[masked]) as tuned:
            take = follow("decoder tuning")
            for record in finetune_decoder(second, train, tuned, parent=masked, **where):
                take(record)
    return masked, tuned


def ready_latents(
    run: Run,
    images: ImageSource,
    name: str,
    *,
    flips: bool,
    root: str | Path | None,
    device: torch.device,
) -> LatentDataset:
    """The latents of a finished tokenizer's run, read from run `name`, or made first and kept there."""
    tokenizer = load_tokenizer(run.folder).to(device)
    caching = LatentCaching(tokenizer=tokenizer.fingerprint, images=images.fingerprint, flips=flips)
    with Run.open(name, caching, root=root, parents=[run]) as cache:
        if not cache.finished:
            for _ in write_latents(tokenizer, images, caching, cache, device=device):
                pass
    return LatentDataset(cache, device=device)
