"""The entries of a card, one function a group: names, numbers, units, and what each number is."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from maetok_lab.analysis.ambiguity import TooFewOfAClass, velocity_ambiguity
from maetok_lab.analysis.decoding import STEPS, Decode, interpolation_smoothness
from maetok_lab.analysis.definitions import Definition, better, definition
from maetok_lab.analysis.denoisers import MODEL, TIMES
from maetok_lab.analysis.geometry import (
    MAX_ROWS,
    NEIGHBOURS,
    channel_condition,
    channel_effective_rank,
    channel_statistics,
    intrinsic_dimension,
    spectrum_numbers,
    token_correlation,
)
from maetok_lab.analysis.probe import knn_probe, linear_probe
from maetok_lab.analysis.purity import label_purity
from maetok_lab.diffusion.path import Prediction, TimeShift
from maetok_lab.evaluation.protocol import EvalResult
from maetok_lab.generation.trajectories import PathNumbers

Entry = dict[str, Any]  # entry (its name), value, error, unit, better, definition
NEAREST = 5  # neighbours of LNC
MIXED = ("ikid_gap", "ikid", "rkid")  # the longest name first
LPC = "lpc_squeeze"  # by the network that sees the images
GAINS = (0.125, 0.375, 0.625, 0.875, 0.95)  # times at which a card has the gain of its model


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
    mixed: int = 512  # test images whose latents are mixed; 0 for none
    ways: int = 64  # samples whose ways from noise are measured; 0 for none
    denoised: int = 1024  # test latents that denoisers and the diffusion model are compared on
    pairs: int = 32  # of them, between which it interpolates
    # Training steps of the small diffusion model whose loss is on the card; 0 where there is none.
    diffusion_steps: int = 0
    prediction: Prediction = "velocity"  # of that model, as in `DiffusionTraining`
    time_shift: TimeShift = 1.0  # of its times, likewise
    seed: int = 0  # of all that is drawn


# Groups ------------------------------------------------------------------------------------------


def card_entry(
    name: str,
    value: float,
    error: float = math.nan,
    unit: str = "",
    *,
    stated: Definition | None = None,
) -> Entry:
    """One line of the card; without a definition of its own it has that of its name."""
    stated = stated or definition(name)
    numbers = {"value": float(value), "error": float(error), "unit": unit}
    return {"entry": name, **numbers, "better": better(stated["measure"]), "definition": stated}


def missing_entry(name: str, measure: str, reason: str) -> Entry:
    """An entry that these latents cannot have; its definition says why."""
    return card_entry(name, math.nan, stated=definition(measure, **{"no value": reason}))


def mixture_entries(curve: pd.DataFrame) -> list[Entry]:
    """How well few modes describe the latents: NLL of test latents, lower is better."""
    entries = [card_entry("gmm_dimensions", curve["dimensions"].iloc[0])]
    for _, row in curve.iterrows():
        count = int(row["components"])
        stated = definition("gmm_nll", components=count)
        nll = row["heldout_nll"]
        entries.append(card_entry(f"gmm_nll_{count}", nll, unit="nats per image", stated=stated))
        stated = definition("gmm_nll_per_dim", components=count)
        nll = row["heldout_nll_per_dim"]
        entries.append(card_entry(f"gmm_nll_per_dim_{count}", nll, unit="nats", stated=stated))
    best = curve.loc[curve["bic"].idxmin()]
    stated = definition("gmm_components_by_bic", among=curve["components"].tolist())
    entries.append(card_entry("gmm_components_by_bic", best["components"], stated=stated))
    # of the largest mixture: a mode far out is hard to sample
    norm = curve["max_mean_norm"].iloc[-1]
    entries.append(card_entry("gmm_max_mean_norm", norm, unit="standard deviations"))
    return entries


def shape_entries(latents: Any, seed: int) -> list[Entry]:
    """How many dimensions the cloud has, and how uneven tokens and channels are."""
    # of flattened latents, then of tokens and channels
    entries = [card_entry(name, value) for name, value in spectrum_numbers(latents).items()]
    for method in ("twonn", "mle"):
        dimension = intrinsic_dimension(latents, method=method, seed=seed)
        name = f"intrinsic_dimension_{method}"
        settings = {"neighbours": NEIGHBOURS[method], "max_rows": MAX_ROWS, "seed": seed}
        entries.append(card_entry(name, dimension, stated=definition(name, **settings)))
    if len(latents.shape) == 3 and latents.shape[1] > 1:
        entries.append(card_entry("token_correlation", token_correlation(latents)))
    entries.append(card_entry("channel_condition", channel_condition(latents)))
    for name, pool in (("channel_effective_rank", False), ("channel_effective_rank_pooled", True)):
        stated = definition("channel_effective_rank", pooled=pool)
        rank = channel_effective_rank(latents, pool=pool)
        entries.append(card_entry(name, rank, stated=stated))
    channels = channel_statistics(latents)
    ratio = channels["std"].max() / channels["std"].min()
    entries.append(card_entry("channel_std_ratio", ratio))
    entries.append(card_entry("channel_kurtosis", channels["kurtosis"].mean()))
    return entries


def probe_entries(
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
        entries.append(card_entry(f"{name}_top1", *accuracy, stated=result.definition))
    entries.append(card_entry("probe_top5", results["probe"].top5))
    entries.append(card_entry("majority", results["probe"].majority))
    return entries


def purity_entries(latents: Any, labels: Tensor) -> list[Entry]:
    """How often the most similar test latents have an image's label, and what chance would give."""
    entries = []
    for pool, ending in ((True, "_pooled"), (False, "")):
        purity = label_purity(latents, labels, pool=pool)
        stated = purity.definitions
        gsq, lnc = (purity.gsq, purity.gsq_error), (purity.lnc, purity.lnc_error)
        entries.append(card_entry(f"gsq{ending}", *gsq, stated=stated["gsq"]))
        entries.append(card_entry(f"lnc_{NEAREST}{ending}", *lnc, stated=stated["lnc"]))
    chance = card_entry("label_chance", purity.chance, stated=stated["chance"])
    return [*entries, chance]


