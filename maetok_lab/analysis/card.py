"""One card that says how diffusable latents may be, and how far such cards were right.

No entry proves anything alone: at toy size a plain autoencoder stopped early has the mixture NLL of
a masked one, because NLL after standardising also rewards low rank and undertraining. So the card
shows the dimensions kept, NLL per dimension, and the PSNR of the latents beside it, and
`card_correlation` asks the runs themselves.

`diffusability_card` puts the entries together; what is measured here is made by one function a
group below it.
"""

import dataclasses
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

from maetok_lab.analysis.decoding import STEPS, Decode, decoder_robustness, interpolation_smoothness
from maetok_lab.analysis.definitions import Definition, definition
from maetok_lab.analysis.geometry import (
    MAX_ROWS,
    NEIGHBOURS,
    channel_statistics,
    intrinsic_dimension,
    spectrum_numbers,
    token_correlation,
)
from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.analysis.preprocess import as_rows, spectrum_of, take_rows
from maetok_lab.analysis.probe import knn_probe, linear_probe
from maetok_lab.config import to_json
from maetok_lab.files import finite, read_json, write_json
from maetok_lab.rng import generator
from maetok_lab.runs import Run

Entry = dict[str, Any]  # entry (its name), value, error, unit, definition
FEWEST_RUNS = 5  # below, a correlation over runs means nothing
DRAWS = 1000  # of runs, for its interval
CARD_FILE = "card.json"
# The settings that `gmm_curve` takes by the same names.
MIXTURE_FIELDS = ("components", "dimensions", "variance", "restarts", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardSettings:
    """How a card was made; cards with different settings are not comparable."""

    components: tuple[int, ...] = (1, 10, 50)  # of the Gaussian mixtures
    # Principal components of the mixtures. None lets each tokenizer keep its own number for
    # `variance`: fine for one card, wrong for a comparison.
    dimensions: int | None = None
    variance: float = 0.9  # share that the dimensions keep, where their number is open
    restarts: int = 10  # of the mixtures
    noise_levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)  # on latents, in std of each channel
    decoded: int = 128  # test latents that the decoder's entries are made of
    pairs: int = 32  # of them, between which it interpolates
    # Training steps of the small diffusion model whose loss is on the card; 0 where there is none.
    diffusion_steps: int = 0
    seed: int = 0  # of all that is drawn


