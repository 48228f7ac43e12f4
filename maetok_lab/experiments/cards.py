"""From cached latents to the loss of a small diffusion model on them, and to their card, as runs.

What is finished is not done again. Several notebooks share these parts.
"""

import dataclasses
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.card import CARD_FILE, CardSettings, diffusability_card, write_card
from maetok_lab.analysis.entries import Entry, grid_entries, interpolation_entries, path_entries
from maetok_lab.analysis.grids import grid_measures, grid_of
from maetok_lab.analysis.interpolation import interpolated_distance
from maetok_lab.analysis.preprocess import data_hash, row_hashes, take_rows
from maetok_lab.config import younger
from maetok_lab.data.latents import LatentDataset, spread_rows
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.model import DiffusionTransformer, own_labels
from maetok_lab.evaluation.protocol import EvalResult, compare
from maetok_lab.generation.trajectories import trajectory_shape
from maetok_lab.inference import device_of, eval_mode
from maetok_lab.protocols import AnyTokenizer, Images, Net
from maetok_lab.runs import Run, runs_root
from maetok_lab.training.diffusion import DiffusionTraining, train_diffusion
from maetok_lab.training.presets import diffusion_training
from maetok_lab.widgets.live import follow_to_end

CARD_OF = "2026"  # whose measures a card has; part of its run's name
SAMPLES_FILE = "samples-to-test.json"  # in an evaluation's run: its distances to test images


def diffusion_loss(
    name: str,
    preset: str,
    latents: LatentDataset,
    test: LatentDataset,
    *,
    root: str | Path | None = None,
    **options: Any,
) -> Run:
    """Train, or continue, a small diffusion model in run `name`; its summary has losses on `test`.

    `options` are those of `diffusion_training`. Losses on different latents compare only where
    model, steps, batch and seed are the same. `loss_by_time` gives them.
    """
    config = diffusion_training(preset, latents, **options)
    cpu = latents.device.type == "cpu"
    with Run.open(name, config, root=root, parents=[latents.run]) as run:
        training = train_diffusion(config, latents, run, validation=test, cpu=cpu)
        follow_to_end(training, name, run=run, every=30)
    return run


def loss_by_time(run: Run) -> dict[str, float]:
    """Held-out losses of a diffusion run: {"loss": ..., "loss/t0.00": ...}; t = 1 is noise."""
    losses = {}
    for name, value in run.summary.items():
        if name.startswith("val_loss"):
            losses[name.removeprefix("val_")] = value
    if not losses:
        reason = "" if run.finished else ": it is not finished, train it to its end"
        raise ValueError(f"run {run.name} has no loss on held-out latents{reason}")
    return losses


