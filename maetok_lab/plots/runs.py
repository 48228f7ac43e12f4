"""One logged number of several runs on one pair of axes."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from maetok_lab.plots.curves import axes, colours_for, finish


def plot_run_lines(
    lines: Mapping[str, pd.DataFrame], column: str, *, log: bool = False, ax: Any = None
) -> Any:
    """`loss_lines` of a column, one colour a run -> Axes"""
    ax = axes(ax)
    for name, colour in colours_for(lines).items():
        few = "o" if len(lines[name]) <= 20 else None
        ax.plot(
            lines[name]["step"],
            lines[name][column],
            color=colour,
            label=name,
            marker=few,
            markersize=3,
            linewidth=1.3,
        )
    ax.set_xlabel("training step")
    ax.set_ylabel(column)
    if log:
        ax.set_yscale("log")
    return finish(ax)
