"""Results of a sweep: quality against speed, a surface over two settings, a gallery of pictures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maetok_lab.plots.curves import MARKERS, axes, check_columns, colours_for, finish, new_figure


def pareto_front(
    table: pd.DataFrame, *, quality: str, speed: str, larger_is_better: bool = False
) -> pd.Series:
    """The rows that no other row beats in quality without being slower.

    -> bool, one a row; rows without both numbers are False
    """
    numbers = table[[quality, speed]].apply(pd.to_numeric, errors="coerce")
    if larger_is_better:
        numbers[quality] *= -1
    # from the fastest row on, a row is on the front if it is better than all faster ones
    numbers = numbers.dropna().sort_values([speed, quality], ascending=[False, True])
    best_before = numbers[quality].cummin().shift()
    better = numbers[quality] < best_before.fillna(math.inf)
    front = pd.Series(False, index=table.index)
    front[numbers.index[better]] = True
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
    """Quality against speed, a point a row, and the Pareto front as a line, its rows named -> Axes.

    Points have one colour a value of the column `color`. Raises ValueError for a column that is
    not there or no numbers.
    """
    groups = {"": table}
    check_columns(table, [quality, speed])
    if color is not None:
        check_columns(table, [color])
        values = table[color].astype(str)
        groups = dict(list(table.groupby(values, sort=False)))
    # rows that failed or still run have no numbers, and no point either
    front = pareto_front(table, quality=quality, speed=speed, larger_is_better=larger_is_better)
    if not front.any():
        raise ValueError(f"no row has both {quality} and {speed}")

    # the front as steps: between two of its rows nothing is both faster and better
    ax = axes(ax)
    edge = table[front].sort_values(speed)
    line = {"where": "pre", "color": "0.6", "linewidth": 1.2, "zorder": 1}
    ax.step(edge[speed], edge[quality], **line)
    colours = colours_for(groups)
    for (name, rows), marker in zip(groups.items(), MARKERS * len(groups)):
        style = {"s": 26, "color": colours[name], "marker": marker}
        if color is not None:
            style["label"] = f"{color} {name}"
        ax.scatter(rows[speed], rows[quality], **style)
    words = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": "x-small"}
    for row, point in edge.iterrows():
        ax.annotate(str(row), tuple(point[[speed, quality]]), **words)

    direction = "larger" if larger_is_better else "smaller"
    ax.set_xlabel(speed.replace("_", " ") + " (larger is better)")
    ax.set_ylabel(quality.replace("_", " ") + f" ({direction} is better)")
    return finish(ax)


def plot_surface(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    value: str,
    larger_is_better: bool = False,
    ax: Any = None,
) -> Any:
    """`value` over two settings as a heat map, the best cell framed -> Axes.

    A cell shows the best over all other settings. Raises ValueError for a column that is not there.
    """
    check_columns(table, (x, y, value))
    best = "max" if larger_is_better else "min"
    cells = table.pivot_table(index=y, columns=x, values=value, aggfunc=best)
    cells = cells.sort_index(ascending=False)
    numbers = cells.to_numpy(float)
    ax = axes(ax)
    # better cells are brighter, whichever direction is better
    colours = "cividis" if larger_is_better else "cividis_r"
    image = ax.imshow(numbers, cmap=colours, aspect="auto")
    ax.set_xticks(range(len(cells.columns)), _tick_labels(cells.columns))
    ax.set_yticks(range(len(cells)), _tick_labels(cells.index))

    # each cell's number, white on dark cells and black on bright ones
    low, high = image.get_clim()
    for (row, column), number in np.ndenumerate(numbers):
        if np.isnan(number):
            continue
        dark = (number - low) / max(high - low, 1e-12) > 0.5
        shade = "white" if dark != larger_is_better else "black"
        style = {"ha": "center", "va": "center", "fontsize": "small", "color": shade}
        ax.text(column, row, f"{number:.3g}", **style)

    # a bold frame on the best cell
    flat = np.nanargmax(numbers) if larger_is_better else np.nanargmin(numbers)
    row, column = np.unravel_index(flat, numbers.shape)
    _frame_cell(ax, column, row)
    ax.set_xlabel(x.replace("_", " "))
    ax.set_ylabel(y.replace("_", " "))
    ax.figure.colorbar(image, ax=ax, label=value.replace("_", " "))
    return ax


def _tick_labels(settings: pd.Index) -> list[str]:
    return [f"{setting:g}" if isinstance(setting, float) else str(setting) for setting in settings]


def _frame_cell(ax: Any, column: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    style = {"fill": False, "edgecolor": "#D55E00", "linewidth": 2.5}
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **style))


def plot_gallery(pictures: Mapping[str, Path], *, columns: int = 4) -> Any:
    """Pictures on disk side by side, each under its name -> Figure.

    Raises ValueError without pictures.
    """
    if not pictures:
        raise ValueError("no pictures to show")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = new_figure(3.0 * columns, 3.2 * rows)
    from matplotlib.image import imread  # after the figure, whose error names the extra

    for position, (name, path) in enumerate(pictures.items(), start=1):
        ax = figure.add_subplot(rows, columns, position)
        ax.imshow(imread(path), interpolation="antialiased")
        # names are a sweep's settings: a dollar sign is no formula
        ax.set_title(name, fontsize="x-small", parse_math=False)
        ax.set_axis_off()
    return figure
