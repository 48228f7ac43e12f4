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
# column: what it is called in a sentence, and whether more is better. The paper says that the masked model is better in all
# but the last, which is its claim about generation without what the decoder loses.
CLAIMS = {
    "nll": ("mixture NLL per image", False),
    "probe_top1": ("linear probe", True),
    "diffusion_loss": ("loss of the diffusion model", False),
    "kid": ("kernel distance of samples", False),
    "kid_gap": ("kernel distance of samples to the tokenizer's own reconstructions", False),
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
        words = (
            "as in the paper"
            if agreeing == len(seeds)
            else "not the paper's order"
            if agreeing == 0
            else "mixed"
        )
        says = f"{name}: {better} {ours.mean():.4g}, {worse} {theirs.mean():.4g}; {words} ({agreeing} of {len(seeds)} seeds)"
        lines.append(
            {
                "claim": column,
                better: ours.mean(),
                worse: theirs.mean(),
                "seeds": len(seeds),
                "agree": agreeing,
                "sentence": says,
            }
        )
    return pd.DataFrame(lines).set_index("claim")


def control_verdict(
    table: pd.DataFrame, better: str, control: str, *, plain: str = "ae"
) -> list[str]:
    """What an equal-PSNR control does to the claim that `better` beats `plain`, in sentences that follow from the table.

    `table` as for `claims_checked`, with val_psnr. First, seed by seed, whether the control has the PSNR of `better` on val:
    one whose training ended below it is blurrier, so its seed is not counted. Then a sentence a claim over the seeds that
    are left. Without rows of `plain` only the control is spoken of.
    """
    psnr = table.pivot(index="seed", columns="row", values="val_psnr")[[better, control]].dropna()
    matched = psnr.index[psnr[control] >= psnr[better]].tolist()
    lines = [
        f"seed {seed}: {control} has {reached:.2f} dB on val, {better} {target:.2f} dB"
        + (
            ""
            if seed in matched
            else f"; {control} never reached it, so this seed has no control and is not counted"
        )
        for seed, target, reached in psnr.itertuples()
    ]
    if not matched:
        return [
            *lines,
            f"No seed has a control: nothing here tells what {better} gains from what blur gains.",
        ]
    left = table[table["seed"].isin(matched)]
    if plain not in set(left["row"]):
        against = claims_checked(left, better, control)
        return lines + [
            f"{CLAIMS[claim][0]}: {_wins(line)} against {control}"
            for claim, line in against.iterrows()
        ]
    pairs = zip(
        claims_checked(left, better, plain).iterrows(),
        claims_checked(left, better, control).iterrows(),
    )
    return lines + [_verdict(better, plain, control, *pair) for pair in pairs]


def _verdict(
    better: str,
    plain: str,
    control: str,
    first: tuple[str, pd.Series],
    second: tuple[str, pd.Series],
) -> str:
    """One claim against the plain row and against the control, and what follows."""
    (claim, on_plain), (_, on_control) = first, second
    if on_plain["agree"] < on_plain["seeds"]:
        follows = f"{better} does not beat {plain} in every seed, so there is no gain to explain"
    elif on_control["agree"] == on_control["seeds"]:
        follows = "equal blur does not explain it"
    elif on_control["agree"] == 0:
        follows = (
            f"stopping {plain} early gains as much or more: the claim does not survive the control"
        )
    else:
        follows = "seeds disagree about the control: undecided"
    return f"{CLAIMS[claim][0]}: {_wins(on_plain)} against {plain}, {_wins(on_control)} against {control}; {follows}"


def _wins(line: pd.Series) -> str:
    return f"better in {line['agree']} of {line['seeds']} seeds"


def order_by(table: pd.DataFrame, column: str) -> list[str]:
    """The rows of a table, best mean over seeds first, by a column of `CLAIMS`."""
    means = table.groupby("row")[column].mean()
    return list(means.sort_values(ascending=not CLAIMS[column][1], kind="stable").index)