def decoder_entries(
    robustness: pd.DataFrame, decode: Decode, sample: Tensor, settings: CardSettings
) -> list[Entry]:
    """How well the decoder forgives noise, and how straight and even it goes between two images."""
    entries = []
    for level, value, error in robustness.itertuples(index=False):
        name = f"psnr_at_noise_{level:g}"
        stated = definition("psnr_at_noise", level=level, images=len(sample))
        entries.append(card_entry(name, value, error, "dB", stated=stated))
    smoothness = interpolation_smoothness(decode, sample, pairs=settings.pairs, seed=settings.seed)
    lines = {"pairs": settings.pairs, "steps": STEPS, "images": len(sample)}
    for column in ("detour", "unevenness"):
        name = f"interpolation_{column}"
        values = smoothness[column]
        stated = definition(name, **lines)
        entries.append(card_entry(name, values.mean(), values.sem(), stated=stated))
    return entries


def continuity_entries(continuity: pd.DataFrame) -> list[Entry]:
    """How far images move with latents, as the shipped SqueezeNet sees it: all radii, and each."""
    stated = continuity.attrs["definition"]
    weighted = (continuity.attrs["lpc"], continuity.attrs["error"])
    entries = [card_entry(LPC, *weighted, stated=stated)]
    for radius, value, error in continuity.itertuples(index=False):
        entries.append(card_entry(f"{LPC}_{radius:g}", value, error, stated=stated))
    return entries


def grid_entries(table: pd.DataFrame) -> list[Entry]:
    """What `grid_measures` gives; where it has no value, the reason is in the definition."""
    entries = []
    for name, (value, error, reason) in table.iterrows():
        stated = table.attrs["definitions"][name]
        if reason:
            entries.append(missing_entry(name, stated["measure"], reason))
        else:
            entries.append(card_entry(name, value, error, stated=stated))
    return entries


def interpolation_entries(result: EvalResult) -> list[Entry]:
    """Distances of decoded mixtures, and of reconstructions, on the network in their names."""
    protocol = result.protocol.describe()
    entries = []
    for name, value in result.metrics.items():
        measure = next(measure for measure in MIXED if name.startswith(measure))
        stated = definition(measure, protocol=protocol)
        entries.append(card_entry(name, value, result.standard_error(name), stated=stated))
    return entries


def path_entries(shape: PathNumbers, images: int) -> list[Entry]:
    """How straight the ways from noise to samples are."""
    settings = {"steps": len(shape.length_ratio), "guidance": "none", "images": images}
    entries = []
    for name in ("straightness", "efficiency"):
        stated = definition(f"path_{name}", **settings)
        entries.append(card_entry(f"path_{name}", *getattr(shape, name), stated=stated))
    return entries


def ambiguity_entries(latents: Any, labels: Tensor, seed: int) -> list[Entry]:
    """How ambiguous velocities are; NaN where no class has latents enough."""
    try:
        ambiguity = velocity_ambiguity(latents, labels, seed=seed)
    except TooFewOfAClass as problem:
        names = ("viv", "within_class_share")
        return [missing_entry(name, name, str(problem)) for name in names]
    return [card_entry("viv", ambiguity.viv), card_entry("within_class_share", ambiguity.rho)]


def denoiser_entries(losses: pd.DataFrame) -> list[Entry]:
    """What denoisers in closed form tell of velocities, and what a network adds."""
    entries = []
    settings = losses.attrs["definition"]["settings"]
    means = losses.groupby("denoiser", sort=False)[["loss", "error"]].mean()
    for name, (loss, error) in means.iterrows():
        stated = definition("denoiser_loss", denoiser=name, times=len(TIMES), **settings)
        entries.append(card_entry(f"denoiser_loss_{plain(name)}", loss, error, stated=stated))
    gains = losses[losses["denoiser"] == MODEL].set_index("t")
    for t in GAINS:
        if t in gains.index:
            gain = (gains["gain"][t], gains["gain_error"][t])
            stated = definition("denoiser_gain", t=t, **settings)
            entries.append(card_entry(f"denoiser_gain_{t:g}", *gain, stated=stated))
    return entries


def plain(name: str) -> str:
    """A denoiser's name in an entry's: "5 modes" -> "5_modes"."""
    return name.replace(" ", "_")


def diffusion_entries(losses: Mapping[str, float], steps: int) -> list[Entry]:
    """The loss of a small diffusion model, over all t, and over quarters of it from noise at 1."""
    entries = []
    for name, value in losses.items():  # "loss", and "loss/t0.25" of t in [0.25, 0.5)
        times = {}
        if start := name.partition("/t")[2]:
            times["t_from"] = float(start)
        stated = definition("diffusion_loss", steps=steps, **times)
        entries.append(card_entry(f"diffusion_{name}", value, stated=stated))
    return entries
