"""The diffusability card as one figure, and several cards side by side on the same axes."""

import itertools
import textwrap
from typing import Any

import pandas as pd

from maetok_lab.plots.curves import FEW_POINTS, MARKERS, Tables, colours_for, finish, new_figure

# title: x label, y label, x on a logarithmic scale
PANELS = {
    "spectrum": ("principal components", "share of variance", True),
    "mixture": ("mixture components", "held-out NLL (nats/dimension)", False),
    "robustness": ("noise on latents (standard deviations)", "PSNR to clean image (dB)", False),
    "diffusion": ("from t (1 is noise)", "diffusion loss", False),
    "learned": ("t (1 is noise)", "loss below the linear denoiser's (%)", False),
}
# title: a curve of the card that is a list of rows, and the entries of a row that are x and y
CURVES = {
    "mixture": ("gmm", "components", "heldout_nll_per_dim"),
    "robustness": ("robustness", "noise", "psnr"),
}
# single numbers of a card that its table shows, in this order
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
    "viv": "VIV",
    "diffusion_loss": "diffusion loss",
}
COLUMNS = 3  # panels beside each other
CARDS_A_PANEL = 3  # columns of the table of numbers that are readable in a panel's width
LOSS_PREFIX = "diffusion_loss/t"  # entries of the diffusion loss in one bin of t
Curve = tuple[list[float], list[float]]  # x, y


def plot_card(cards: pd.DataFrame | Tables) -> Any:
    """One or several cards on one figure: four panels of curves, and numbers -> Figure.

    `cards` is a result of `diffusability_card`, or several by name, one colour each. Panels that no
    card has data for are left out. Raises ValueError without cards, ImportError without matplotlib.
    """
    if isinstance(cards, pd.DataFrame):
        cards = {"": cards}
    if not cards:
        raise ValueError("no cards to draw")
    panels = {}
    for title in PANELS:
        curves = {name: card_curve(card, title) for name, card in cards.items()}
        if any(curves.values()):
            panels[title] = curves

    # the table goes to the right of the last panel, or below where that is too narrow for it
    columns = min(COLUMNS, len(panels) + 1)
    line, column = divmod(len(panels), columns)
    if column and columns - column < len(cards) / CARDS_A_PANEL:
        line += 1
        column = 0

    # one axes for each panel, the last one for the table
    figure = new_figure(3.7 * columns, 3.1 * (line + 1))
    grid = figure.add_gridspec(line + 1, columns)
    for position, (title, curves) in enumerate(panels.items()):
        ax = figure.add_subplot(grid[divmod(position, columns)])
        _draw_panel(ax, title, curves)
    _draw_table(figure.add_subplot(grid[line, column:]), cards)
    return figure


def card_curve(card: pd.DataFrame, title: str) -> Curve | None:
    """x and y of one of the `PANELS` of a card, or None if it has none."""
    curves = card.attrs.get("curves", {})
    if title == "spectrum" and curves.get("spectrum"):
        # share of the variance that the first k components hold, k from 1 on
        total = sum(curves["spectrum"])
        shares = [value / total for value in itertools.accumulate(curves["spectrum"])]
        return list(range(1, len(shares) + 1)), shares
    if title in CURVES:
        curve, x, y = CURVES[title]
        if curves.get(curve):
            rows = pd.DataFrame(curves[curve])
            return rows[x].tolist(), rows[y].tolist()
    if title == "diffusion":
        # the card has no list of these: one entry for each bin of t, named by where it starts
        bins = [entry for entry in card.index if entry.startswith(LOSS_PREFIX)]
        if bins:
            starts = [float(entry.removeprefix(LOSS_PREFIX)) for entry in bins]
            return starts, card["value"][bins].tolist()
    if title == "learned":
        rows = [row for row in curves.get("denoisers", []) if row["denoiser"] == "model"]
        if rows:
            return [row["t"] for row in rows], [100 * row["gain"] for row in rows]
    return None


def _draw_panel(ax: Any, title: str, curves: dict[str, Curve | None]) -> None:
    """The curves of one panel, by the card's name; a card without this curve has no line."""
    # colours belong to all cards, so that a card has the same one in every panel
    colours = colours_for(curves)
    markers = itertools.cycle(MARKERS)
    for name, curve in curves.items():
        if not curve:
            continue
        style = {"color": colours[name], "marker": next(markers), "markersize": 4}
        if len(curve[0]) > FEW_POINTS:
            style["marker"] = None
        ax.plot(*curve, label=name or None, linewidth=1.4, **style)
    x_label, y_label, log = PANELS[title]
    if log:
        ax.set_xscale("log")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    finish(ax)


def _draw_table(ax: Any, cards: Tables) -> None:
    """A row for each entry that some card has, a column for each card."""
    labels = []
    cells = []
    for entry, label in TABLE_ENTRIES.items():
        numbers = []
        for card in cards.values():
            numbers.append(f"{card['value'][entry]:.3g}" if entry in card.index else "")
        if any(numbers):
            labels.append(label)
            cells.append(numbers)
    # one card alone has no name
    ax.axis("off")
    # two long names do not fit beside each other
    names = [textwrap.fill(name or "value", 11, break_long_words=False) for name in cards]
    table = ax.table(cells, rowLabels=labels, colLabels=names, loc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    # the row labels stand left of the table: it leaves them room, more beside a panel
    table.scale(0.62 if len(cards) <= CARDS_A_PANEL else 0.85, 1.25)
    lines = max(name.count("\n") + 1 for name in names)
    for column in range(len(names)):
        table[0, column].set_height(lines * table[1, column].get_height())
