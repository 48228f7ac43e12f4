"""One card that says how diffusable latents may be, and how far such cards were right.

No entry proves anything alone: at toy size a plain autoencoder stopped early has the mixture NLL of
a masked one, because NLL after standardising also rewards low rank and undertraining. So the card
shows the dimensions kept, NLL per dimension, and the PSNR of the latents beside it, and
`card_correlation` asks the runs themselves.

`diffusability_card` puts the entries together; `entries` makes them, one function a group.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from maetok_lab.analysis.decoding import Decode, decoder_robustness, local_perceptual_continuity
from maetok_lab.analysis.definitions import Definition, definition
from maetok_lab.analysis.denoisers import Denoiser, denoiser_curve
from maetok_lab.analysis.entries import (
    LPC,
    CardSettings,
    Entry,
    ambiguity_entries,
    card_entry,
    continuity_entries,
    decoder_entries,
    denoiser_entries,
    diffusion_entries,
    missing_entry,
    mixture_entries,
    probe_entries,
    purity_entries,
    shape_entries,
)
from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.analysis.preprocess import as_rows, spectrum_of, take_rows
from maetok_lab.config import to_json
from maetok_lab.data.latents import spread_rows
from maetok_lab.files import finite, read_json, write_json
from maetok_lab.nets import load_net
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.tokenizer.perceptual import SqueezePerceptual

FEWEST_RUNS = 5  # below, a correlation over runs means nothing
DRAWS = 1000  # of runs, for its interval
SMALLEST = 32  # pixels a side of images that SqueezeNet can tell apart
CARD_FILE = "card.json"
# The settings that `gmm_curve` takes by the same names.
MIXTURE_FIELDS = ("components", "dimensions", "variance", "restarts", "seed")


def diffusability_card(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    validation: tuple[Any, Tensor] | None = None,
    decode: Decode | None = None,
    model: Denoiser | None = None,
    diffusion_loss: Mapping[str, float] | None = None,
    beside: Mapping[str, float] | None = None,
    further: Mapping[str, list[Entry]] | None = None,
    settings: CardSettings,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """All numbers of this package about latents (n, N, C) with labels (n,), and about test ones.

    -> index `entry`, columns `group, value, error, unit, better`; definitions and curves in
    `.attrs`. `validation` is the probes', `beside` are numbers from elsewhere, `further` entries by
    group; `folder` keeps finished mixtures. Raises ValueError for latents that `gmm_curve` refuses.
    """
    latents = as_rows(latents)
    test_latents = as_rows(test_latents)
    shared = {name: getattr(settings, name) for name in MIXTURE_FIELDS}
    mixtures = gmm_curve(latents, heldout_latents=test_latents, folder=folder, **shared)
    data = (latents, labels, test_latents, test_labels)
    losses = _denoiser_losses(data, int(mixtures["dimensions"].iloc[0]), model, settings)

    # Every entry of the card, by group, in the order of the card; figures are drawn from tables.
    beside = (beside or {}).items()
    groups = {
        "known": [card_entry(name, value, stated=definition("given")) for name, value in beside],
        "mixture": mixture_entries(mixtures),
        "shape": shape_entries(latents, settings.seed),
        "probe": [
            *probe_entries(*data, validation, settings.seed),
            *purity_entries(test_latents, test_labels),
        ],
        "denoiser": [*ambiguity_entries(latents, labels, settings.seed), *denoiser_entries(losses)],
    }
    tables = {"gmm": mixtures, "denoisers": losses}
    if decode is not None:
        sample = take_rows(test_latents, spread_rows(len(test_labels), settings.decoded)).float()
        levels = {"levels": settings.noise_levels, "seed": settings.seed}
        tables["robustness"] = decoder_robustness(decode, sample, **levels)
        groups["decoder"] = [
            *decoder_entries(tables["robustness"], decode, sample, settings),
            *_continuity(decode, sample, settings.seed),
        ]
    if diffusion_loss is not None:
        groups["diffusion"] = diffusion_entries(diffusion_loss, settings.diffusion_steps)
    for group, entries in (further or {}).items():
        groups[group] = groups.get(group, []) + entries

    card = _as_table(groups, tables)
    card.attrs |= {"settings": to_json(settings), "gmm_protocol": mixtures.attrs["protocol"]}
    card.attrs["curves"]["spectrum"] = spectrum_of(latents).tolist()
    return card


def _as_table(groups: dict[str, list[Entry]], tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The card; what its figure draws besides, and how all was made, go with it."""
    rows = pd.DataFrame([{"group": group, **entry} for group in groups for entry in groups[group]])
    card = rows.set_index("entry")
    definitions = {name: table.attrs["definition"] for name, table in tables.items()}
    definitions |= {"spectrum": definition("spectrum")} | card.pop("definition").to_dict()
    curves = {name: table.to_dict("records") for name, table in tables.items()}
    card.attrs = {"definitions": definitions, "curves": curves}
    return card


def _continuity(decode: Decode, sample: Tensor, seed: int) -> list[Entry]:
    """LPC through the shipped SqueezeNet; NaN where images are too small for it."""
    size = decode(sample[:1]).shape[-1]
    if size < SMALLEST:
        reason = f"SqueezeNet needs images of {SMALLEST} px, these have {size}"
        return [missing_entry(LPC, "lpc", reason)]
    distance = SqueezePerceptual(load_net("squeezenet1_1")).to(sample.device)
    return continuity_entries(local_perceptual_continuity(decode, sample, distance, seed=seed))


def _denoiser_losses(
    data: tuple[Any, Tensor, Any, Tensor],
    dimensions: int,
    model: Denoiser | None,
    settings: CardSettings,
) -> pd.DataFrame:
    """`denoiser_curve` as the card's settings say."""
    return denoiser_curve(
        *data,
        components=settings.components,
        dimensions=dimensions,
        restarts=settings.restarts,
        model=model,
        images=settings.denoised,
        seed=settings.seed,
    )


