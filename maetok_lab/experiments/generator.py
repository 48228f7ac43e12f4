"""A diffusion model with all that turns its samples into images, found by names."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from maetok_lab.data.latents import LatentSpace, load_latent_space
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import NULL_CLASS, Guide
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.runs import Run, find_run, run_suffix, runs_root
from maetok_lab.tokenizer.loading import load_tokenizer

EARLIEST = "earliest"  # guides: the first checkpoint that the diffusion run still has


@dataclasses.dataclass(frozen=True)
class Generator:
    """Models that belong together, on one device."""

    name: str  # "tiny-s0", for the names of runs that use it
    tokenizer: AnyTokenizer
    models: dict[float | None, DiffusionTransformer]  # by the EMA rate of their weights
    space: LatentSpace
    parents: list[Run]  # the runs that they came from; released weights have none
    # what can guide: weaker models (autoguidance, Karras et al. 2024), None for the null class
    weak_models: Mapping[Guide, DiffusionTransformer | None] = dataclasses.field(
        default_factory=lambda: {NULL_CLASS: None}
    )

    @property
    def model(self) -> DiffusionTransformer:
        """The weights of the first EMA rate."""
        return next(iter(self.models.values()))

    @property
    def ema(self) -> float | None:
        """The first EMA rate; None where weights do not say."""
        return next(iter(self.models))


def open_generator(
    preset: str,
    *,
    seed: int = 0,
    source: str | Path = "emoji",
    labels: str | None = None,
    tokenizer: str | None = None,
    diffusion: str | None = None,
    latents: str | None = None,
    ema_rates: Sequence[float] = (),
    guides: Sequence[Guide] = (NULL_CLASS,),
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Generator:
    """Named models, or those that `00_start_here` made with this preset, seed, source and labels.

    `latents` names what holds the statistics: a cache, or a released tokenizer, whose weights hold
    their own. `ema_rates` () are all that the run kept. `guides` besides the null class: "earliest"
    or the step of a checkpoint, or other weights. Raises what the loaders raise.
    """
    # What is not named is what the main notebook made; a released tokenizer has its statistics.
    name = run_suffix(preset, seed, source, labels)
    places = {
        "tokenizer": tokenizer or f"tokenizer-{name}-tuned",
        "diffusion": diffusion or f"diffusion-{name}",
        "latents": latents or tokenizer or f"latents-{name}-train",
    }
    for part, named in {"tokenizer": tokenizer, "diffusion": diffusion}.items():
        if named is None:
            _check_made(part, places[part], root)
    parents = [run for run in (find_run(place, root) for place in places.values()) if run]

    # Every average that the run kept is opened, where none is asked for.
    rates: list[float | None] = list(ema_rates)
    if not rates:
        for run in parents:
            rates += run.config.get("ema_decays", [])
    models = {}
    for rate in rates or [None]:
        models[rate] = load_diffusion(places["diffusion"], ema=rate, root=root).to(device)
    weak_models = {}
    for guide in guides:
        weak = _weak_model(guide, places["diffusion"], next(iter(models)), root)
        weak_models[guide] = weak if weak is None else weak.to(device)
        if isinstance(guide, str) and guide not in (NULL_CLASS, EARLIEST):
            run = find_run(guide, root)
            if run and run.folder not in [parent.folder for parent in parents]:
                parents.append(run)
    return Generator(
        name=name,
        tokenizer=load_tokenizer(places["tokenizer"], root=root).to(device),
        models=models,
        space=load_latent_space(places["latents"], root=root),
        parents=parents,
        weak_models=weak_models,
    )


def _check_made(part: str, name: str, root: str | Path | None) -> None:
    """FileNotFoundError unless the main notebook's run is there: nothing stands in silently."""
    if not (runs_root(root) / name / "config.json").exists():
        raise FileNotFoundError(
            f"no {part} is named, and there is no run {name}: run 00_start_here with this preset "
            "and seed first (`make demo`), or take what comes with the project: "
            'tokenizer = "shipped/tokenizer", diffusion = "shipped/diffusion", '
            'latents = "shipped/diffusion"'
        )


def _weak_model(
    guide: Guide, diffusion: str | Path, rate: float | None, root: str | Path | None
) -> DiffusionTransformer | None:
    """The weights that a guide names: of an earlier checkpoint at the same EMA rate."""
    if guide == NULL_CLASS:
        return None
    if isinstance(guide, str) and guide != EARLIEST:
        return load_diffusion(guide, root=root)
    run = find_run(diffusion, root)
    if run is None:
        raise ValueError(
            f"{diffusion} has no checkpoints, so {guide!r} cannot guide: name a diffusion run or "
            f"other weights, or {NULL_CLASS!r}"
        )
    step = run.checkpoint_steps()[0] if guide == EARLIEST else guide
    return load_diffusion(diffusion, ema=rate, step=step, root=root)
