"""What the paper reports for the ladder, and whether one's own numbers are in the paper's order;
what others report of tokenizers, and how well one measure predicts another there.
"""

import pandas as pd

from maetok_lab.analysis.card import rank_correlation
from maetok_lab.tokenizer.registry import published_results as published_results  # its room
from maetok_lab.tokenizer.registry import read_table, study_results

# Chen et al., Masked Autoencoders Are Effective Tokenizers for Diffusion Models (ICML 2025):
# ImageNet at 256 px, 128 tokens of 32 channels, tokenizers of 250,000 steps, SiT-L of 400,000
# without guidance. rFID, gFID, and the table they stand in.
PAPER = {
    "ae": (0.67, 24.47, "Table 1a"),
    "kl": (1.22, 22.17, "Table 1a"),
    "ae-mask": (1.15, 17.18, "Table 6, no auxiliary decoder"),
    "hog": (2.43, 13.54, "Table 1b"),
    "semantic": (0.89, 6.24, "Table 1b, DINOv2"),
    "all": (0.85, 5.78, "Table 1b"),
    "all, tuned": (0.48, 5.69, "Table 1a"),
}
# Columns of `study_table` in which the masked model should be better: whether more is better.
CLAIMS = {
    "probe_top1": True,
    "diffusion_loss": False,
    "kid": False,
    "kid_gap": False,  # not in the paper: its claim about samples, without what the decoder loses
}


def paper_table() -> pd.DataFrame:
    """The paper's numbers by rung: columns rFID (paper), gFID (paper), from."""
    return pd.DataFrame(PAPER, index=["rFID (paper)", "gFID (paper)", "from"]).T.rename_axis("row")


def claims_checked(
    table: pd.DataFrame, better: str, worse: str, *, nll: str = "gmm_nll_50"
) -> pd.DataFrame:
    """Whether row `better` beats `worse` in column `nll` and those of `CLAIMS`, over their seeds.

    `table` has a line a row and seed: columns row, seed and these. -> one line a claim: both means,
    the number of seeds, and in how many of them `better` is better (agree). Raises ValueError where
    no seed has both.
    """
    first = table[table["row"] == better].set_index("seed")
    second = table[table["row"] == worse].set_index("seed")
    seeds = first.index.intersection(second.index).sort_values()
    if not len(seeds):
        raise ValueError(
            f"no seed has both {better!r} and {worse!r}; "
            f"the table has rows {sorted(set(table['row']))}"
        )
    lines = []
    for column, more_is_better in {nll: False, **CLAIMS}.items():
        # seed by seed: both rows saw the same images in the same order
        gain = first.loc[seeds, column] - second.loc[seeds, column]
        agree = int((gain > 0).sum() if more_is_better else (gain < 0).sum())
        means = [float(side.loc[seeds, column].mean()) for side in (first, second)]
        lines.append([column, *means, len(seeds), agree])
    columns = ["claim", better, worse, "seeds", "agree"]
    return pd.DataFrame(lines, columns=columns).set_index("claim")


def published_correlation(model: str = "SiT-XL", *, seed: int = 0) -> pd.DataFrame:
    """How well each published measure of a tokenizer ranks the gFID of a `model` trained on it.

    Over the tokenizers of one study, all on ImageNet at 256 px -> index measure, columns rho
    (Spearman), low, high (95 %), tokenizers; `card_correlation` takes it as `published`.
    """
    table = study_results(model)
    rows = []
    for measure in table.columns.drop("gfid"):
        pairs = table[[measure, "gfid"]].dropna()
        rho, low, high = rank_correlation(
            pairs[measure].to_numpy(), pairs["gfid"].to_numpy(), seed=seed
        )
        rows.append([measure, rho, low, high, len(pairs)])
    columns = ["measure", "rho", "low", "high", "tokenizers"]
    return pd.DataFrame(rows, columns=columns).set_index("measure")


def published_predictors() -> pd.DataFrame:
    """|r| of measures with gFID over 43 tokenizers in the study of the field (2606.03578).

    -> a line a measure and model: measure, model, abs_r, tokenizers, among, note, source, address.
    """
    return read_table("published_correlations")
