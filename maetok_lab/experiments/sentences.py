"""One sentence on what numbers say, for a notebook to print below them."""

import pandas as pd

from maetok_lab.evaluation.protocol import EvalResult
from maetok_lab.experiments.study import study_means


def against_floor(result: EvalResult, metric: str) -> str:
    """Whether a distance of samples can be told from that of real images in their place.

    ValueError for a metric without an interval and a floor, as a share or a PSNR has none.
    """
    if metric not in result.intervals or metric not in result.floor:
        raise ValueError(
            f"{metric!r} has no interval and floor here; those that have both: "
            f"{sorted(set(result.intervals) & set(result.floor)) or 'none'}"
        )
    low, high = result.intervals[metric]
    floor = result.floor[metric]
    value = result.metrics[metric]
    words = f"{metric} is {value:.3f} (95 %: {low:.3f} to {high:.3f}), the floor {floor:.3f}"
    if low > floor:
        return f"{words}: these samples can be told from real images"
    return f"{words}: so many samples cannot be told from real images"


def loss_left(metrics: pd.DataFrame, terms: list[str]) -> str:
    """What is left of each term of a loss at the end of a training, in % of its first value.

    metrics: a line a log. A term that begins at 0, or is not there at first, is left out.
    """
    words = []
    for term in terms:
        values = metrics[term]
        if values.iloc[0] > 0:
            words.append(f"{term} {values.iloc[-1] / values.iloc[0]:.0%}")
    return "left at the end, in parts of the first value: " + (", ".join(words) or "nothing")


def beside_study(row: str) -> str:
    """What the study that comes with the library measured of a row, if it has it."""
    means = study_means()
    if row not in means.index:
        return f"the study that comes with the library has no row {row}"
    line = means.loc[row]
    return (
        f"{row} in the study that comes with the library (preset tiny, seeds: "
        f"{line['seeds']:.0f}): psnr {line['psnr']:.4g}, kid {line['kid']:.3g}, "
        f"kid_gap {line['kid_gap']:.3g}"
    )
