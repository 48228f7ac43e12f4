"""The theory's toy: how the samples needed grow with the number of modes."""

from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, PALETTE, axes, finish


def plot_sample_complexity(table: pd.DataFrame, *, ax: Any = None) -> Any:
    """Error of the learned means over samples, one line a number of modes K, with the target -> Axes.

    `table` is a result of `sample_complexity`; rings mark where each line crosses the target.
    """
    ax = axes(ax)
    target = table.attrs["settings"]["target"]
    groups = list(table.groupby("components"))
    for i, (components, part) in enumerate(groups):
        style = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4,
        }
        ax.plot(part["samples"], part["error"], linewidth=1.4, label=f"{components} modes", **style)
        ax.plot(
            table.attrs["needed"][components],
            target,
            "o",
            markersize=9,
            markerfacecolor="none",
            color=style["color"],
        )
    ax.axhline(target, color="0.4", linewidth=0.8, linestyle="--")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(
        f"training samples (needed grow as modes to the power {table.attrs['exponent']:.1f})"
    )
    ax.set_ylabel("worst mean's error (standard deviations)")
    return finish(ax)
