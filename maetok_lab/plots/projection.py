"""Two-dimensional maps of latents, coloured by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from maetok_lab.plots.curves import CLASS_COLOURS, MARKERS, axes, class_colours, drawable

METHODS = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
# how far a map can be trusted: entries of its `quality`
QUALITIES = {
    "trustworthiness": "trustworthiness",
    "knn_accuracy": "kNN",
    "silhouette": "silhouette",
}


def plot_projection(
    frame: pd.DataFrame,
    *,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    legend: int = 20,
    ax: Any = None,
) -> Any:
    """A map of `project` (columns x, y), a colour and marker a class, its quality below -> Axes.

    `labels` (n,) default to the frame's `label`; at most `legend` classes are named. Raises
    ValueError when labels and rows differ in number or a label has no name.
    """
    if labels is None:
        labels = frame.get("label", np.zeros(len(frame), int))
    labels = np.asarray(labels)
    if len(labels) != len(frame):
        raise ValueError(f"{len(labels)} labels for {len(frame)} rows")
    classes = np.unique(labels)
    if class_names is None:
        class_names = {index: f"class {index}" for index in classes}
    elif (label := classes.max()) >= len(class_names):
        raise ValueError(f"label {label} has no name among the {len(class_names)} class names")

    # many points are drawn smaller, so that they do not hide each other
    ax = axes(ax, size=(5.6, 4.4))
    size = min(max(6000 / len(frame), 4), 28)
    points = {}
    colours = class_colours(classes.max() + 1)
    for index in classes:
        rows = frame[labels == index]
        # beyond 12 classes colours are close to each other: they have other markers too
        marker = MARKERS[index // len(CLASS_COLOURS) % len(MARKERS)]
        style = {"s": size, "color": colours[index], "marker": marker, "alpha": 0.65}
        name = drawable(class_names[index])
        points[name] = ax.scatter(rows["x"], rows["y"], linewidths=0, **style)
    if 1 < len(classes) <= legend:
        # beside the map, so that it hides no point
        outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        look = {"frameon": False, "fontsize": "small", "markerscale": 2.2, "handletextpad": 0.2}
        ax.legend(points.values(), points, **look, **outside)

    # a map has no units: name the method and drop the ticks
    settings = frame.attrs.get("settings", {})
    method = METHODS.get(settings.get("method"), "map")
    ax.set_xlabel(f"{method} 1 (no unit)" + quality_line(frame))
    ax.set_ylabel(f"{method} 2 (no unit)")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def quality_line(frame: pd.DataFrame) -> str:
    """How far the map can be trusted, on a line of its own; empty where it was not measured."""
    quality = frame.attrs.get("quality", {})
    numbers = []
    for entry, title in QUALITIES.items():
        if quality.get(entry) is not None:
            numbers.append(f"{title} {quality[entry]:.2f}")
    if not numbers:
        return ""
    return f"\n{', '.join(numbers)}; {len(frame)} images"
