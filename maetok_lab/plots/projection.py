"""Two-dimensional maps of latents, coloured by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from maetok_lab.plots.curves import MARKERS, PALETTE, axes


def plot_projection(
    frame: pd.DataFrame,
    *,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    legend: int = 20,
    ax: Any = None,
) -> Any:
    """A map of `project` (columns x, y), one colour and marker a class; its quality numbers below -> Axes.

    `labels` (n,) default to the frame's `label`; at most `legend` classes are named. Beyond 8 classes colours repeat
    with another marker. Raises ValueError when labels and rows differ in number or a label has no name.
    """
    labels = frame["label"] if labels is None and "label" in frame else labels
    labels = np.zeros(len(frame), dtype=int) if labels is None else np.asarray(labels)
    if len(labels) != len(frame):
        raise ValueError(f"{len(labels)} labels for {len(frame)} rows")
    present = np.unique(labels)
    if class_names is not None and int(present.max()) >= len(class_names):
        raise ValueError(
            f"label {int(present.max())} has no name among the {len(class_names)} class names"
        )
    ax = axes(ax, size=(5.6, 4.4))
    size = float(np.clip(6000 / max(len(frame), 1), 4, 28))
    shown = {}
    for index in present:
        rows = frame[labels == index]
        style = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": MARKERS[index // len(PALETTE) % len(MARKERS)],
        }
        name = class_names[index] if class_names is not None else f"class {index}"
        shown[name] = ax.scatter(rows["x"], rows["y"], s=size, alpha=0.65, linewidths=0, **style)
    if 1 < len(present) <= legend:
        outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        ax.legend(
            shown.values(),
            shown,
            frameon=False,
            fontsize="small",
            markerscale=2.2,
            handletextpad=0.2,
            **outside,
        )
    return _describe(ax, frame)


def _describe(ax: Any, frame: pd.DataFrame) -> Any:
    """A map has no units: name the method, drop the ticks, and print how far the picture can be trusted."""
    method = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}.get(
        frame.attrs.get("settings", {}).get("method"), "map"
    )
    quality = frame.attrs.get("quality", {})
    names = {
        "trustworthiness": "trustworthiness",
        "knn_accuracy": "kNN",
        "silhouette": "silhouette",
    }
    numbers = [
        f"{title} {quality[name]:.2f}"
        for name, title in names.items()
        if quality.get(name) is not None
    ]
    ax.set_xlabel(
        f"{method} 1 (no unit)"
        + (f"\n{', '.join(numbers)}; {len(frame)} images" if numbers else "")
    )
    ax.set_ylabel(f"{method} 2 (no unit)")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)
    return ax
