"""Guidance, on a line: the velocities it is made of, and where samples end."""

from typing import Any

import torch

from maetok_lab.analysis.guidance import SPOT, GuidanceToy
from maetok_lab.plots.curves import PALETTE, finish, new_figure

MOVE = 0.22  # of time that an arrow goes
PLAIN = "0.35"  # the velocity without a label
CLASS, GUIDED, _, OTHER = PALETTE[:4]
RIGHT = 3.6  # where histograms end, with room for a legend


def plot_guidance(toy: GuidanceToy) -> Any:
    """Ways from noise with the velocities at one place, and a histogram a scale -> Figure."""
    figure = new_figure(10.6, 4.3)
    cells = figure.add_gridspec(len(toy.samples), 2, width_ratios=(1.0, 1.1))
    plot_velocities(toy, ax=figure.add_subplot(cells[:, 0]))
    first = None
    for row, scale in enumerate(toy.samples):
        ax = figure.add_subplot(cells[row, 1], sharex=first)
        first = first or ax
        plot_guided_samples(toy, scale, ax=ax)
        ax.tick_params(labelbottom=row == len(toy.samples) - 1)
    ax.set_xlabel("x")
    return figure


def plot_velocities(toy: GuidanceToy, *, ax: Any) -> Any:
    """Unguided ways of the first class, and three velocities as arrows -> Axes"""
    ax.plot(toy.times, toy.ways, color="0.85", linewidth=0.7, zorder=1)
    time, place = SPOT
    scale = max(toy.samples)
    arrows = {
        "without label": (toy.unconditional, PLAIN),
        "with label": (toy.conditional, CLASS),
        f"guided, scale {scale:g}": (toy.guided, GUIDED),
    }
    # time runs down to 0: where a velocity leads in that time
    for name, (velocity, colour) in arrows.items():
        end = (time - MOVE, place - MOVE * velocity)
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", end, (time, place), arrowprops=style, zorder=3)
        ax.annotate(name, end, (5, 0), textcoords="offset points", color=colour, va="center")
    # what is added: the difference of the first two, as often as the scale says
    ends = [place - MOVE * toy.unconditional, place - MOVE * toy.guided]
    ax.plot([time - MOVE] * 2, ends, color=GUIDED, linestyle=":", linewidth=1.5, zorder=2)
    ax.plot(time, place, "o", color="black", markersize=5, zorder=4)
    ax.set_xlim(1, 0)
    ax.set_xlabel("t (1 is noise, 0 is data)")
    ax.set_ylabel("x")
    return finish(ax)


def plot_guided_samples(toy: GuidanceToy, scale: float, *, ax: Any) -> Any:
    """A histogram of the samples at one scale over the densities of both classes -> Axes"""
    values = toy.samples[scale]
    # 60 bars over all that any scale drew
    every = torch.cat([*toy.samples.values()])
    edges = torch.linspace(float(every.min()) - 0.1, RIGHT, 61)
    ax.hist(values.tolist(), edges.tolist(), density=True, color=GUIDED, alpha=0.45)
    x = torch.linspace(float(edges[0]), float(edges[-1]), 300, dtype=torch.float64)
    names = {0: ("the class", CLASS, "-"), 1: ("the other class", OTHER, "--")}
    for label, (name, colour, dashes) in names.items():
        density = toy.model.density(label, x)
        ax.plot(x, density, color=colour, linestyle=dashes, linewidth=1.4, label=name)
    ax.set_title(f"samples at scale {scale:g}", fontsize="medium", loc="left")
    ax.set_ylabel("density")
    finish(ax)
    # one legend for all, beside the curves
    ax.get_legend().set_loc("upper right")
    ax.get_legend().set_visible(scale == next(iter(toy.samples)))
    return ax
