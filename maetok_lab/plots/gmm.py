"""Mixture NLL against the number of components: the paper's figure 2a for one's own latents."""

import math
from typing import Any

import pandas as pd
import torch

from maetok_lab.analysis.mixture import Mixture
from maetok_lab.analysis.modes import PlaneMixtures
from maetok_lab.data.latents import spread_rows
from maetok_lab.plots.curves import MARKERS, PALETTE, Tables, axes, colours_for, finish, new_figure

MOST_POINTS = 20_000  # of the plane that are drawn


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


def plot_modes(modes: PlaneMixtures, tables: pd.DataFrame | Tables) -> Any:
    """Latents on a plane with mixtures as ellipses, then `plot_gmm_curve` of `tables` -> Figure.

    The title of a panel is the held-out NLL there: what the curve counts in all its dimensions.
    """
    # the panels of the plane, and a wider one for the curve
    names = 0.0 if isinstance(tables, pd.DataFrame) else 2.4
    figure = new_figure(2.7 * len(modes.mixtures) + 4.2 + names, 3.4)
    ratios = [1.0] * len(modes.mixtures) + [1.35]
    panels = figure.subplots(1, len(ratios), width_ratios=ratios)
    points = modes.points.cpu()
    # a square around all points but a few
    low, high = points.quantile(torch.tensor([0.002, 0.998], dtype=points.dtype), dim=0)
    half = 0.6 * float((high - low).max())
    across, down = ((float(middle) - half, float(middle) + half) for middle in (low + high) / 2)
    points = points[spread_rows(len(points), MOST_POINTS)]
    for ax, (count, mixture) in zip(panels, modes.mixtures.items()):
        size = min(max(6000 / len(points), 1.5), 12)
        ax.scatter(points[:, 0], points[:, 1], s=size, color="0.6", alpha=0.5, linewidths=0)
        draw_ellipses(ax, mixture)
        ax.set(xlim=across, ylim=down, xticks=[], yticks=[], aspect="equal")
        noun = "Gaussian" if count == 1 else "Gaussians"
        title = f"{count} {noun}: {modes.heldout_nll[count]:.3f} nats"
        ax.set_title(title, fontsize="medium")
    panels[0].set_xlabel(f"2 axes, {modes.explained:.0%} of the variance")
    ax = plot_gmm_curve(tables, ax=panels[-1])
    if not isinstance(tables, pd.DataFrame):
        # names are long: they stand beside the curves
        ax.get_legend().set_loc("upper left")
        ax.get_legend().set_bbox_to_anchor((1.0, 1.0))
        tables = next(iter(tables.values()))
    ax.set_title(f"the same in {tables['dimensions'].max()} dimensions", fontsize="medium")
    return figure


def draw_ellipses(ax: Any, mixture: Mixture) -> None:
    """One and two standard deviations of each Gaussian, the stronger the larger its weight."""
    from matplotlib.patches import Ellipse

    heaviest = float(mixture.weights.max())
    for weight, mean, variances in zip(mixture.weights, mixture.means, mixture.variances):
        strength = math.sqrt(float(weight) / heaviest)
        for deviations in (1, 2):
            width, height = (2 * deviations * variances.sqrt()).tolist()
            style = {"facecolor": "none", "edgecolor": PALETTE[0], "linewidth": 1.6 / deviations}
            ellipse = Ellipse(mean.tolist(), width, height, alpha=0.3 + 0.7 * strength, **style)
            ax.add_patch(ellipse)
