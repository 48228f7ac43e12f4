"""Figures of a study with controls: scores beside what blur alone gives, and what predicts them."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from maetok_lab.analysis.prediction import mean_scores
from maetok_lab.plots.curves import PALETTE, axes, check_columns, colours_for, drawable, finish

GREY = "0.55"  # what is no better than blur, or does not survive the control
LIFT = 0.17  # of an entry's two dots from their line, in lines
LABEL_GAP = 7  # points between a dot and its name
LABEL_STEP = 4  # points by which a name moves up or down until it is free
REACH = 15  # so many steps at most
DOT = 4  # radius of a dot with its surroundings, in points


def plot_control(table: pd.DataFrame, *, score: str = "kid", ax: Any = None) -> Any:
    """Scores over PSNR, means over seeds with 95 % intervals, and the curve of controls -> Axes.

    `table` is as `at_equal_psnr` takes it. Rungs below the curve, better than blur alone, have
    their colour; those on it or above it are grey, and open beyond its ends.
    """
    means = mean_scores(table, score=score)
    curve = means[means["on_curve"]]
    points = means[~means["on_curve"]]

    # what blur alone gives, from the first stop to the whole autoencoder
    ax = axes(ax, size=(7.2, 5.0))
    label = "autoencoder stopped early"
    ax.fill_between(curve["psnr"], curve["low"], curve["high"], color="0.88", linewidth=0)
    ax.plot(curve["psnr"], curve["score"], "o-", color=GREY, markersize=4, label=label)
    ends = {"left": np.nan, "right": np.nan}
    control = np.interp(points["psnr"], curve["psnr"], curve["score"], **ends)
    colours = colours_for(points.index[points["score"] < control])
    beyond = set(points.index[np.isnan(control)])
    for name, point in points.iterrows():
        colour = colours.get(name, GREY)
        face = "white" if name in beyond else colour
        ax.plot([point["psnr"]] * 2, [point["low"], point["high"]], color=colour, linewidth=0.9)
        ax.plot(point["psnr"], point["score"], "o", c=colour, markerfacecolor=face, markersize=6)

    # the legend's dots are of no rung
    if len(colours) + len(beyond) < len(points):
        ax.plot([], [], "o", color=GREY, markersize=6, label="no better than that")
    if beyond:
        face = {"markerfacecolor": "white", "markersize": 6}
        ax.plot([], [], "o", color=GREY, label="PSNR without a control", **face)
    ax.set_xlabel("PSNR on test images (dB)")
    ax.set_ylabel(f"{score.replace('_', ' ')} of samples (smaller is better)")
    named = pd.concat([points, curve[curve["kind"] == "rung"]])
    _name_points(ax, named, curve, {name: colours.get(name, "0.35") for name in named.index})
    return _legend_above(finish(ax))


def _name_points(
    ax: Any, points: pd.DataFrame, curve: pd.DataFrame, colours: dict[str, str]
) -> None:
    """Each point's name beside it, moved up or down until it meets no name, dot, bar or curve."""
    from matplotlib.transforms import Bbox

    # sizes in pixels need the final axes; a name is held off its dot in points
    ax.figure.draw_without_rendering()
    pixels = ax.figure.dpi / 72
    frame = ax.get_window_extent()
    occupied = []
    for _, point in points.iterrows():
        for low, high, radius in (("score", "score", DOT), ("low", "high", 1)):
            ends = [(point["psnr"], point[low]), (point["psnr"], point[high])]
            occupied.append(Bbox(ax.transData.transform(ends)).padded(radius * pixels))
    for spot in ax.transData.transform(_along(curve)):
        occupied.append(Bbox([spot, spot]).padded(pixels))

    for name, point in points.sort_values("score").iterrows():
        style = {"fontsize": 8, "color": colours[name], "va": "center"}
        place = (point["psnr"], point["score"])
        text = ax.annotate(drawable(name), place, (0, 0), textcoords="offset points", **style)
        box = text.get_window_extent()
        for steps, side in itertools.product(_outwards(REACH), (1, -1)):
            # on the left of its dot the name ends there
            x = LABEL_GAP if side > 0 else -LABEL_GAP - box.width / pixels
            y = steps * LABEL_STEP
            moved = box.translated(x * pixels, y * pixels)
            inside = frame.x0 <= moved.x0 and moved.x1 <= frame.x1
            if inside and not moved.count_overlaps(occupied):
                break
        text.set_position((x, y))
        occupied.append(moved.padded(pixels))
        if abs(steps) > 2:  # no longer beside its dot: a thin line leads there
            line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 0}
            end = (side * LABEL_GAP, y)
            ax.annotate("", place, end, textcoords="offset points", arrowprops=line)


def _along(curve: pd.DataFrame) -> np.ndarray:
    """Close points of a curve, (n, 2)."""
    psnr = np.linspace(curve["psnr"].min(), curve["psnr"].max(), 100)
    return np.stack([psnr, np.interp(psnr, curve["psnr"], curve["score"])], axis=1)


def _outwards(count: int) -> list[int]:
    """0, 1, -1, 2, -2, ... to count."""
    steps = [0]
    for number in range(1, count + 1):
        steps += [number, -number]
    return steps


def plot_predictors(predictors: pd.DataFrame, *, top: int = 14, ax: Any = None) -> Any:
    """Rank correlation of each entry with the score, alone (open) and given PSNR (filled), with
    95 % intervals; the `top` strongest of `predictors` -> Axes.

    Colour is of entries that survive the control.
    """
    alone = ["rank_correlation", "low", "high"]
    check_columns(predictors, [*alone, "partial", "partial_low", "partial_high", "survives"])
    strongest = predictors.head(top)
    given = predictors.attrs["given"].replace("psnr", "PSNR")
    ax = axes(ax, size=(6.4, 1.1 + 0.31 * len(strongest)))
    ax.axvline(0, color="0.3", linewidth=0.8)
    for line, (_, entry) in enumerate(strongest.iterrows()):
        colour = PALETTE[0] if entry["survives"] == "yes" else GREY
        dots = {"markersize": 6, "color": colour}
        bars = {"color": colour, "linewidth": 1.2}
        ax.plot([entry["low"], entry["high"]], [line - LIFT] * 2, alpha=0.5, **bars)
        ax.plot(entry["rank_correlation"], line - LIFT, "o", markerfacecolor="white", **dots)
        ax.plot([entry["partial_low"], entry["partial_high"]], [line + LIFT] * 2, **bars)
        ax.plot(entry["partial"], line + LIFT, "o", **dots)

    # the legend's dots are of no entry
    legend = [("alone", PALETTE[0], "white"), (f"given {given}", PALETTE[0], PALETTE[0])]
    if (strongest["survives"] != "yes").any():
        legend.append(("does not survive", GREY, GREY))
    for label, colour, face in legend:
        ax.plot([], [], "o", color=colour, markerfacecolor=face, markersize=6, label=label)
    ax.set_yticks(range(len(strongest)), [drawable(name) for name in strongest.index], fontsize=9)
    ax.set_ylim(len(strongest) - 0.4, -0.6)
    ax.set_xlim(-1.03, 1.03)
    ax.set_xlabel(f"rank correlation with {predictors.attrs['score'].replace('_', ' ')}")
    return _legend_above(finish(ax))


def _legend_above(ax: Any) -> Any:
    """The legend in one line above the axes, where it hides no point -> ax."""
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
    ax.legend(ncols=3, frameon=False, fontsize="small", **place)
    return ax
