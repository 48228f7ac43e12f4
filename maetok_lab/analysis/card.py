"""One card that says how diffusable latents may be, and how far such cards have been right about one's own runs.

No entry proves anything alone: at toy size a plain autoencoder stopped early has the mixture NLL of a masked one,
because NLL after standardising also rewards low rank and undertraining. So the card shows the dimensions kept, NLL per
dimension, and the PSNR of the latents beside it, and `card_correlation` asks the runs themselves.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.decoding import Decode, decoder_robustness, interpolation_smoothness
from maetok_lab.analysis.geometry import (
    channel_statistics,
    intrinsic_dimension,
    spectrum_numbers,
    token_correlation,
)
from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.analysis.preprocess import as_rows, spectrum_of
from maetok_lab.analysis.probe import knn_probe, linear_probe
from maetok_lab.config import to_json
from maetok_lab.files import finite, read_json, write_json
from maetok_lab.rng import generator
from maetok_lab.runs import Run

FEWEST_RUNS = 5
CARD_FILE = "card.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardSettings:
    """How a card was made; cards with different settings are not comparable.

    `dimensions` None lets each tokenizer keep its own number for `variance`: fine for one card, wrong for a comparison.
    `diffusion_steps` says how long the small diffusion model was trained whose loss is on the card; 0 where none was.
    """

    components: tuple[int, ...] = (1, 10, 50)
    dimensions: int | None = None
    variance: float = 0.9
    restarts: int = 10
    noise_levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    decoded: int = 128
    pairs: int = 32
    diffusion_steps: int = 0
    seed: int = 0


def diffusability_card(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    decode: Decode | None = None,
    diffusion_loss: Mapping[str, float] | Callable[[], Mapping[str, float]] | None = None,
    known: Mapping[str, float] | None = None,
    settings: CardSettings | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Every number of this package about latents (n, N, C) with labels (n,), and about test latents of other images.

    -> index `entry`, columns `group, value, error, unit`; curves for the figure are in `.attrs`. With `decode` also
    robustness and smoothness of the decoder. `diffusion_loss` is the loss of a small diffusion model after a fixed
    number of steps, `{"loss": ..., "loss/t0.25": ...}`, or a function that trains one and gives it. `known` are numbers
    from elsewhere to be shown beside, such as the PSNR on validation images. The mixture is scored on the test latents;
    its finished numbers of components are kept in `folder`. Raises ValueError for latents that `gmm_curve` refuses.
    """
    settings = settings or CardSettings()
    latents, test_latents = as_rows(latents), as_rows(test_latents)
    rows = [_row("known", name, value) for name, value in (known or {}).items()]
    curve = gmm_curve(
        latents,
        settings.components,
        dimensions=settings.dimensions,
        variance=settings.variance,
        restarts=settings.restarts,
        seed=settings.seed,
        heldout_latents=test_latents,
        folder=folder,
    )
    rows += _mixture_rows(curve) + _shape_rows(latents, settings.seed)
    rows += _probe_rows(latents, labels, test_latents, test_labels, settings.seed)
    curves = {"gmm": curve.to_dict("records"), "spectrum": spectrum_of(latents).tolist()}
    if decode is not None:
        found, curves["robustness"] = _decoder_rows(decode, test_latents, settings)
        rows += found
    if diffusion_loss is not None:
        losses = diffusion_loss() if callable(diffusion_loss) else diffusion_loss
        rows += [_row("diffusion", f"diffusion_{name}", value) for name, value in losses.items()]
    card = pd.DataFrame(rows).set_index("entry")
    card.attrs = {
        "settings": to_json(settings),
        "gmm_protocol": curve.attrs["protocol"],
        "curves": curves,
    }
    return card


def write_card(card: pd.DataFrame, path: str | Path) -> None:
    """Write a card with its curves and settings as JSON; `read_card` is the inverse. NaN becomes null."""
    write_json(path, {"entries": finite(card.reset_index().to_dict("records")), **card.attrs})


def read_card(path: str | Path) -> pd.DataFrame:
    """The card that `write_card` wrote."""
    record = read_json(path)
    card = pd.DataFrame(record.pop("entries")).set_index("entry")
    card[["value", "error"]] = card[["value", "error"]].astype(float)
    card.attrs = record
    return card


def cards_of(runs: Iterable[Run | str | Path]) -> dict[str, pd.DataFrame]:
    """The card in each run (or folder), by the run's name. Raises FileNotFoundError for a run without one."""
    cards = {}
    for folder in (Path(run.folder if isinstance(run, Run) else run) for run in runs):
        if not (folder / CARD_FILE).exists():
            raise FileNotFoundError(f"run {folder.name} has no card: it needs {CARD_FILE}")
        cards[folder.name] = read_card(folder / CARD_FILE)
    return cards


