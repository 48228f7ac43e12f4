"""Which entry of a card predicts generation, and does it say more than PSNR does?

Everything here takes one table with a line for each tokenizer and seed: `row` (its name, a rung's
or that of a control such as "control 20 dB"), `seed`, `kind` ("rung" or "control"), `psnr` on test
images, distances of samples with their 95 % intervals (`kid, kid_low, kid_high`, and `kid_gap`
likewise; lower is better), then entries of the cards. Controls are a plain autoencoder stopped
early: together with the whole one, `ae`, they are the curve of what blur alone gives.

An entry survives the control where the interval of its partial correlation excludes 0, on the side
of the raw one, and p is below 0.05. With sixty entries and twenty tokenizers some do by chance: `q`
counts that in. Nothing here tells a cause from what goes along with it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from maetok_lab.analysis.card import FEWEST_RUNS, spearman
from maetok_lab.analysis.definitions import better, measure_of
from maetok_lab.evaluation.metrics import Z95
from maetok_lab.rng import generator

PLAIN = "ae"  # the row of the autoencoder that the controls are stopped states of
SCORES = ("kid", "kid_gap")
# numeric columns that are no entries of cards
BESIDE = {
    "seed",
    "images",
    "psnr",
    "val_psnr",
    *(f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")),
}
# The smallest p is 1e-4, which stays below 0.05 when it is multiplied by the number of entries.
PERMUTATIONS = 10_000
EXPECTED = {"lower": "+", "higher": "-", "": ""}  # sign of a correlation with a distance
ROUNDING = 1e-9  # a correlation's; what is nearer to 1 is 1


# Which entry predicts? ----------------------------------------------------------------------------


def predictors(
    table: pd.DataFrame,
    *,
    score: str = "kid",
    given: str = "psnr",
    entries: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's correlation of each entry with `score` over tokenizers, alone and given `given`.

    partial = (xy - xz yz) / sqrt((1 - xz^2) (1 - yz^2)) of correlations: that of rank residuals.
    Seeds are averaged. low, high: 95 %, bootstrap over tokenizers; p: residuals permuted; q:
    Benjamini-Hochberg. All lines count, controls too. ValueError for too few.
    """
    if entries is None:
        distance = {score, given, f"{score}_low", f"{score}_high"}
        numeric = table.select_dtypes("number").columns
        entries = [name for name in numeric if name not in BESIDE | distance]
    _check_table(table, ["row", "seed", score, given, *entries])

    # an entry's lines are those that have all three numbers, so that they are of the same seeds
    rows = []
    left_out = {}
    for entry in entries:
        lines = table[["row", entry, score, given]].dropna()
        means = lines.groupby("row", sort=False).mean()
        if len(means) < FEWEST_RUNS:
            left_out[entry] = f"of {len(means)} tokenizers, fewer than {FEWEST_RUNS}"
        elif means[entry].nunique() == 1:
            left_out[entry] = "the same for all tokenizers"
        else:
            numbers = _correlation_numbers(means.to_numpy(float).T, resamples, seed)
            rows.append({"entry": entry, **numbers, "tokenizers": len(means)})
    if not rows:
        raise ValueError(
            f"no entry differs over {FEWEST_RUNS} or more tokenizers with {score} and {given}; "
            f"left out: {left_out}"
        )
    result = _with_words(pd.DataFrame(rows).set_index("entry"))

    # rounded: of equally strong ones the order is the table's, not that of their last bits
    strength = result["partial"].abs().round(12).sort_values(ascending=False, kind="stable")
    result = result.reindex(strength.index)
    result.attrs = {
        "score": score,
        "given": given,
        "tokenizers": table["row"].nunique(),
        "seeds": table.groupby("row", sort=False)["seed"].nunique().to_dict(),
        "resamples": resamples,
        "permutations": PERMUTATIONS,
        "left_out": left_out,
    }
    return result


