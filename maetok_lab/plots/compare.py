"""Several tokenizers on one figure, as in figures 2b, 5a, 5b and 8 of the paper."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from maetok_lab.plots.curves import (
    MARKERS,
    X_LABELS,
    Tables,
    axes,
    check_columns,
    colours_for,
    finish,
)


def plot_loss_curves(
    metrics: Tables, *, column: str = "loss", smooth: int = 1, ax: Any = None
) -> Any:
    """One training loss over steps for each run, as in figure 2b -> Axes.

    `metrics` are `Run.metrics("train")` by name; `smooth` is the number of logged values that are
    averaged. Raises ValueError for a run without the column.
    """
    lacking = [name for name, table in metrics.items() if column not in table]
    if lacking or not metrics:
        raise ValueError(
            f"no column {column!r} in the metrics of {lacking or 'any run: there are none'}"
        )
    ax = axes(ax)
    for name, colour in colours_for(metrics).items():
        steps = metrics[name]["step"]
        # the mean of the last `smooth` values; the first ones have fewer before them
        values = metrics[name][column].rolling(smooth, min_periods=1).mean()
        ax.plot(steps, values, color=colour, linewidth=1.3, label=name)
    ax.set_xlabel("training step of the diffusion model")
    ax.set_ylabel("diffusion loss")
    return finish(ax)


def plot_against(
    table: pd.DataFrame, x: str, y: str, *, labels: Mapping[str, str] | None = None, ax: Any = None
) -> Any:
    """One point a row of `table` (its index names it), column `y` over `x`: figure 5a -> Axes.

    `labels` give the axes other words than the columns. Raises ValueError for a column that is not
    there.
    """
    check_columns(table, [x, y])
    labels = labels or {}
    # a rung keeps the colour that it has in the figures of curves
    ax = axes(ax)
    colours = colours_for(table.index)
    for (row, point), marker in zip(table.iterrows(), MARKERS * len(table)):
        style = {"color": colours[str(row)], "markersize": 7, "label": str(row)}
        ax.plot(point[x], point[y], marker, **style)
    ax.set_xlabel(labels.get(x, x))
    ax.set_ylabel(labels.get(y, y))
    return finish(ax)


def plot_convergence(tables: Tables, *, column: str = "kid", ax: Any = None) -> Any:
    """A kernel distance of samples over images seen in training, with 95 % intervals, a curve a
    tokenizer: figure 5b -> Axes.

    `tables` are results of `convergence_table` by name. Raises ValueError for a table without the
    column.
    """
    ends = [f"{column}_low", f"{column}_high"]
    ax = axes(ax)
    curves = zip(colours_for(tables).items(), MARKERS * len(tables))
    for (name, colour), marker in curves:
        table = tables[name]
        check_columns(table, ["images", column, *ends])
        ax.plot(
            table["images"], table[column], marker, ls="-", color=colour, markersize=4, label=name
        )
        ax.vlines(table["images"], table[ends[0]], table[ends[1]], color=colour, linewidth=1)
    ax.set_xlabel(X_LABELS["images"])
    ax.set_ylabel(f"{column.replace('_', ' ')} of samples (smaller is better)")
    return finish(ax)


def plot_mean_norms(tables: Tables, *, ax: Any = None) -> Any:
    """Largest norm of a mode's mean for each number of modes: figure 8 -> Axes.

    `tables` are results of `gmm_curve` by name. Where the norms are alike for all latents, only the
    number of modes is left to tell them apart (the paper's reading).
    """
    if not tables:
        raise ValueError("no tables to draw")
    ax = axes(ax)
    counts = np.unique(pd.concat(tables.values())["components"])
    # bars of one count of modes stand side by side around its tick, 0.8 wide together
    width = 0.8 / len(tables)
    for position, (name, colour) in enumerate(colours_for(tables).items()):
        norms = tables[name].set_index("components")["max_mean_norm"]
        offset = (position - (len(tables) - 1) / 2) * width
        places = np.searchsorted(counts, norms.index) + offset
        ax.bar(places, norms, width, color=colour, label=name)
    ax.set_xticks(range(len(counts)), counts)
    ax.set_xlabel("mixture components")
    ax.set_ylabel("largest mean's norm (standard deviations)")
    return finish(ax)
