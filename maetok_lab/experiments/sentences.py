"""One sentence on what numbers say, for a notebook to print below them."""

import math

import pandas as pd

from maetok_lab.evaluation.protocol import EvalResult
from maetok_lab.experiments.study import CONTROL, rung_of, study_means
from maetok_lab.training.meanings import meaning_of

# What the ending of a row's name adds to its rung.
STAGE_WORDS = {
    "": "",
    "-tuned": " Second stage: its decoder is tuned on real images (section 3.3).",
    "-post": " Second stage: its decoder is tuned on latents that a SiT makes anew (RobusTok).",
}


def against_floor(result: EvalResult, metric: str) -> str:
    """Whether a distance of samples can be told from that of real images in their place.

    Too few images leave a metric without an interval or a floor: the sentence then says so.
    """
    value = result.metrics[metric]
    low, high = result.intervals.get(metric, (math.nan, math.nan))
    floor = result.floor.get(metric, math.nan)
    if math.isnan(low) or math.isnan(floor):
        return f"{metric} is {value:.3f}, without an interval or a floor to hold it against"
    words = f"{metric} is {value:.3f} (95 %: {low:.3f} to {high:.3f}), the floor {floor:.3f}"
    if low > floor:
        return f"{words}: these samples can be told from real images"
    return f"{words}: so many samples cannot be told from real images"


def loss_change(metrics: pd.DataFrame, terms: list[str]) -> str:
    """Each term of a loss at the first log of a training and at the last, and what is left in %.

    metrics: a line a log. A term that begins at 0 or below, as a negative cosine, has no share.
    """
    words = []
    for term in terms:
        first = metrics[term].iloc[0]
        last = metrics[term].iloc[-1]
        share = f" ({last / first:.0%} of it)" if first > 0 else ""
        words.append(f"{term} from {first:.3g} to {last:.3g}{share}")
    return "first log to last: " + "; ".join(words)


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


def row_meaning(row: str) -> str:
    """What a row of the study is: a rung, with or without a second stage, or a control."""
    if CONTROL.fullmatch(row):
        return (
            f"{row} (the control for blur): a plain autoencoder, stopped at the first checkpoint "
            "with that PSNR on validation images."
        )
    rung = rung_of(row)
    return meaning_of(rung) + STAGE_WORDS[row.removeprefix(rung)]