def _with_words(result: pd.DataFrame) -> pd.DataFrame:
    """The entries' numbers with q beside them, the field's word on each, and that of intervals."""
    result["expected"] = [EXPECTED[better(measure_of(entry))] for entry in result.index]
    tested = result["p"].dropna()
    adjusted = stats.false_discovery_control(tested) if len(tested) else []
    result["q"] = pd.Series(adjusted, index=tested.index, dtype=float)

    # of few tokenizers, or an entry that PSNR nearly orders, draws are too alike: p has to agree
    sides = np.sign(result["rank_correlation"])
    result["predicts"] = _words(_beyond_zero(result["low"], result["high"], sides))
    beyond = _beyond_zero(result["partial_low"], result["partial_high"], sides)
    result["survives"] = _words(beyond & (result["p"] < 0.05))
    return result


def _correlation_numbers(values: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Both correlations of rows entry, score, given (3, n), with intervals, and p of the second."""
    count = values.shape[1]
    alone, partial = _correlations(values)
    random = generator(seed, "predictors")
    draws = torch.randint(count, (resamples, count), generator=random).numpy()
    # a draw in which a column is constant, or orders as another does, has none: NaN is skipped
    drawn = pd.DataFrame(np.stack(_correlations(values[:, draws]), axis=1))
    (low, partial_low), (high, partial_high) = drawn.quantile([0.025, 0.975]).to_numpy()
    return {
        "rank_correlation": float(alone),
        "low": low,
        "high": high,
        "partial": float(partial),
        "partial_low": partial_low,
        "partial_high": partial_high,
        "p": _permutation_p(values, float(partial), seed),
    }


def _correlations(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank correlation of x and y, and that given z: rows x, y, z (3, ..., n) -> two of (...)."""
    x, y, z = values
    xy = spearman(x, y)
    xz = spearman(x, z)
    yz = spearman(y, z)
    # nothing is left of what z orders entirely
    variance = np.asarray((1 - xz**2) * (1 - yz**2))
    variance = np.where(variance > ROUNDING, variance, np.nan)
    return xy, (xy - xz * yz) / np.sqrt(variance)


def _permutation_p(values: np.ndarray, partial: float, seed: int) -> float:
    """How often permuted rank residuals correlate as strongly: Freedman and Lane 1983, two-sided.

    values (3, n) as in `_correlations` -> (0, 1], NaN where `partial` is.
    """
    if math.isnan(partial):
        return math.nan
    ranks = stats.rankdata(values, axis=-1)
    x, y, z = ranks - ranks.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z)
    x -= (x @ z) * z
    y -= (y @ z) * z
    # y's residuals in other orders, of which z's part is taken out again
    random = generator(seed, "permutations")
    orders = torch.rand(PERMUTATIONS, len(y), generator=random).argsort(dim=1).numpy()
    permuted = y[orders]
    permuted -= np.outer(permuted @ z, z)
    sizes = np.linalg.norm(permuted, axis=1) * np.linalg.norm(x)
    stronger = np.abs(permuted @ x) >= (abs(partial) - ROUNDING) * sizes
    return float((1 + stronger.sum()) / (1 + PERMUTATIONS))


def _beyond_zero(low: pd.Series, high: pd.Series, sides: pd.Series) -> pd.Series:
    """Whether an interval lies on that side of 0; not where it is NaN."""
    return ((sides > 0) & (low > 0)) | ((sides < 0) & (high < 0))


def _words(holds: pd.Series) -> pd.Series:
    return holds.map({True: "yes", False: "no"})


