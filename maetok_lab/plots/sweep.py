"""Results of a sweep: quality against speed with the front that nothing beats, a surface over two settings, a gallery."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, axes, colours_for, finish


def pareto_front(
    table: pd.DataFrame, *, quality: str, speed: str, larger_is_better: bool = False
) -> pd.Series:
    """Which rows no other row beats in quality without being slower. -> bool, one a row; rows without numbers are False"""
    known = table[[quality, speed]].apply(pd.to_numeric, errors="coerce").dropna()
    known = known.assign(**{quality: known[quality] * (-1 if larger_is_better else 1)})
    front = pd.Series(False, index=table.index)
    best = math.inf
    for row, (value, _) in known.sort_values([speed, quality], ascending=[False, True])[
        [quality, speed]
    ].iterrows():
        if value < best:
            front[row], best = True, value
    return front


def plot_pareto(
    table: pd.DataFrame,
    *,
    quality: str,
    speed: str,
    larger_is_better: bool = False,
    color: str | None = None,
    ax: Any = None,
) -> Any:
    """Quality against speed, a point a row, with the Pareto front as a line and its rows named -> Axes.

    Points have one colour a value of the column `color`. Raises ValueError for a column that is not there or no numbers.
    """
    missing = [name for name in (quality, speed, color) if name is not None and name not in table]
    if missing:
        raise ValueError(f"no column {missing} in the table; it has {list(table.columns)}")
    front = pareto_front(table, quality=quality, speed=speed, larger_is_better=larger_is_better)
    if not front.any():
        raise ValueError(f"no row has both {quality} and {speed}")
    ax = axes(ax)
    edge = table[front].sort_values(speed)
    ax.step(edge[speed], edge[quality], where="pre", color="0.6", linewidth=1.2, zorder=1)
    groups = (
        {"": table}
        if color is None
        else dict(list(table.groupby(table[color].astype(str), sort=False)))
    )
    for (name, colour), marker in zip(colours_for(groups).items(), MARKERS * len(groups)):
        rows = groups[name]
        ax.scatter(
            rows[speed],
            rows[quality],
            s=26,
            color=colour,
            marker=marker,
            label=f"{color} {name}" if name else None,
        )
    for row in edge.index:
        place = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": "x-small"}
        ax.annotate(str(row), (edge[speed][row], edge[quality][row]), **place)
    ax.set_xlabel(speed.replace("_", " ") + " (larger is better)")
    ax.set_ylabel(
        quality.replace("_", " ")
        + (" (larger is better)" if larger_is_better else " (smaller is better)")
    )
    return finish(ax)


def plot_surface(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    value: str,
    larger_is_better: bool = False,
    label: str | None = None,
    ax: Any = None,
) -> Any:
    """`value` over two settings as a heat map, the best of the other settings in each cell, the best cell framed -> Axes.

    Raises ValueError for a column that is not there.
    """
    missing = [name for name in (x, y, value) if name not in table]
    if missing:
        raise ValueError(f"no column {missing} in the table; it has {list(table.columns)}")
    best = "max" if larger_is_better else "min"
    cells = table.pivot_table(index=y, columns=x, values=value, aggfunc=best).sort_index(
        ascending=False
    )
    ax = axes(ax)
    image = ax.imshow(
        cells.to_numpy(float), cmap="cividis" if larger_is_better else "cividis_r", aspect="auto"
    )
    ax.set_xticks(
        range(cells.shape[1]),
        [f"{name:g}" if isinstance(name, float) else str(name) for name in cells.columns],
    )
    ax.set_yticks(
        range(cells.shape[0]),
        [f"{name:g}" if isinstance(name, float) else str(name) for name in cells.index],
    )
    row, column = divmod(
        int((-cells if larger_is_better else cells).fillna(math.inf).to_numpy(float).argmin()),
        cells.shape[1],
    )
    low, high = image.get_clim()
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            number = cells.iloc[i, j]
            if pd.isna(number):
                continue
            dark = (number - low) / max(high - low, 1e-12) > 0.5
            shade = "white" if dark != larger_is_better else "black"
            ax.text(j, i, f"{number:.3g}", ha="center", va="center", fontsize="small", color=shade)
    ax.add_patch(_frame(column, row))
    ax.set_xlabel(x.replace("_", " "))
    ax.set_ylabel(y.replace("_", " "))
    ax.figure.colorbar(image, ax=ax, label=label or value.replace("_", " "))
    return ax


def plot_gallery(pictures: Mapping[str, Path], *, columns: int = 4) -> Any:
    """Pictures on disk side by side, each under its name -> Figure. Raises ValueError without pictures."""
    if not pictures:
        raise ValueError("no pictures to show")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = axes(None, size=(3.0 * columns, 3.2 * rows)).figure
    figure.clear()
    from matplotlib.image import imread

    for position, (name, path) in enumerate(pictures.items(), start=1):
        ax = figure.add_subplot(rows, columns, position)
        ax.imshow(imread(path), interpolation="antialiased")
        ax.set_title(name, fontsize="x-small", parse_math=False)
        ax.set_axis_off()
    return figure


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5
    )
