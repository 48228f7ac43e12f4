"""From any tokenizer to its cached latents, the loss of a small diffusion model on them, and its card in a run of its own.

The parts that several notebooks share; every step is a run, so whatever is finished is not done again.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.card import CARD_FILE, CardSettings, diffusability_card, write_card
from maetok_lab.analysis.preprocess import data_hash, row_hashes
from maetok_lab.data.latents import LatentDataset
from maetok_lab.evaluation.protocol import EvalResult, compare
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.runs import Run, runs_root
from maetok_lab.training.diffusion import DiffusionTraining, train_diffusion

SAMPLES_FILE = "samples-to-test.json"


def diffusion_loss(
    flow: DiffusionTraining,
    latents: LatentDataset,
    test: LatentDataset,
    name: str,
    *,
    root: str | Path | None = None,
    cpu: bool = False,
) -> Run:
    """Train a small diffusion model into run `name`, or continue it: the finished run, with losses on `test` in its summary.

    Losses of several latents may be set side by side where `flow` differs in nothing but the latents: the same model,
    steps, batch and seed. `loss_by_time` gives them.
    """
    run = Run.open(name, flow, root=root, parents=[latents.run])
    for _ in train_diffusion(flow, latents, run, validation=test, cpu=cpu):
        pass
    run.close()
    return run


def loss_by_time(run: Run) -> dict[str, float]:
    """Held-out losses of a finished diffusion run: {"loss": ..., "loss/t0.00": ...}; t = 1 is noise."""
    losses = {
        key.removeprefix("val_"): value
        for key, value in run.summary.items()
        if key.startswith("val_loss")
    }
    if not losses:
        raise ValueError(
            f"run {run.name} has no loss on held-out latents{'' if run.finished else ': it is not finished'}"
        )
    return losses


def generation_scores(root: str | Path | None = None) -> pd.DataFrame:
    """Kernel distances of samples to test images, by the run of the tokenizer that decoded them: index `tokenizer`.

    From finished evaluations under `root` that keep `samples-to-test.json` and name a tokenizer among their parents; the
    newest of each tokenizer. Columns are the metrics, `kid_efflite2` and the like. Raises ValueError where evaluations
    were made under different protocols: they share no figure.
    """
    found: dict[str, EvalResult] = {}
    for path in sorted(
        runs_root(root).glob(f"*/{SAMPLES_FILE}"), key=lambda path: path.stat().st_mtime
    ):
        run = Run(path.parent)
        for parent in run.provenance["parents"] if run.finished else []:
            folder = runs_root(root) / parent["run"]
            if (folder / "config.json").exists() and Run(folder).class_name == "TokenizerTraining":
                found[parent["run"]] = EvalResult.load(path)
    if not found:
        return pd.DataFrame(columns=["kid"]).rename_axis("tokenizer")
    table = compare(found, allow=["ema", "seed", "num_images"]).rename_axis("tokenizer")
    return table[[name for name in table if name.startswith("kid") and not name.endswith("_floor")]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardOfLatents:
    """What a card depends on, by fingerprints: both caches, their labels, the diffusion run if there is one; settings."""

    latents: str
    test: str
    labels: str
    diffusion: str
    settings: CardSettings


def card_run(
    name: str,
    latents: LatentDataset,
    labels: Tensor,
    test: LatentDataset,
    test_labels: Tensor,
    *,
    tokenizer: AnyTokenizer | None = None,
    diffusion: Run | None = None,
    known: Mapping[str, float] | None = None,
    settings: CardSettings | None = None,
    root: str | Path | None = None,
) -> Run:
    """The card of cached latents as `card.json` in run `name`; a finished run is returned as it is.

    `tokenizer` gives the decoder's entries, `diffusion` (a finished run of `diffusion_loss`) the losses, `known` numbers
    from elsewhere. Cards are comparable only where their settings are equal; so a diffusion run must have had the steps
    that they say. Raises ValueError where it had not.
    """
    settings = settings or CardSettings()
    if (trained := diffusion.summary["steps"] if diffusion else 0) != settings.diffusion_steps:
        raise ValueError(
            f"the card is to hold the loss after {settings.diffusion_steps} steps, but there were {trained}"
        )
    hashes = torch.cat([row_hashes(part[:, None].double()) for part in (labels, test_labels)])
    config = CardOfLatents(
        latents=latents.fingerprint,
        test=test.fingerprint,
        labels=data_hash(hashes),
        settings=settings,
        diffusion=diffusion.fingerprint if diffusion else "",
    )
    parents = [latents.run, test.run, *([diffusion] if diffusion else [])]
    with Run.open(name, config, root=root, parents=parents) as run:
        if not run.finished:
            losses = loss_by_time(diffusion) if diffusion else None
            parts: dict[str, Any] = {
                "diffusion_loss": losses,
                "known": known,
                "settings": settings,
                "folder": run.folder,
            }
            decode = tokenizer.decode if tokenizer else None
            card = diffusability_card(latents, labels, test, test_labels, decode=decode, **parts)
            write_card(card, run.folder / CARD_FILE)
            run.finish(card["value"].to_dict())
    return run
