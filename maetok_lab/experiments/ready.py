"""A tokenizer to look at: the one that is there already, else both stages of its training first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maetok_lab.config import override
from maetok_lab.data.images import ImageSource, open_splits
from maetok_lab.device import pick_precision
from maetok_lab.runs import Run, run_suffix, runs_root, usual_labels
from maetok_lab.runs.weights import SHIPPED
from maetok_lab.training.presets import DECODER_TUNING, tokenizer_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.rungs import LADDER
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer
from maetok_lab.widgets.live import follow_to_end

SHIPPED_TRAINING = ("tiny", 0, "emoji")  # preset, seed and images of the shipped weights


def find_tokenizer(
    preset: str,
    *,
    seed: int = 0,
    source: str | Path = "emoji",
    labels: str | None = None,
    root: str | Path | None = None,
) -> Path | None:
    """The folder of a decoder-tuned tokenizer of `00_start_here`, if its run is finished.

    Else the shipped weights, if they are of that training; else None.
    """
    # a run that is not finished has no summary yet: its weights are not to be shown as the result
    run = runs_root(root) / f"tokenizer-{run_suffix(preset, seed, source, labels)}-tuned"
    if (run / "config.json").exists() and Run(run).finished:
        return run
    return _shipped("tokenizer", preset, seed, source)


def _shipped(name: str, preset: str, seed: int, source: str | Path) -> Path | None:
    """The folder of shipped weights, if they are there and of that training."""
    folder = SHIPPED / name
    if (preset, seed, str(source)) == SHIPPED_TRAINING and (folder / "config.json").exists():
        return folder
    return None


def ready_tokenizer(
    preset: str,
    *,
    seed: int = 0,
    source: str | Path = "emoji",
    labels: str | None = None,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    **reading: Any,
) -> Path:
    """What `find_tokenizer` finds; where it finds nothing, both stages are trained. -> a folder

    They are trained as `00_start_here` does it, into the same runs: it takes them for its own.
    `reading` are further arguments of `open_splits`.
    """
    folder = find_tokenizer(preset, seed=seed, source=source, labels=labels, root=root)
    if folder is not None:
        print(f"tokenizer: {folder.name}")
        return folder
    name = f"tokenizer-{run_suffix(preset, seed, source, labels)}"
    print(f"there is no trained tokenizer {name}-tuned yet: it is trained first, and kept")
    parts = _training_of(preset, source=source, seed=seed, labels=labels, device=device, **reading)
    _, tuned = train_both_stages(name, *parts, root=root, device=torch.device(device))
    return tuned.folder


def ready_pair(
    preset: str,
    *,
    seed: int = 0,
    source: str | Path = "emoji",
    labels: str | None = None,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    **reading: Any,
) -> tuple[Path, Path]:
    """A masked tokenizer and a plain autoencoder that saw as many images. -> two folders

    The shipped ones, if they are of that training; else `ready_tokenizer` and the run NAME-plain,
    which is trained where it is missing.
    """
    masked, plain = (_shipped(name, preset, seed, source) for name in ("tokenizer", "plain"))
    if masked and plain:
        return masked, plain
    reading |= {"seed": seed, "source": source, "labels": labels, "device": device}
    masked = ready_tokenizer(preset, root=root, **reading)
    name = f"tokenizer-{run_suffix(preset, seed, source, labels)}-plain"
    parts = _training_of(preset, **reading)
    plain = train_plain(name, *parts, root=root, device=torch.device(device))
    return masked, plain.folder


def _training_of(
    preset: str,
    *,
    source: str | Path,
    seed: int,
    labels: str | None,
    device: torch.device | str,
    **reading: Any,
) -> tuple[TokenizerTraining, Mapping[str, Any], ImageSource, ImageSource]:
    """Both stages' configs as the main notebook has them, and the images for them."""
    # as the main notebook changes the preset: the runs' fingerprints must be the same
    precision = pick_precision(torch.device(device))
    config = tokenizer_training(preset, seed=seed, precision=precision)
    size = config.model.image_size
    reading |= {"labels": labels or usual_labels(source), "splits": ("train", "val")}
    images = open_splits(source, image_size=size, **reading)
    config = override(config, {"images": images["train"].fingerprint})
    return config, DECODER_TUNING[preset], images["train"], images["val"]


def train_both_stages(
    name: str,
    config: TokenizerTraining,
    tuning: Mapping[str, Any],
    train: ImageSource,
    val: ImageSource,
    *,
    root: str | Path | None,
    device: torch.device,
) -> tuple[Run, Run]:
    """A tokenizer's training into run NAME, then its decoder's tuning into NAME-tuned.

    `tuning` are the changes that `decoder_tuning` takes. -> both runs, finished
    """
    options = {"preview": val, "cpu": device.type == "cpu"}
    with Run.open(name, config, root=root) as masked:
        follow_to_end(train_tokenizer(config, train, masked, **options), "tokenizer")
    # the second stage starts from the first one's averaged weights, and changes the decoder alone
    second = decoder_tuning(config, parent=masked, **tuning)
    with Run.open(f"{name}-tuned", second, root=root, parents=[masked]) as tuned:
        training = finetune_decoder(second, train, tuned, parent=masked, **options)
        follow_to_end(training, "decoder tuning")
    return masked, tuned


def train_plain(
    name: str,
    config: TokenizerTraining,
    tuning: Mapping[str, Any],
    train: ImageSource,
    val: ImageSource,
    *,
    root: str | Path | None,
    device: torch.device,
) -> Run:
    """The plain autoencoder beside `train_both_stages`: as many images, no mask, no target."""
    num_steps = config.num_steps + tuning["num_steps"]
    plain = override(config, LADDER["ae"] | {"num_steps": num_steps})
    options = {"preview": val, "cpu": device.type == "cpu"}
    with Run.open(name, plain, root=root) as run:
        follow_to_end(train_tokenizer(plain, train, run, **options), "plain tokenizer", run=run)
    return run