def generation_scores(
    root: str | Path | None = None, *, tokenizers: Collection[str] | None = None
) -> pd.DataFrame:
    """Kernel distances of samples to test images, by the run of the tokenizer that decoded them.

    -> index `tokenizer` (of all, or those named), columns `kid_efflite2` and the like: the newest
    evaluation of each, from finished runs that keep `samples-to-test.json`. Raises ValueError where
    they were made under different protocols: they share no figure.
    """
    results: dict[str, EvalResult] = {}
    files = runs_root(root).glob(f"*/{SAMPLES_FILE}")
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        try:
            run = Run(file.parent)
        except ValueError as problem:  # one folder must not keep the others from being read
            warnings.warn(str(problem), stacklevel=2)
            continue
        if not run.finished:
            continue
        # an evaluation's parents are a tokenizer, a diffusion model and perhaps a cache
        for parent in run.provenance["parents"]:
            folder = runs_root(root) / parent["run"]
            if tokenizers is not None and parent["run"] not in tokenizers:
                continue
            if (folder / "config.json").exists() and Run(folder).class_name == "TokenizerTraining":
                results[parent["run"]] = EvalResult.load(file)
    if not results:
        return pd.DataFrame(columns=["kid"]).rename_axis("tokenizer")

    # the seed and the best averaged weights may be each tokenizer's own; floors are not shown
    own = ["ema", "seed", "num_images", "floor"]
    table = compare(results, allow=own).rename_axis("tokenizer")
    return table.filter(regex=r"^kid(?!.*_floor$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardOfLatents:
    """What a card depends on, by fingerprints: the config of its run."""

    latents: str  # the cache of training images
    test: str  # the cache of test images
    labels: str  # of both, which need not be those in the caches
    diffusion: str  # the run of `diffusion_loss`, "" where there is none
    settings: CardSettings  # how it was made
    validation: str = younger("")  # the cache that chose the probes' penalty, "" for none
    net: str = younger("")  # weights that compared decoded mixtures with test images, "" for none


def card_run(
    name: str,
    latents: LatentDataset,
    labels: Tensor,
    test: LatentDataset,
    test_labels: Tensor,
    *,
    validation: tuple[LatentDataset, Tensor] | None = None,
    tokenizer: AnyTokenizer | None = None,
    diffusion: Run | None = None,
    beside: Mapping[str, float] | None = None,
    images: Images | None = None,
    net: Net | None = None,
    settings: CardSettings,
    root: str | Path | None = None,
) -> Run:
    """The card of cached latents as `card.json` in run `name`; a finished run is returned as it is.

    `validation` is the probes'; `tokenizer` gives the decoder's entries, test `images` and `net`
    more of them; `diffusion` (a run of `diffusion_loss`) what a model learnt. Raises ValueError for
    one of other steps than `settings` has.
    """
    _check_diffusion(diffusion, settings)
    parents = [latents.run, test.run]
    all_labels = [labels, test_labels]
    if validation is not None:
        parents.append(validation[0].run)
        all_labels.append(validation[1])
    if diffusion:
        parents.append(diffusion)
    config = CardOfLatents(
        latents=latents.fingerprint,
        test=test.fingerprint,
        labels=data_hash(row_hashes(torch.cat(all_labels)[:, None].double())),
        settings=settings,
        diffusion=diffusion.fingerprint if diffusion else "",
        validation=validation[0].fingerprint if validation else "",
        net=net.weight_hash if net and images else "",
    )
    with Run.open(name, config, root=root, parents=parents) as run:
        if not run.finished:
            model = load_diffusion(diffusion.folder).to(latents.device) if diffusion else None
            pictured = image_entries(latents, test, tokenizer, images, net, settings)
            card = diffusability_card(
                latents,
                labels,
                test,
                test_labels,
                validation=validation,
                decode=tokenizer.decode if tokenizer else None,
                model=model,
                diffusion_loss=loss_by_time(diffusion) if diffusion else None,
                beside=beside,
                further=pictured | way_entries(model, test, settings),
                settings=settings,
                folder=run.folder,  # mixtures that are fitted are kept there, if it is stopped
            )
            write_card(card, run.folder / CARD_FILE)
            run.finish(card["value"].to_dict())
    return run


def _check_diffusion(diffusion: Run | None, settings: CardSettings) -> None:
    # without a diffusion model the card has no loss, and says so by 0 steps
    steps = diffusion.summary["steps"] if diffusion else 0
    if steps != settings.diffusion_steps:
        raise ValueError(
            f"the card is to hold the loss after {settings.diffusion_steps} steps, "
            f"but there were {steps}; train for as many, or change the settings"
        )
    if diffusion is None:
        return
    config = diffusion.load_config(DiffusionTraining)
    for field in ("prediction", "time_shift"):
        trained = getattr(config, field)
        if trained != getattr(settings, field):
            raise ValueError(
                f"the card is to hold a model with {field} {getattr(settings, field)!r}, but "
                f"{diffusion.name} has {trained!r}; train another, or change the settings"
            )


def image_entries(
    latents: LatentDataset,
    test: LatentDataset,
    tokenizer: AnyTokenizer | None,
    images: Images | None,
    net: Net | None,
    settings: CardSettings,
) -> dict[str, list[Entry]]:
    """The entries, by group, for which test images are looked at beside their latents."""
    if tokenizer is None or images is None or not settings.mixed:
        return {}
    rows = spread_rows(len(test), settings.mixed)
    pictures, _ = images.batch(rows)
    own = take_rows(test, rows)
    place = device_of(tokenizer)

    def encode(batch: Tensor) -> Tensor:
        return tokenizer.encode(batch.to(place)).cpu()

    # the same test images for all of them
    groups = {}
    with eval_mode(tokenizer):
        table = grid_measures(own.cpu(), grid_of(tokenizer), images=pictures.cpu(), encode=encode)
        groups["grid"] = grid_entries(table)
        if net is not None:
            seed = {"net": net, "seed": settings.seed}
            result = interpolated_distance(tokenizer.decode, own, latents, pictures, **seed)
            groups["interpolation"] = interpolation_entries(result)
    return groups


def way_entries(
    model: DiffusionTransformer | None, test: LatentDataset, settings: CardSettings
) -> dict[str, list[Entry]]:
    """How straight the ways are of samples with labels of test images, by group."""
    if model is None or not settings.ways:
        return {}
    labels = own_labels(model, test.labels[spread_rows(len(test), settings.ways)])
    shape = trajectory_shape(model, labels, seed=settings.seed)
    return {"paths": path_entries(shape, len(labels))}


def trained_card(
    name: str,
    preset: str,
    data: tuple[LatentDataset, Tensor, LatentDataset, Tensor],
    *,
    validation: tuple[LatentDataset, Tensor] | None = None,
    labels: str,
    num_classes: int,
    settings: CardSettings,
    tokenizer: AnyTokenizer,
    images: Images | None = None,
    net: Net | None = None,
    root: str | Path | None = None,
) -> Run:
    """The card of `data` (latents, labels, and both of test images) after `diffusion_loss` on them;
    `validation`, `images` and `net` as in `card_run`.

    The runs are flow-NAME-LABELS, with a model of `preset` trained for the settings' steps, and
    card-NAME-DIMENSIONSd-2026, with "-val" where there is `validation`. What is finished comes back
    as it is.
    """
    latents, _, test, _ = data
    aim = "" if settings.prediction == "velocity" else f"-{settings.prediction}"
    if settings.time_shift != 1:
        shift = settings.time_shift
        aim += f"-shift-{shift if isinstance(shift, str) else f'{shift:g}'}"
    flow = diffusion_loss(
        f"flow-{name}-{labels}{aim}",
        preset,
        latents,
        test,
        root=root,
        num_classes=num_classes,
        num_steps=settings.diffusion_steps,
        seed=settings.seed,
        precision="fp32",  # on every device, so that cards made on several are comparable
        prediction=settings.prediction,
        time_shift=settings.time_shift,
    )
    return card_run(
        f"card-{name}-{settings.dimensions}d{'-val' if validation else ''}{aim}-{CARD_OF}",
        *data,
        validation=validation,
        tokenizer=tokenizer,
        images=images,
        net=net,
        diffusion=flow,
        settings=settings,
        root=root,
    )


def plain_name(source: str | Path) -> str:
    """A source as a part of a run's name: "diffusers:OWNER/NAME" -> "diffusers-OWNER-NAME"."""
    return "-".join(re.findall("[A-Za-z0-9]+", str(source)))
