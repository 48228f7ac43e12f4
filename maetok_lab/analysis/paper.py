"""What the paper reports for the ladder, and whether one's own numbers are in the paper's order."""

import pandas as pd

# Chen et al., Masked Autoencoders Are Effective Tokenizers for Diffusion Models (ICML 2025): ImageNet at 256 px, 128 tokens of
# 32 channels, tokenizers of 250,000 steps, SiT-L of 400,000 without guidance. rFID, gFID, and the table they stand in.
PAPER = {
    "ae": (0.67, 24.47, "Table 1a"),
    "kl": (1.22, 22.17, "Table 1a"),
    "ae-mask": (1.15, 17.18, "Table 6, no auxiliary decoder"),
    "hog": (2.43, 13.54, "Table 1b"),
    "semantic": (0.89, 6.24, "Table 1b, DINOv2"),
    "all": (0.85, 5.78, "Table 1b"),
    "all, tuned": (0.48, 5.69, "Table 1a"),
}
# column: what it is called in a sentence, and whether more is better; the paper says that the masked model is better in all
CLAIMS = {
    "nll": ("mixture NLL per image", False),
    "probe_top1": ("linear probe", True),
    "diffusion_loss": ("loss of the diffusion model", False),
    "kid": ("kernel distance of samples", False),
}


def paper_table() -> pd.DataFrame:
    """The paper's numbers by rung: columns rFID (paper), gFID (paper), from."""
    return pd.DataFrame(PAPER, index=["rFID (paper)", "gFID (paper)", "from"]).T.rename_axis("row")


def claims_checked(table: pd.DataFrame, better: str, worse: str) -> pd.DataFrame:
    """Whether row `better` beats row `worse` in every column of `CLAIMS`, over seeds.

    `table` has a line a row and seed, with columns row, seed and those of `CLAIMS` -> one line a claim: both means, in how
    many seeds the paper's order holds, and a sentence. Only seeds that both rows have are counted. Raises ValueError where
    there is none.
    """
    sides = [table[table["row"] == name].set_index("seed") for name in (better, worse)]
    seeds = sorted(set(sides[0].index) & set(sides[1].index))
    if not seeds:
        raise ValueError(f"no seed has both {better!r} and {worse!r}")
    lines = []
    for column, (name, more) in CLAIMS.items():
        ours, theirs = (side.loc[seeds, column].astype(float) for side in sides)
        agreeing = int(((ours > theirs) if more else (ours < theirs)).sum())
        words = "as in the paper" if agreeing == len(seeds) else "not the paper's order" if agreeing == 0 else "mixed"
        says = f"{name}: {better} {ours.mean():.4g}, {worse} {theirs.mean():.4g}; {words} ({agreeing} of {len(seeds)} seeds)"
        lines.append({"claim": column, better: ours.mean(), worse: theirs.mean(), "seeds": len(seeds), "agree": agreeing,
                      "sentence": says})  # fmt: skip
    return pd.DataFrame(lines).set_index("claim")


def order_by(table: pd.DataFrame, column: str) -> list[str]:
    """The rows of a table, best mean over seeds first, by a column of `CLAIMS`."""
    means = table.groupby("row")[column].mean()
    return list(means.sort_values(ascending=not CLAIMS[column][1], kind="stable").index)
