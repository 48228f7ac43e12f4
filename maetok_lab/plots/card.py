"""The diffusability card as one figure, and several cards side by side on the same axes."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, axes, colours_for, finish

TABLE_ENTRIES = {
    "psnr": "PSNR, dB",
    "gmm_dimensions": "dimensions kept",
    "effective_rank": "effective rank",
    "intrinsic_dimension_twonn": "intrinsic dimension",
    "token_correlation": "token correlation",
    "probe_top1": "linear probe",
    "probe_pooled_top1": "probe, pooled",
    "knn_top1": "nearest neighbours",
    "interpolation_detour": "interpolation detour",
    "diffusion_loss": "diffusion loss",
}


def plot_card(cards: pd.DataFrame | Mapping[str, pd.DataFrame], *, columns: int = 3) -> Any:
    """One or several cards on one figure: spectrum, mixture NLL, decoder robustness, diffusion loss by t, and numbers.

    `cards` is a result of `diffusability_card`, or several by name, one colour each -> the matplotlib Figure. Panels
    that no card has data for are left out. Raises ValueError without cards, ImportError without matplotlib.
    """
    cards = {"": cards} if isinstance(cards, pd.DataFrame) else dict(cards)
    if not cards:
        raise ValueError("no cards to draw")
    curves = {
        title: {name: card_curve(card, title) for name, card in cards.items()} for title in PANELS
    }
    shown = [
        title for title in PANELS if any(curve is not None for curve in curves[title].values())
    ]
    columns = min(columns, len(shown) + 1)
    line, first = divmod(len(shown), columns)
    if (
        first and columns - first < len(cards) / CARDS_A_PANEL
    ):  # the table has no room beside the last panel
        line, first = line + 1, 0
    figure = axes(None, size=(3.7 * columns, 3.1 * (line + 1))).figure
    figure.clear()
    grid = figure.add_gridspec(line + 1, columns)
    for position, title in enumerate(shown):
        ax = figure.add_subplot(grid[divmod(position, columns)])
        _draw(
            ax,
            {name: curve for name, curve in curves[title].items() if curve is not None},
            cards,
            *PANELS[title],
        )
    _draw_table(figure.add_subplot(grid[line, first:]), cards)
    return figure


def card_curve(card: pd.DataFrame, title: str) -> tuple[list[float], list[float]] | None:
    """x and y of one panel of a card ("spectrum", "mixture", "robustness", "diffusion"), or None if it has none."""
    curves = card.attrs.get("curves", {})
    if title == "spectrum" and curves.get("spectrum"):
        total, done, shares = sum(curves["spectrum"]), 0.0, []
        for value in curves["spectrum"]:
            done += value
            shares.append(done / total)
        return list(range(1, len(shares) + 1)), shares
    if title == "mixture" and curves.get("gmm"):
        return [row["components"] for row in curves["gmm"]], [
            row["heldout_nll_per_dim"] for row in curves["gmm"]
        ]
    if title == "robustness" and curves.get("robustness"):
        return [row["noise"] for row in curves["robustness"]], [
            row["psnr"] for row in curves["robustness"]
        ]
    prefix = "diffusion_loss/t"
    binned = [name for name in card.index if name.startswith(prefix)]
    if title == "diffusion" and binned:
        return [float(name.removeprefix(prefix)) for name in binned], card["value"][binned].tolist()
    return None


CARDS_A_PANEL = 3  # columns of the table of numbers that are readable in a panel's width

# title: x label, y label, x on a logarithmic scale
PANELS = {
    "spectrum": ("principal components", "share of variance", True),
    "mixture": ("mixture components", "held-out NLL (nats/dimension)", False),
    "robustness": ("noise on latents (standard deviations)", "PSNR to clean image (dB)", False),
    "diffusion": ("from t (1 is noise)", "diffusion loss", False),
}


def _draw(
    ax: Any,
    curves: dict[str, Any],
    cards: Mapping[str, pd.DataFrame],
    x_label: str,
    y_label: str,
    log: bool,
) -> None:
    colours = colours_for(cards)
    for (name, (x, y)), marker in zip(curves.items(), MARKERS * len(curves)):
        few = marker if len(x) <= 20 else None
        ax.plot(
            x, y, color=colours[name], marker=few, markersize=4, linewidth=1.4, label=name or None
        )
    if log:
        ax.set_xscale("log")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    finish(ax)


def _draw_table(ax: Any, cards: Mapping[str, pd.DataFrame]) -> None:
    entries = {
        entry: label
        for entry, label in TABLE_ENTRIES.items()
        if any(entry in card.index for card in cards.values())
    }
    cells = [[_number(card, entry) for card in cards.values()] for entry in entries]
    ax.axis("off")
    names = [name or "value" for name in cards]
    table = ax.table(
        cells, rowLabels=list(entries.values()), colLabels=names, loc="center", edges="horizontal"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(0.62 if len(cards) <= CARDS_A_PANEL else 0.85, 1.25)


def _number(card: pd.DataFrame, entry: str) -> str:
    return f"{card['value'][entry]:.3g}" if entry in card.index else ""
