"""The study of rivals as tables: numbers of every row, the control, which measure predicts.

    python benchmarks/study.py                    # the study that comes with the library
    python benchmarks/study.py --results runs     # your own rows of notebooks/11_study_row.toml
    python benchmarks/study.py --results runs --ship   # write them to data/study.csv
    python benchmarks/study.py --picture docs/study.png

Nothing is trained here.
"""

import argparse

import pandas as pd
from matplotlib.figure import Figure

from maetok_lab.analysis.prediction import at_equal_psnr, mean_scores, predictors
from maetok_lab.experiments.ladder import Ladder, markdown
from maetok_lab.experiments.study import STUDIES, ship_study, study_table
from maetok_lab.plots.study import plot_control

SCORES = ("kid", "kid_gap")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", choices=STUDIES, help="the size of everything")
    parser.add_argument("--results", default="shipped", choices=["shipped", "runs", "both"])
    parser.add_argument("--runs", help="folder of the runs; runs/ beside the library by default")
    parser.add_argument("--picture", help="a PNG of both distances against PSNR, with the control")
    parser.add_argument("--ship", action="store_true", help="write the rows to data/study.csv")
    options = parser.parse_args(arguments)
    study = STUDIES[options.preset]
    images = Ladder(options.preset).images["train"].fingerprint
    table = study_table(study, images, results=options.results, root=options.runs)
    if options.ship:
        ship_study(table, study, images)
    if options.picture:
        draw(table).savefig(options.picture, dpi=110)

    for protocol in sorted(set(table["protocol"])):
        print(protocol)
    print("\n" + as_text(numbers_of(table)))
    for score in SCORES:
        print(f"\n{score} at equal PSNR:\n\n" + as_text(at_equal(table, score)))
    rungs = table[table["kind"] == "rung"]
    for score in SCORES:
        print(f"\nWhat predicts {score}:\n\n" + as_text(predicting(rungs, score)))


def draw(table: pd.DataFrame) -> Figure:
    """Both distances side by side, each with the control's curve."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    for ax, score in zip(figure.subplots(1, len(SCORES)), SCORES):
        plot_control(table, score=score, ax=ax)
    return figure


def numbers_of(table: pd.DataFrame) -> pd.DataFrame:
    """PSNR, both distances with their intervals and some entries: means over seeds, by PSNR."""
    entries = ["probe_top1", "gmm_nll_50", "diffusion_loss", "viv"]
    means = table.groupby("row", sort=False)[[name for name in entries if name in table]].mean()
    columns = {}
    for score in SCORES:
        scores = mean_scores(table, score=score)
        columns["PSNR, dB"] = scores["psnr"].map("{:.2f}".format)
        columns["seeds"] = scores["seeds"].astype(str)
        columns[f"{score} (95 %)"] = interval(scores, "score", "low", "high")
    result = pd.DataFrame(columns).join(means.map("{:.3f}".format))
    return result.sort_values("PSNR, dB", key=pd.to_numeric)


def at_equal(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """Gains over the control curve and over the plain autoencoder, with verdicts."""
    gains = at_equal_psnr(table, score=score)
    over_ae = ("gain_over_ae", "gain_over_ae_low", "gain_over_ae_high")
    columns = {
        "gain at equal PSNR (95 %)": interval(gains, "gain", "low", "high"),
        "gain over ae (95 %)": interval(gains, *over_ae),
        "seeds": gains["seeds"].astype(str),
        "verdict": gains["verdict"],
    }
    return pd.DataFrame(columns)


def predicting(rungs: pd.DataFrame, score: str) -> pd.DataFrame:
    """The entries that go along with a score most, given PSNR."""
    entries = predictors(rungs, score=score).head(12)
    columns = {
        "rank correlation (95 %)": interval(entries, "rank_correlation", "low", "high"),
        "given PSNR (95 %)": interval(entries, "partial", "partial_low", "partial_high"),
        "q": entries["q"].map("{:.3f}".format),
        "expected": entries["expected"],
        "survives": entries["survives"],
    }
    return pd.DataFrame(columns)


def interval(table: pd.DataFrame, value: str, low: str, high: str) -> pd.Series:
    """Three columns as "0.602 (0.570 to 0.634)"."""
    texts = []
    for line in table[[value, low, high]].itertuples(index=False):
        texts.append("{:.3f} ({:.3f} to {:.3f})".format(*line))
    return pd.Series(texts, index=table.index)


def as_text(table: pd.DataFrame) -> str:
    """A table for a page's text, its index as code in front."""
    index = table.index.map("`{}`".format)
    return markdown(table.set_axis(index.rename(table.index.name or "row")).reset_index(), {})


if __name__ == "__main__":
    main()
