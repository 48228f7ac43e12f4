"""Lines over training steps, and the colours that all line plots share."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

# Okabe and Ito 2008: told apart with any kind of colour vision; black last
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
# the ladder's rungs keep their colour in every figure, whichever of them are shown
RUNGS = {"ae": 0, "kl": 4, "ae-mask": 5, "hog": 2, "semantic": 3, "all": 1}
MARKERS = "osD^vP*X"


def colours_for(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: a ladder rung's own (also as part of a name, `tokenizer-hog-s0`), else the next free
    one."""
    names = list(dict.fromkeys(map(str, names)))
    fixed = {name: RUNGS[rung] for name in names if (rung := _rung(name)) is not None}
    free = [index for index in range(len(PALETTE)) if index not in fixed.values()] or list(
        range(len(PALETTE))
    )
    others = [name for name in names if name not in fixed]
    chosen = fixed | {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: PALETTE[chosen[name]] for name in names}


def _rung(name: str) -> str | None:
    words = name.lower().replace("_", "-")
    found = [rung for rung in RUNGS if f"-{rung}-" in f"-{words}-"]
    return max(found, key=len) if found else None


def plot_losses(
    metrics: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    x: str = "step",
    log: bool = False,
    ax: Any = None,
) -> Any:
    """Losses over training steps (or images, or hours): one colour a column, train solid and other splits dashed ->
    Axes.

    `metrics` is `Run.metrics()`; `columns` default to `loss` and every `loss/...`. Raises ValueError for a column that
    is not there or nothing to draw.
    """
    columns = _loss_columns(metrics) if columns is None else list(columns)
    missing = [name for name in [x, *columns] if name not in metrics]
    if missing or not columns:
        raise ValueError(
            f"no column {missing or 'named loss'} in the metrics; they have {sorted(metrics.columns)}"
        )
    ax = axes(ax)
    splits = (
        metrics["split"].fillna("train")
        if "split" in metrics
        else pd.Series("train", index=metrics.index)
    )
    names = sorted(splits.unique(), key=lambda name: (name != "train", name))
    for name, colour in colours_for(columns).items():
        for split, line in zip(names, ("-", "--", ":", "-.")):
            rows = metrics[(splits == split) & metrics[name].notna()].sort_values(x)
            if len(rows):
                label = name if len(names) == 1 else f"{name}, {split}"
                few = "o" if len(rows) <= 20 else None
                ax.plot(
                    rows[x],
                    rows[name],
                    line,
                    color=colour,
                    label=label,
                    marker=few,
                    markersize=3,
                    linewidth=1.3,
                )
    ax.set_xlabel(
        {"step": "training step", "images": "training images seen", "hours": "hours"}.get(x, x)
    )
    ax.set_ylabel("loss" if len(columns) > 1 else columns[0])
    if log:
        ax.set_yscale("log")
    return finish(ax)


def axes(ax: Any = None, *, size: tuple[float, float] = (5.2, 3.6)) -> Any:
    """`ax`, or the axes of a new figure of `size` inches. Raises ImportError where matplotlib is not installed."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as problem:
        raise ImportError(
            "figures need matplotlib: pip install 'maetok-lab[notebooks]'"
        ) from problem
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def finish(ax: Any) -> Any:
    """Quiet frame and grid, and a legend where lines have names -> ax."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    if len(ax.get_legend_handles_labels()[1]) > 0:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _loss_columns(metrics: pd.DataFrame) -> list[str]:
    return [name for name in metrics.columns if name == "loss" or str(name).startswith("loss/")]