# Files --------------------------------------------------------------------------------------------


def write_card(card: pd.DataFrame, path: str | Path) -> None:
    """Write a card, its curves and settings as JSON, NaN as null; `read_card` is the inverse."""
    write_json(path, {"entries": finite(card.reset_index().to_dict("records")), **card.attrs})


def read_card(path: str | Path) -> pd.DataFrame:
    """The card that `write_card` wrote."""
    record = read_json(path)
    card = pd.DataFrame(record.pop("entries")).set_index("entry")
    card[["value", "error"]] = card[["value", "error"]].astype(float)
    card.attrs = record
    return card


def cards_of(runs: Iterable[Run | str | Path]) -> dict[str, pd.DataFrame]:
    """The card in each run or folder, by its name; FileNotFoundError for one without a card."""
    cards = {}
    for run in runs:
        folder = run.folder if isinstance(run, Run) else Path(run)
        if not (folder / CARD_FILE).exists():
            raise FileNotFoundError(
                f"run {folder.name} has no card: it needs {CARD_FILE}, which `card_run` makes"
            )
        cards[folder.name] = read_card(folder / CARD_FILE)
    return cards


# Were the cards right? ----------------------------------------------------------------------------


def card_correlation(
    cards: Mapping[str, pd.DataFrame],
    metric: Mapping[str, float],
    *,
    published: pd.DataFrame | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rank correlation of each entry with a metric over runs, with 95 % intervals.

    Both go by the run's name -> index `entry`, columns `rho, low, high, runs`, strongest first.
    `published` (index measure) stands beside entries of its measure, never pooled with them.
    ValueError for a run without metric, under three runs, cards made differently; warns below five.
    """
    missing = sorted(set(cards) - set(metric))
    if missing or len(cards) < 3:
        raise ValueError(
            f"need at least three runs with a card and a metric, not {len(cards)}; "
            f"no metric for {missing}"
        )
    _check_made_alike(cards)
    if len(cards) < FEWEST_RUNS:
        warnings.warn(
            f"correlations over {len(cards)} runs mean nothing; take at least {FEWEST_RUNS}",
            stacklevel=2,
        )

    # Entries that all cards have. One that is the same everywhere correlates with nothing.
    table = pd.DataFrame({name: card["value"] for name, card in cards.items()}).dropna()
    target = np.array([metric[name] for name in cards], dtype=float)
    rows = []
    for entry, series in table.iterrows():
        values = series.to_numpy()
        if (values == values[0]).all():
            continue
        rho, low, high = rank_correlation(values, target, seed=seed)
        rows.append({"entry": entry, "rho": rho, "low": low, "high": high, "runs": len(cards)})
    if not rows:
        raise ValueError("no entry differs between the cards; are they of the same latents?")
    result = pd.DataFrame(rows).set_index("entry")
    # rounded: of equally strong ones the order is the card's, not that of their last bits
    strength = result["rho"].abs().round(12)
    result = result.reindex(strength.sort_values(ascending=False, kind="stable").index)
    if published is None:
        return result
    # Of one measure is what the card's definition says. Others' metric is on other images: a gFID
    # on ImageNet beside a KID here says which measures rank tokenizers there too, and no more.
    definitions = next(iter(cards.values())).attrs.get("definitions", {})
    measures = [definitions.get(entry, {}).get("measure", "") for entry in result.index]
    beside = published.add_prefix("published_").reindex(measures)
    return result.join(beside.set_axis(result.index))


def rank_correlation(
    values: np.ndarray, target: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rho of two rows (n,), and the ends of its 95 % interval, NaN for n below five."""
    rho = float(spearman(values, target))
    if len(values) < FEWEST_RUNS:
        return rho, math.nan, math.nan
    # what is drawn with replacement says how much a correlation hangs on single ones
    random = generator(seed, "card-correlation")
    draws = torch.randint(len(values), (DRAWS, len(values)), generator=random).numpy()
    drawn = pd.Series(spearman(values[draws], target[draws]))
    low, high = drawn.quantile([0.025, 0.975])
    return rho, float(low), float(high)


def _check_made_alike(cards: Mapping[str, pd.DataFrame]) -> None:
    """Raise ValueError for cards of different settings or definitions, but for seeds."""
    settings = {}
    for name, card in cards.items():
        settings[name] = card.attrs.get("settings", {}) | {"seed": None}
    (first_name, first), *others = settings.items()
    if any(other != first for _, other in others):
        raise ValueError(f"cards made with different settings cannot be compared: {settings}")

    # a card of before definitions were stored has none: its probes and dimensions are others
    for name, card in cards.items():
        differing = []
        for entry in card.index.intersection(cards[first_name].index):
            if _without_seed(card, entry) != _without_seed(cards[first_name], entry):
                differing.append(entry)
        if differing:
            raise ValueError(
                f"the cards {first_name} and {name} define {', '.join(differing)} differently: "
                "make both with one version and one choice of validation rows"
            )


def _without_seed(card: pd.DataFrame, entry: str) -> Definition | None:
    """An entry's definition, whose settings leave out the seed."""
    stated = card.attrs.get("definitions", {}).get(entry)
    return stated and stated | {"settings": stated["settings"] | {"seed": None}}


def spearman(first: np.ndarray, second: np.ndarray) -> Any:
    """Rank correlation along the last axis: (..., runs) twice -> (...); NaN if one is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        first_ranks = stats.rankdata(first, axis=-1)
        second_ranks = stats.rankdata(second, axis=-1)
        return stats.pearsonr(first_ranks, second_ranks, axis=-1).statistic
