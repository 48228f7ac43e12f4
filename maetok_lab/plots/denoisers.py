"""What linear denoisers, mixtures and a diffusion model tell of velocities, by time."""

from typing import Any

import pandas as pd

from maetok_lab.plots.curves import PALETTE, Tables, finish, new_figure

LINES = {  # of denoisers that have a name of their own; mixtures get shades
    "linear": {"color": "0.25", "linestyle": "--", "linewidth": 1.6, "zorder": 3},
    "model": {"color": PALETTE[1], "linewidth": 2.2, "marker": "o", "markersize": 4, "zorder": 4},
}
LABELS = {"linear": "linear, knows class means", "model": "diffusion model"}


def plot_denoisers(tables: Tables) -> Any:
    """Loss over time of every denoiser, a panel for each table, on one scale -> Figure.

    `tables` are results of `denoiser_losses`, or cards, by name. Raises ValueError where a card has
    none.
    """
    losses = {name: _losses(name, table) for name, table in tables.items()}
    figure = new_figure(4.6 * len(losses), 3.7)
    panels = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    for ax, (name, table) in zip(panels, losses.items()):
        _draw(ax, table)
        ax.set_title(name)
    panels[0].set_ylabel("velocity loss on test latents")
    # one legend for all, where the curves of the last panel leave room
    panels[-1].legend(fontsize=8, frameon=False)
    return figure


def _losses(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table of losses, or that of a card."""
    if "denoiser" in table:
        return table
    rows = table.attrs.get("curves", {}).get("denoisers")
    if not rows:
        raise ValueError(f"the card {name} has no losses of denoisers; make it anew")
    return pd.DataFrame(rows)


def _draw(ax: Any, table: pd.DataFrame) -> None:
    """One panel: mixtures from light to dark, then what they are beside."""
    groups = dict(list(table.groupby("denoiser", sort=False)))
    mixtures = [name for name in groups if name not in LINES]
    for name, rows in groups.items():
        style = LINES.get(name)
        if style is None:
            share = (mixtures.index(name) + 1) / len(mixtures)
            style = {"color": PALETTE[0], "alpha": 0.25 + 0.75 * share, "linewidth": 1.2}
        ax.plot(rows["t"], rows["loss"], label=LABELS.get(name, name), **style)
    ax.set_xlabel("t (1 is noise)")
    finish(ax)
    if ax.get_legend():
        ax.get_legend().remove()