def diffusability_card(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    validation: tuple[Any, Tensor] | None = None,
    decode: Decode | None = None,
    diffusion_loss: Mapping[str, float] | None = None,
    beside: Mapping[str, float] | None = None,
    settings: CardSettings,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """All numbers of this package about latents (n, N, C) with labels (n,), and about test ones.

    -> index `entry`, columns `group, value, error, unit`; each entry's definition, and curves, in
    `.attrs`. `validation` is the probes', `beside` are numbers from elsewhere; finished mixtures
    are kept in `folder`. Raises ValueError for latents that `gmm_curve` refuses.
    """
    latents = as_rows(latents)
    test_latents = as_rows(test_latents)
    shared = {name: getattr(settings, name) for name in MIXTURE_FIELDS}
    mixtures = gmm_curve(latents, heldout_latents=test_latents, folder=folder, **shared)

    # Every entry of the card, by group, in the order of the card.
    groups = {
        "known": [
            _entry(name, value, stated=definition("given"))
            for name, value in (beside or {}).items()
        ],
        "mixture": _mixture_entries(mixtures),
        "shape": _shape_entries(latents, settings.seed),
        "probe": _probe_entries(
            latents, labels, test_latents, test_labels, validation, settings.seed
        ),
    }
    curves = {"gmm": mixtures.to_dict("records"), "spectrum": spectrum_of(latents).tolist()}
    definitions = {"gmm": mixtures.attrs["definition"], "spectrum": definition("spectrum")}
    if decode is not None:
        count = min(settings.decoded, test_latents.shape[0])
        sample = take_rows(test_latents, torch.arange(count)).float()
        robustness = decoder_robustness(
            decode, sample, levels=settings.noise_levels, seed=settings.seed
        )
        groups["decoder"] = _decoder_entries(robustness, decode, sample, settings)
        curves["robustness"] = robustness.to_dict("records")
        definitions["robustness"] = robustness.attrs["definition"]
    if diffusion_loss is not None:
        groups["diffusion"] = _diffusion_entries(diffusion_loss, settings.diffusion_steps)

    # one table; what its figure draws besides, and how all was made, go with it
    rows = pd.DataFrame([{"group": group, **entry} for group in groups for entry in groups[group]])
    card = rows.set_index("entry")
    definitions |= card.pop("definition").to_dict()
    card.attrs = {"settings": to_json(settings), "gmm_protocol": mixtures.attrs["protocol"]}
    card.attrs |= {"definitions": definitions, "curves": curves}
    return card


# Entries, one function a group --------------------------------------------------------------------


def _entry(
    name: str,
    value: float,
    error: float = math.nan,
    unit: str = "",
    *,
    stated: Definition | None = None,
) -> Entry:
    """One line of the card; without a definition of its own it has that of its name."""
    numbers = {"value": float(value), "error": float(error), "unit": unit}
    return {"entry": name, **numbers, "definition": stated or definition(name)}


def _mixture_entries(curve: pd.DataFrame) -> list[Entry]:
    """How well few modes describe the latents: NLL of test latents, lower is better."""
    entries = [_entry("gmm_dimensions", curve["dimensions"].iloc[0])]
    for _, row in curve.iterrows():
        count = int(row["components"])
        stated = definition("gmm_nll", components=count)
        nll = row["heldout_nll"]
        entries.append(_entry(f"gmm_nll_{count}", nll, unit="nats per image", stated=stated))
        stated = definition("gmm_nll_per_dim", components=count)
        nll = row["heldout_nll_per_dim"]
        entries.append(_entry(f"gmm_nll_per_dim_{count}", nll, unit="nats", stated=stated))
    best = curve.loc[curve["bic"].idxmin()]
    stated = definition("gmm_components_by_bic", among=curve["components"].tolist())
    entries.append(_entry("gmm_components_by_bic", best["components"], stated=stated))
    # of the largest mixture: a mode far out is hard to sample
    norm = curve["max_mean_norm"].iloc[-1]
    entries.append(_entry("gmm_max_mean_norm", norm, unit="standard deviations"))
    return entries


def _shape_entries(latents: Any, seed: int) -> list[Entry]:
    """How many dimensions the cloud has, and how uneven tokens and channels are."""
    entries = [_entry(name, value) for name, value in spectrum_numbers(latents).items()]
    for method in ("twonn", "mle"):
        dimension = intrinsic_dimension(latents, method=method, seed=seed)
        name = f"intrinsic_dimension_{method}"
        settings = {"neighbours": NEIGHBOURS[method], "max_rows": MAX_ROWS, "seed": seed}
        entries.append(_entry(name, dimension, stated=definition(name, **settings)))
    if len(latents.shape) == 3 and latents.shape[1] > 1:
        entries.append(_entry("token_correlation", token_correlation(latents)))
    channels = channel_statistics(latents)
    ratio = channels["std"].max() / channels["std"].min()
    entries.append(_entry("channel_std_ratio", ratio))
    entries.append(_entry("channel_kurtosis", channels["kurtosis"].mean()))
    return entries


def _probe_entries(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    validation: tuple[Any, Tensor] | None,
    seed: int,
) -> list[Entry]:
    """How well classes are read from the latents: accuracies in [0, 1], with standard errors."""
    data = (latents, labels, test_latents, test_labels)
    choice = {"validation": validation, "seed": seed}
    results = {"probe": linear_probe(*data, **choice)}
    if len(latents.shape) == 3:
        results["probe_pooled"] = linear_probe(*data, pool=True, **choice)
    results["knn"] = knn_probe(*data, neighbours=min(20, latents.shape[0]))
    entries = []
    for name, result in results.items():
        accuracy = (result.top1, result.standard_error)
        entries.append(_entry(f"{name}_top1", *accuracy, stated=result.definition))
    entries.append(_entry("probe_top5", results["probe"].top5))
    entries.append(_entry("majority", results["probe"].majority))
    return entries


def _decoder_entries(
    robustness: pd.DataFrame, decode: Decode, sample: Tensor, settings: CardSettings
) -> list[Entry]:
    """How well the decoder forgives noise, and how straight and even it goes between two images."""
    entries = []
    for level, value, error in robustness.itertuples(index=False):
        name = f"psnr_at_noise_{level:g}"
        stated = definition("psnr_at_noise", level=level, images=len(sample))
        entries.append(_entry(name, value, error, "dB", stated=stated))
    smoothness = interpolation_smoothness(decode, sample, pairs=settings.pairs, seed=settings.seed)
    lines = {"pairs": settings.pairs, "steps": STEPS, "images": len(sample)}
    for column in ("detour", "unevenness"):
        name = f"interpolation_{column}"
        values = smoothness[column]
        stated = definition(name, **lines)
        entries.append(_entry(name, values.mean(), values.sem(), stated=stated))
    return entries


def _diffusion_entries(losses: Mapping[str, float], steps: int) -> list[Entry]:
    """The loss of a small diffusion model, over all t, and over quarters of it from noise at 1."""
    entries = []
    for name, value in losses.items():  # "loss", and "loss/t0.25" of t in [0.25, 0.5)
        times = {}
        if start := name.partition("/t")[2]:
            times["t_from"] = float(start)
        stated = definition("diffusion_loss", steps=steps, **times)
        entries.append(_entry(f"diffusion_{name}", value, stated=stated))
    return entries


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
    rho = float(_spearman(values, target))
    if len(values) < FEWEST_RUNS:
        return rho, math.nan, math.nan
    # what is drawn with replacement says how much a correlation hangs on single ones
    random = generator(seed, "card-correlation")
    draws = torch.randint(len(values), (DRAWS, len(values)), generator=random).numpy()
    drawn = pd.Series(_spearman(values[draws], target[draws]))
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


def _spearman(first: np.ndarray, second: np.ndarray) -> Any:
    """Rank correlation along the last axis: (..., runs) twice -> (...); NaN if one is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        first_ranks = stats.rankdata(first, axis=-1)
        second_ranks = stats.rankdata(second, axis=-1)
        return stats.pearsonr(first_ranks, second_ranks, axis=-1).statistic
