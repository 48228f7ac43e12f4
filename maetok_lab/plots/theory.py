"""The theory's toy: how the samples needed grow with the number of modes."""

from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, PALETTE, axes, finish


def plot_sample_complexity(table: pd.DataFrame, *, ax: Any = None) -> Any:
    """Error of the learned means over samples, one line a number of modes K -> Axes.

    `table` is a result of `sample_complexity`; rings mark where each line crosses the target.
    """
    ax = axes(ax)
    target = table.attrs["settings"]["target"]
    for i, (components, rows) in enumerate(table.groupby("components")):
        colour = PALETTE[i % len(PALETTE)]
        line = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "linewidth": 1.4}
        label = f"{components} modes"
        ax.plot(rows["samples"], rows["error"], color=colour, label=label, **line)
        # a ring: the samples that K modes need
        needed = table.attrs["needed"][components]
        ax.plot(needed, target, "o", color=colour, markersize=9, markerfacecolor="none")
    ax.axhline(target, color="0.4", linewidth=0.8, linestyle="--")
    # the error falls as a power of the samples: straight lines on these scales
    ax.set_xscale("log")
    ax.set_yscale("log")
    exponent = table.attrs["exponent"]
    ax.set_xlabel(f"training samples (needed grow as modes to the power {exponent:.1f})")
    ax.set_ylabel("worst mean's error (standard deviations)")
    return finish(ax)
