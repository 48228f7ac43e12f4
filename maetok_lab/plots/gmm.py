"""Mixture NLL against the number of components: the paper's figure 2a for one's own latents."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from maetok_lab.plots.curves import MARKERS, axes, colours_for, finish


def plot_gmm_curve(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    per_dimension: bool = False,
    ax: Any = None,
) -> Any:
    """NLL over components, held-out solid and training dotted, one colour for each of the latents -> Axes.

    `tables` is a result of `gmm_curve`, or several by name. Lower means that fewer modes describe the latents as well.
    Raises ValueError for tables with different numbers of dimensions unless `per_dimension`: their NLL are not
    comparable.
    """
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    if not tables:
        raise ValueError("no tables to draw")
    dimensions = {name: int(table["dimensions"].iloc[0]) for name, table in tables.items()}
    if len(set(dimensions.values())) > 1 and not per_dimension:
        raise ValueError(
            f"latents must be compared at one number of dimensions, not {dimensions}; use common_dimensions, "
            "or per_dimension=True"
        )
    ax = axes(ax)
    colours = colours_for(tables)
    for (name, table), marker in zip(tables.items(), MARKERS * len(tables)):
        scale = table["dimensions"] if per_dimension else 1
        style = {"color": colours[name], "marker": marker, "markersize": 4, "linewidth": 1.4}
        prefix = f"{name}, " if name else ""
        if table["heldout_nll"].notna().any():
            ax.plot(
                table["components"],
                table["heldout_nll"] / scale,
                "-",
                label=f"{prefix}held-out",
                **style,
            )
        hollow = style | {"markerfacecolor": "none", "linewidth": 0.9}
        ax.plot(
            table["components"], table["train_nll"] / scale, ":", label=f"{prefix}train", **hollow
        )
    shown = ", ".join(sorted({str(number) for number in dimensions.values()}, key=int))
    ax.set_xlabel("mixture components")
    ax.set_ylabel(
        f"NLL (nats per {'image and dimension' if per_dimension else 'image'}, {shown} dimensions)"
    )
    return finish(ax)