def card_correlation(
    runs: Mapping[str, pd.DataFrame] | Iterable[Run | str | Path],
    metric: Mapping[str, float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rank correlation of every card entry with a generation metric over runs, with 95 % bootstrap
    intervals.

    `runs` hold a card each, or are cards by name; `metric` goes by the run's name -> index `entry`, columns `rho, low,
    high, runs`, strongest first. Resampling runs says how much a correlation hangs on single runs. Under five runs the
    intervals are NaN and a warning says that the numbers mean nothing. Raises ValueError for a run without metric, fewer
    than three runs, and cards made with different settings (other seeds are no other settings).
    """
    cards = runs if isinstance(runs, Mapping) else cards_of(runs)
    missing = sorted(set(cards) - set(metric))
    if missing or len(cards) < 3:
        raise ValueError(
            f"need at least three runs with a card and a metric, not {len(cards)}; no metric for {missing}"
        )
    settings = {
        name: card.attrs.get("settings", {}) | {"seed": None} for name, card in cards.items()
    }
    if any(mine != next(iter(settings.values())) for mine in settings.values()):
        raise ValueError(f"cards made with different settings cannot be compared: {settings}")
    if len(cards) < FEWEST_RUNS:
        warnings.warn(
            f"correlations over {len(cards)} runs mean nothing; take at least {FEWEST_RUNS}",
            stacklevel=2,
        )
    table = (
        pd.DataFrame({name: card["value"] for name, card in cards.items()}).dropna().T
    )  # (runs, entries)
    target = pd.Series(metric)[table.index].astype(float)
    rows = [
        _correlate(entry, table[entry], target, draws, seed)
        for entry in table.columns
        if table[entry].nunique() > 1
    ]
    if not rows:
        raise ValueError("no entry differs between the cards")
    result = pd.DataFrame(rows).set_index("entry")
    return result.reindex(result.rho.abs().sort_values(ascending=False, kind="stable").index)


def _correlate(
    entry: str, values: pd.Series, target: pd.Series, draws: int, seed: int
) -> dict[str, Any]:
    row = {
        "entry": entry,
        "rho": _spearman(values, target),
        "low": math.nan,
        "high": math.nan,
        "runs": len(values),
    }
    if len(values) >= FEWEST_RUNS:
        picks = torch.randint(
            len(values), (draws, len(values)), generator=generator(seed, "card-correlation")
        )
        drawn = pd.Series(
            [_spearman(values.iloc[pick], target.iloc[pick]) for pick in picks.numpy()]
        ).dropna()
        row["low"], row["high"] = drawn.quantile([0.025, 0.975]).tolist()
    return row


def _spearman(first: pd.Series, second: pd.Series) -> float:
    a, b = (side.rank().to_numpy() - (len(side) + 1) / 2 for side in (first, second))
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


# Entries --------------------------------------------------------------------------------------------------------------


def _row(
    group: str, entry: str, value: float, error: float = math.nan, unit: str = ""
) -> dict[str, Any]:
    return {
        "entry": entry,
        "group": group,
        "value": float(value),
        "error": float(error),
        "unit": unit,
    }


def _mixture_rows(curve: pd.DataFrame) -> list[dict[str, Any]]:
    rows = [_row("mixture", "gmm_dimensions", curve["dimensions"].iloc[0])]
    for _, line in curve.iterrows():
        count = int(line["components"])
        rows.append(_row("mixture", f"gmm_nll_{count}", line["heldout_nll"], unit="nats per image"))
        rows.append(
            _row("mixture", f"gmm_nll_per_dim_{count}", line["heldout_nll_per_dim"], unit="nats")
        )
    best = curve.loc[curve["bic"].idxmin()]
    rows.append(_row("mixture", "gmm_components_by_bic", best["components"]))
    rows.append(
        _row(
            "mixture",
            "gmm_max_mean_norm",
            curve["max_mean_norm"].iloc[-1],
            unit="standard deviations",
        )
    )
    return rows


def _shape_rows(latents: Any, seed: int) -> list[dict[str, Any]]:
    rows = [_row("shape", name, value) for name, value in spectrum_numbers(latents).items()]
    for method in ("twonn", "mle"):
        rows.append(
            _row(
                "shape",
                f"intrinsic_dimension_{method}",
                intrinsic_dimension(latents, method=method, seed=seed),
            )
        )
    if len(latents.shape) == 3 and latents.shape[1] > 1:
        rows.append(_row("shape", "token_correlation", token_correlation(latents)))
    channels = channel_statistics(latents)
    rows.append(_row("shape", "channel_std_ratio", channels["std"].max() / channels["std"].min()))
    rows.append(_row("shape", "channel_kurtosis", channels["kurtosis"].mean()))
    return rows


def _probe_rows(
    latents: Any, labels: Tensor, test: Any, test_labels: Tensor, seed: int
) -> list[dict[str, Any]]:
    results = {"probe": linear_probe(latents, labels, test, test_labels, seed=seed)}
    if len(latents.shape) == 3:
        results["probe_pooled"] = linear_probe(
            latents, labels, test, test_labels, pool=True, seed=seed
        )
    results["knn"] = knn_probe(
        latents, labels, test, test_labels, neighbours=min(20, latents.shape[0])
    )
    rows = [
        _row("probe", f"{name}_top1", result.top1, result.standard_error)
        for name, result in results.items()
    ]
    return [
        *rows,
        _row("probe", "probe_top5", results["probe"].top5),
        _row("probe", "majority", results["probe"].majority),
    ]


def _decoder_rows(
    decode: Decode, latents: Any, settings: CardSettings
) -> tuple[list[dict[str, Any]], list[dict]]:
    chosen = latents[: settings.decoded]
    chosen = (chosen if isinstance(chosen, Tensor) else torch.tensor(chosen)).float()
    curve = decoder_robustness(decode, chosen, levels=settings.noise_levels, seed=settings.seed)
    rows = [
        _row("decoder", f"psnr_at_noise_{n:g}", p, e, "dB")
        for n, p, e in curve.itertuples(index=False)
    ]
    smooth = interpolation_smoothness(decode, chosen, pairs=settings.pairs, seed=settings.seed)
    for name in ("detour", "unevenness"):
        rows.append(
            _row("decoder", f"interpolation_{name}", smooth[name].mean(), smooth[name].sem())
        )
    return rows, curve.to_dict("records")
