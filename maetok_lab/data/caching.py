"""The latents of all images by a tokenizer: read where they are, else encoded once and kept."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch

from maetok_lab.config import to_json
from maetok_lab.data.images import ImageSource
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.files import read_json
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

    With `flips` it holds mirror images too; without, it may. `processes` share the work (see
    `ranks`); a line is printed for every shard. ValueError when a run `name` is there with
    other latents, such as those of weights that were changed since.
    """
    root = runs_root(root)
    config = LatentCaching(tokenizer=tokenizer.fingerprint, images=images.fingerprint, flips=flips)
    # run `name` first: a second call, later on, must give the same run
    for folder in [root / name, *sorted(root.glob("*"))]:
        if (folder / "summary.json").exists() and _holds(folder, config, tokenizer):
            return LatentDataset(Run(folder), device=device)
    if (root / name / "config.json").exists() and _holds(root / name, config, tokenizer):
        # begun before, perhaps under an earlier name of the weights: it goes on under that
        record = read_json(root / name / "config.json")["config"]
        config = dataclasses.replace(config, tokenizer=record["tokenizer"], flips=record["flips"])
    with Run.open(name, config, root=root, parents=parents) as run:
        device = torch.device(device)
        work = (tokenizer, images, config, run)
        # those of one process that encodes a part of them, where several do
        for count, total in yielded(processes, device, write_latents, *work, device=device):
            print(f"{name}: {count} of {total} images encoded", flush=True)
    return LatentDataset(run, device=device)


def _holds(folder: Path, config: LatentCaching, tokenizer: AnyTokenizer) -> bool:
    """Whether a run has the latents of `config`; it may have mirror images on top of them."""
    # neither the batch size nor an earlier name of the weights makes other latents
    record = read_json(folder / "config.json")
    if record["class"] != LatentCaching.__name__:
        return False
    actual = record["config"] | {"batch_size": config.batch_size}
    actual["flips"] = actual["flips"] and config.flips
    if same_weights(tokenizer, actual["tokenizer"]):
        actual["tokenizer"] = config.tokenizer
    return actual == to_json(config)
