"""Several tokenizers on one figure: loss curves (the paper's 2b), probe against generation (5a), spread of modes (8)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, axes, colours_for, finish


def plot_loss_curves(
    metrics: Mapping[str, pd.DataFrame], *, column: str = "loss", smooth: int = 1, ax: Any = None
) -> Any:
    """One training loss over steps for each run: `metrics` are `Run.metrics("train")` by name -> Axes.

    `smooth` is the number of logged values that are averaged. Raises ValueError for a run without the column.
    """
    lacking = [name for name, table in metrics.items() if column not in table]
    if lacking or not metrics:
        raise ValueError(
            f"no column {column!r} in the metrics of {lacking or 'any run: there are none'}"
        )
    ax = axes(ax)
    colours = colours_for(metrics)
    for name, table in metrics.items():
        values = table[column].rolling(smooth, min_periods=1).mean()
        ax.plot(table["step"], values, color=colours[name], linewidth=1.3, label=name)
    ax.set_xlabel("training step of the diffusion model")
    ax.set_ylabel("diffusion loss")
    return finish(ax)


def plot_against(
    table: pd.DataFrame, x: str, y: str, *, labels: Mapping[str, str] | None = None, ax: Any = None
) -> Any:
    """One point a row of `table` (its index names it), column `y` over column `x`: figure 5a -> Axes.

    `labels` give the axes other words than the columns. Raises ValueError for a column that is not there.
    """
    missing = [name for name in (x, y) if name not in table]
    if missing:
        raise ValueError(f"no column {missing}; the table has {sorted(map(str, table.columns))}")
    ax = axes(ax)
    colours = colours_for(table.index)
    for name, marker in zip(table.index, MARKERS * len(table)):
        point = table.loc[name]
        ax.plot(point[x], point[y], marker, color=colours[str(name)], markersize=7, label=str(name))
    ax.set_xlabel((labels or {}).get(x, x))
    ax.set_ylabel((labels or {}).get(y, y))
    return finish(ax)


def plot_mean_norms(tables: Mapping[str, pd.DataFrame], *, ax: Any = None) -> Any:
    """Largest norm of a mode's mean for each number of modes, from `gmm_curve` tables by name: figure 8 -> Axes.

    Where these are alike for all latents, only the number of modes is left to tell them apart (the paper's reading).
    """
    if not tables:
        raise ValueError("no tables to draw")
    ax = axes(ax)
    colours, width = colours_for(tables), 0.8 / len(tables)
    counts = sorted({int(count) for table in tables.values() for count in table["components"]})
    for position, (name, table) in enumerate(tables.items()):
        norms = table.set_index("components")["max_mean_norm"]
        places = [
            counts.index(count) + (position - (len(tables) - 1) / 2) * width
            for count in norms.index
        ]
        ax.bar(places, norms, width, color=colours[name], label=name)
    ax.set_xticks(range(len(counts)), counts)
    ax.set_xlabel("mixture components")
    ax.set_ylabel("largest mean's norm (standard deviations)")
    return finish(ax)