def _check_table(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise ValueError for a column that is missing, or two lines of one tokenizer and seed."""
    missing = sorted(set(columns) - set(table.columns))
    if missing:
        raise ValueError(
            f"the table needs columns {missing}; it has {sorted(map(str, table.columns))}"
        )
    twice = table[table.duplicated(["row", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise ValueError(
            f"the table has {first['row']!r} with seed {first['seed']} twice; a tokenizer and seed "
            "are one line: keep one of them"
        )


# What blur alone gives ----------------------------------------------------------------------------


def at_equal_psnr(table: pd.DataFrame, *, score: str = "kid") -> pd.DataFrame:
    """Each rung beside the control curve at its PSNR -> index `row`, best first.

    `score`: a distance, or an entry of cards, with intervals from three seeds on. `gain`: control -
    score, turned round where more is better; `low, high` as in `mean_scores`. A seed without
    controls has the mean curve; beyond it gain is NaN. Raises as `mean_scores`.
    """
    lines = _scored_lines(table, score)
    # where more of a measure is better, more is a gain
    sign = -1 if score not in SCORES and better(measure_of(score)) == "higher" else 1
    curves = {seed: own for seed, own in lines[lines["on_curve"]].groupby("seed")}
    mean_curve = mean_scores(table, score=score).query("on_curve")

    # each line beside its seed's curve, then the mean over a rung's seeds
    gains = []
    for line in lines[lines["kind"] == "rung"].to_dict("records"):
        own = curves.get(line["seed"])
        shared = own is None or "control" not in set(own["kind"])
        gain = _gain(line, own, mean_curve if shared else own, shared)
        gain["gain"] *= sign
        gain["gain_over_ae"] *= sign
        gains.append(gain)
    rows = []
    for name, of_seeds in pd.DataFrame(gains).groupby("row", sort=False):
        on_curve = of_seeds.dropna(subset=["gain"])
        rows.append({"row": name, **_mean_gain(of_seeds if on_curve.empty else on_curve)})
    result = pd.DataFrame(rows).set_index("row").sort_values("gain", ascending=False, kind="stable")
    result["verdict"] = [_verdict(line) for line in result.to_dict("records")]
    result.attrs = {"score": score, "left_out": lines.attrs["left_out"]}
    return result


def mean_scores(table: pd.DataFrame, *, score: str = "kid") -> pd.DataFrame:
    """PSNR and score of each tokenizer, a mean over its seeds -> index `row`, columns `kind,
    on_curve, psnr, score, low, high, variance, seeds`, sorted by PSNR.

    The 95 % interval is the wider one of two: that of the mean of independent normals, and, from
    three seeds on, Student's of the spread over seeds. ValueError without controls or `ae`.
    """
    scored = _scored_lines(table, score)
    if "control" not in set(scored["kind"]) or PLAIN not in set(scored["row"]):
        raise ValueError(
            f"the table needs scored rows of kind 'control' and the row {PLAIN!r}; "
            f"it has {sorted(set(scored['row']))}: train the controls first"
        )

    # PSNR and score of a row, and the interval of their mean
    rows = []
    for name, lines in scored.groupby("row", sort=False):
        variance = lines["variance"].sum(skipna=False) / len(lines) ** 2
        mean, low, high = _interval(lines["score"], variance)
        line = {"row": name, "kind": lines["kind"].iloc[0], "on_curve": lines["on_curve"].iloc[0]}
        line |= {"psnr": lines["psnr"].mean(), "score": mean, "low": low, "high": high}
        rows.append({**line, "seeds": len(lines)})
    means = pd.DataFrame(rows).set_index("row").sort_values("psnr", kind="stable")
    means["variance"] = _variance(means["low"], means["high"])
    return means


def _scored_lines(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """Lines that have a score: row, seed, kind, on_curve, psnr, score and its variance, by PSNR."""
    _check_table(table, ["row", "seed", "kind", "psnr", score])
    lines = table[["row", "seed", "kind", "psnr"]].copy()
    lines["score"] = table[score]
    ends = [f"{score}_low", f"{score}_high"]
    has_interval = set(ends) <= set(table.columns)
    lines["variance"] = _variance(*(table[end] for end in ends)) if has_interval else math.nan

    lines = lines.reset_index(drop=True)
    lacking = lines.drop(columns=[] if has_interval else "variance").isna().any(axis=1)
    left_out = lines.loc[lacking, ["row", "seed"]]
    lines = lines[~lacking].copy()
    lines["on_curve"] = (lines["kind"] == "control") | (lines["row"] == PLAIN)
    lines = lines.sort_values("psnr", kind="stable")
    lines.attrs["left_out"] = [tuple(line) for line in left_out.to_numpy().tolist()]
    return lines


def _variance(low: pd.Series, high: pd.Series) -> pd.Series:
    """Of a normal estimate with that 95 % interval."""
    return ((high - low) / (2 * Z95)) ** 2


def _gain(
    line: dict[str, Any], own: pd.DataFrame | None, curve: pd.DataFrame, shared: bool
) -> dict[str, Any]:
    """One line against `curve`, and against the plain autoencoder among its `own` seed's lines."""
    result = {name: line[name] for name in ("row", "psnr", "score")}
    control, control_variance = _curve_at(curve, line["psnr"])
    variance = line["variance"]
    if line["row"] == PLAIN:  # a point of the curve: its own control, without an error between them
        control, control_variance, variance = line["score"], 0.0, 0.0
    result |= {"control": control, "gain": control - line["score"]}
    result["variance"] = variance + (0.0 if shared else control_variance)
    result["shared_error"] = math.sqrt(control_variance) if shared else 0.0

    # no plain one of this seed: NaN
    result |= {"gain_over_ae": math.nan, "ae_variance": math.nan}
    plain = own[own["row"] == PLAIN] if own is not None else ()
    if len(plain):
        between = 0.0 if line["row"] == PLAIN else plain["variance"].iloc[0] + line["variance"]
        result["gain_over_ae"] = plain["score"].iloc[0] - line["score"]
        result["ae_variance"] = between
    return result


def _curve_at(curve: pd.DataFrame, psnr: float) -> tuple[float, float]:
    """Score of a curve sorted by PSNR, linear between its points, and its variance; NaN outside."""
    points = np.arange(len(curve))
    place = np.interp(psnr, curve["psnr"], points, left=math.nan, right=math.nan)
    if math.isnan(place):
        return math.nan, math.nan
    before, after = curve.iloc[math.floor(place)], curve.iloc[math.ceil(place)]
    share = place % 1
    score = (1 - share) * before["score"] + share * after["score"]
    return score, (1 - share) ** 2 * before["variance"] + share**2 * after["variance"]


def _mean_gain(lines: pd.DataFrame) -> dict[str, Any]:
    """Means over the seeds of one rung with their intervals."""
    means = lines[["psnr", "score", "control"]].mean().to_dict()
    # errors of seeds are independent, but that of a curve which several have is one and the same
    variance = lines["variance"].sum(skipna=False) / len(lines) ** 2
    variance += lines["shared_error"].mean() ** 2
    gain, low, high = _interval(lines["gain"], variance)
    plain = lines.dropna(subset=["gain_over_ae"])
    plain_variance = math.nan
    if len(plain):
        plain_variance = plain["ae_variance"].sum(skipna=False) / len(plain) ** 2
    over, over_low, over_high = _interval(plain["gain_over_ae"], plain_variance)
    return {
        **means,
        "gain": gain,
        "low": low,
        "high": high,
        "gain_over_ae": over,
        "gain_over_ae_low": over_low,
        "gain_over_ae_high": over_high,
        "seeds": len(lines),
    }


def _interval(values: pd.Series, variance: float) -> tuple[float, float, float]:
    """The mean over seeds and its 95 % interval: by its variance, or by their spread if wider."""
    mean = float(values.mean())
    margin = Z95 * math.sqrt(variance)
    if len(values) >= 3:
        spread = stats.t.ppf(0.975, len(values) - 1) * values.sem()
        margin = spread if math.isnan(margin) else max(margin, spread)
    return mean, mean - margin, mean + margin


def _verdict(line: dict[str, Any]) -> str:
    """What the intervals of a line of `at_equal_psnr` say."""
    if math.isnan(line["gain"]):
        return "no control"
    if math.isnan(line["low"]):
        return "no interval"
    if line["low"] > 0:
        return "not explained by blur"
    if math.isnan(line["gain_over_ae"]):
        return "no control"
    return "explained by blur" if line["gain_over_ae_low"] > 0 else "no gain"
