"""The latents of all images by a tokenizer: read where they are, else encoded once and kept."""

import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from maetok_lab.config import to_json
from maetok_lab.data.images import ImageSource
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.data.shards import DamagedCache
from maetok_lab.files import read_json, read_record
from maetok_lab.identity import same_weights
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.ranks import yielded
from maetok_lab.runs import Run, runs_root


def cached_latents(
    tokenizer: AnyTokenizer,
    images: ImageSource,
    name: str,
    *,
    flips: bool = False,
    root: str | Path | None = None,
    parents: Iterable[Run] = (),
    device: torch.device | str = "cpu",
    processes: int = 1,
) -> LatentDataset:
    """A finished cache of this tokenizer and these images, or one that is written as run `name`.

    With `flips` it holds mirror images too; without, it may. Where run `name` lacks them, they go
    into NAME-flips. `processes` share the work (see `ranks`). ValueError when a run `name` is there
    with other latents.
    """
    root = runs_root(root)
    config = LatentCaching(tokenizer=tokenizer.fingerprint, images=images.fingerprint, flips=flips)
    # one that was made without mirror images stays as it is
    plain = dataclasses.replace(config, flips=False)
    if _holds(root / name, plain, tokenizer) and not _holds(root / name, config, tokenizer):
        name = f"{name}-flips"
    damage = None
    # run `name` first: a second call, later on, must give the same run
    for folder in [root / name, *sorted(root.glob("*"))]:
        if not _holds(folder, config, tokenizer):
            continue
        run = Run(folder)
        if not run.finished:
            continue
        try:
            return LatentDataset(run, device=device)
        except DamagedCache as problem:
            warnings.warn(f"{problem}", stacklevel=2)
            if folder == root / name:
                damage = str(problem)
    if _holds(root / name, config, tokenizer):
        # begun before, perhaps under an earlier name of the weights: it goes on under that
        record = read_json(root / name / "config.json")["config"]
        config = dataclasses.replace(config, tokenizer=record["tokenizer"], flips=record["flips"])
    with Run.open(name, config, root=root, parents=parents) as run:
        device = torch.device(device)
        if damage:
            run.reopen(damage)
        run.reopen_if_damaged()
        work = (tokenizer, images, config, run)
        # those of one process that encodes a part of them, where several do
        for count, total in yielded(processes, device, write_latents, *work, device=device):
            print(f"{name}: {count} of {total} images encoded", flush=True)
    return LatentDataset(run, device=device)


def _holds(folder: Path, config: LatentCaching, tokenizer: AnyTokenizer) -> bool:
    """Whether a run has the latents of `config`; it may have mirror images on top of them."""
    # neither the batch size nor an earlier name of the weights makes other latents
    try:
        record = read_record(folder / "config.json", needs=["class", "config"])
    except (OSError, ValueError):  # no run, or one that somebody else has to look after
        return False
    if record["class"] != LatentCaching.__name__:
        return False
    actual = record["config"] | {"batch_size": config.batch_size}
    actual["flips"] = actual["flips"] and config.flips
    if same_weights(tokenizer, actual["tokenizer"]):
        actual["tokenizer"] = config.tokenizer
    return actual == to_json(config)
