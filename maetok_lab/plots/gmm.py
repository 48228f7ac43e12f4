"""Mixture NLL against the number of components: the paper's figure 2a for one's own latents."""

from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, Tables, axes, colours_for, finish


def plot_gmm_curve(tables: pd.DataFrame | Tables, *, ax: Any = None) -> Any:
    """NLL over components, held-out solid and training dotted, a colour for each latents -> Axes.

    `tables` is a result of `gmm_curve`, or several by name. Lower means that fewer modes describe
    the latents as well. Raises ValueError for tables with different numbers of dimensions: their
    NLL are not comparable.
    """
    if isinstance(tables, pd.DataFrame):
        tables = {"": tables}
    if not tables:
        raise ValueError("no tables to draw")
    dimensions = {name: int(table["dimensions"].max()) for name, table in tables.items()}
    counts = sorted(set(dimensions.values()))
    if len(counts) > 1:
        raise ValueError(
            f"latents must be compared at one number of dimensions, not {dimensions}; "
            "use common_dimensions"
        )
    # one table alone has no name: its lines say only which images they are of
    ax = axes(ax)
    colours = colours_for(tables)
    for (name, table), marker in zip(tables.items(), MARKERS * len(tables)):
        components = table["components"]
        style = {"color": colours[name], "marker": marker, "markersize": 4, "linewidth": 1.4}
        prefix = f"{name}, " if name else ""
        if table["heldout_nll"].notna().any():
            ax.plot(components, table["heldout_nll"], label=f"{prefix}held-out", **style)
        # the training NLL always falls with more modes: drawn hollow and thin, to compare with
        style |= {"markerfacecolor": "none", "linewidth": 0.9, "linestyle": ":"}
        ax.plot(components, table["train_nll"], label=f"{prefix}train", **style)
    # the label says at how many dimensions the NLL was taken
    ax.set_xlabel("mixture components")
    ax.set_ylabel(f"NLL (nats per image, {counts[0]} dimensions)")
    return finish(ax)
