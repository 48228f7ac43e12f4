"""What a notebook's numbers say, in one sentence each: computed, so that it is true of any run."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

ERRORS = 2.0  # standard errors within which two accuracies are not told apart
PART = 0.1  # of a training, over which a loss is averaged at its beginning and its end


def probe_sentence(
    top1: float, error: float, majority: float, pixels: float, *, subject: str = "the latents"
) -> str:
    """How well a linear probe (`top1` with its standard error) reads categories.

    Beside it stand always guessing the commonest one, `majority`, and a probe of small `pixels`.
    """
    difference = top1 - pixels
    verdict = f"within two standard errors of small pixels ({pixels:.1%})"
    if abs(difference) > ERRORS * error:
        word = "above" if difference > 0 else "below"
        verdict = f"more than two standard errors {word} small pixels ({pixels:.1%})"
    return (
        f"{subject} tell the category of unseen names in {top1:.1%} of cases, "
        f"{top1 / majority:.1f} times the commonest category's share, {verdict}"
    )


def nll_sentence(curve: pd.DataFrame, *, subject: str = "unseen latents") -> str:
    """How many of a curve's numbers of Gaussians describe held-out latents best.

    `curve` is of `gmm_curve`.
    """
    rows = curve.set_index("components")["heldout_nll"].dropna()
    if rows.empty:
        return "there were no held-out latents"
    best = int(rows.idxmin())
    if best == rows.index[0]:
        return f"no more Gaussians than {best} describe {subject} better: no modes can be told"
    first = rows.index[0]
    dimensions = int(curve["dimensions"].iloc[0])
    gain = rows[first] - rows[best]
    return (
        f"{best} Gaussians describe {subject} best of these: {rows[best]:.1f} nats an image, "
        f"{gain:.1f} less than {first} ({gain / dimensions:.2f} a dimension)"
    )


def losses_sentence(metrics: pd.DataFrame, columns: Sequence[str]) -> str:
    """By how much losses fell from the first tenth of a training's records to the last."""
    falls = {}
    parts = []
    for column in columns:
        values = metrics[column].dropna()
        count = max(1, round(PART * len(values)))
        fall = 1 - values.iloc[-count:].mean() / values.iloc[:count].mean()
        falls[column] = fall
        parts.append(f"{column} {'fell' if fall >= 0 else 'rose'} by {abs(fall):.0%}")
    sentence = f"from the first tenth to the last {', '.join(parts)}"
    if len(falls) > 1:
        sentence += f"; {max(falls, key=falls.get)} fell most"
    return sentence


def scores_sentence(samples: float, reconstructions: float, floor: float) -> str:
    """Whether the tokenizer or the diffusion model is behind a distance to test images.

    KID of samples and of reconstructions to them, and the floor that real images have.
    """
    share = (reconstructions - floor) / (samples - floor)
    sentence = (
        f"samples are {samples:.3f} from the test images, reconstructions {reconstructions:.3f}, "
        f"real images {floor:.3f}: "
    )
    if not math.isfinite(share) or samples <= floor:
        return sentence + "the samples are no further than real images, as far as KID tells"
    if share >= 1:
        return sentence + "the diffusion model adds nothing that KID sees"
    return sentence + f"{share:.0%} of that distance is there before any diffusion model"


def sweep_sentence(kid: pd.Series, intervals: Mapping[float, tuple[float, float]]) -> str:
    """The guidance scale (the index) of the smallest KID, and those not told apart from it."""
    best = float(kid.idxmin())
    low, high = intervals[best]
    near = []
    for scale, (start, end) in intervals.items():
        if scale != best and start <= high and low <= end:
            near.append(f"{scale:g}")
    if not near:
        return f"scale {best:g} has the smallest KID, {kid[best]:.3f}, and no interval overlaps its"
    return (
        f"scale {best:g} has the smallest KID, {kid[best]:.3f}; "
        f"not told apart from it, their intervals overlapping: {', '.join(near)}"
    )
