"""Pages made of the library's tables: the measures of the card, tokenizers and their results."""

import pandas as pd

import maetok_lab as lab
from builder.words import escaped, linked, number, plain, table
from maetok_lab.analysis.definitions import MEASURES

CARD = """\
# The card, entry by entry

What the card (`lab.analysis.diffusability_card`, `lab.experiments.card_run`) and the scores beside
it measure, by whose formula, and what is done otherwise here. The page is made from
`maetok_lab/analysis/definitions.py`, whose lines are stored beside the numbers. Latents z are
(n, N, C): images, tokens, channels; t = 1 is noise.

An entry of a card begins with the name of its measure: `gmm_nll_50` is `gmm_nll` of 50 Gaussians;
`probe_...` is `linear_probe`, and `knn_...` is `knn_probe`. *Better* says which way the source
expects for diffusion; where nobody says, nothing stands there.
"""
TOKENIZERS = """\
# Tokenizers

`lab.open_tokenizer(NAME)` opens each of these by its name, as do notebooks 05 and 06 and
`python -m maetok_lab investigate NAME`. The table is `lab.tokenizers()`, from
`data/tokenizers.csv`: latents are tokens x channels of an image.

rFID, iFID and gFID are those of one study on ImageNet at 256 px
([arXiv 2603.05630](https://arxiv.org/abs/2603.05630): 40 epochs of a SiT-XL without guidance on
each), where it has the tokenizer. No number of other images can be compared with them.
"""
PUBLISHED = """\
## What has been published

The lines of `data/published.csv` (`lab.tokenizer.published_results()`): what others report of
tokenizers on ImageNet at 256 px. Two numbers of different training, model or guidance are not
comparable either.
"""
MEASURE_NAMES = {"gfid": "gFID", "ifid": "iFID", "rfid": "rFID", "psnr": "PSNR, dB"}


def card_page() -> str:
    """Every measure: its formula, its source, and which way is better."""
    parts = [CARD]
    for measure, (formula, source, better) in MEASURES.items():
        lines = [f"## `{measure}`", plain(formula), f"*Source:* {plain(source)}"]
        if better:
            lines.append(f"*Better:* {better}")
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts) + "\n"


def tokenizers_page() -> str:
    """The registry, then what has been published, each number with its source."""
    header = ["name", "latents", "rFID", "iFID", "gFID", "licence", "class", "note"]
    rows = []
    for name, row in lab.tokenizers().iterrows():
        scores = [number(row[measure]) for measure in ("rfid", "ifid", "gfid")]
        words = [plain(row[column]) for column in ("licence", "class", "note")]
        rows.append([linked(f"`{name}`", row["address"]), _latents(row), *scores, *words])
    parts = [TOKENIZERS, table(header, rows), PUBLISHED]

    results = lab.tokenizer.published_results()
    for measure, lines in results.groupby("measure", sort=False):
        parts += [f"### {MEASURE_NAMES.get(measure, measure)}", _published(lines)]
    return "\n\n".join(parts) + "\n"


def _latents(row: pd.Series) -> str:
    """Tokens by channels, and the image size that they are of."""
    return f"{row['tokens']} x {row['channels']} at {row['image_size']} px"


def _published(lines: pd.DataFrame) -> str:
    """One measure's numbers; the diffusion model has a column where there is one."""
    has_model = lines["model"].any()
    columns = ["diffusion model", "note", "source"] if has_model else ["note", "source"]
    rows = []
    for _, line in lines.iterrows():
        words = [plain(line["note"]), linked(escaped(line["source"]), line["address"])]
        if has_model:
            model = [line["model"], line["training"]]
            model.append(f"guidance: {line['guidance']}" if line["guidance"] else "")
            words.insert(0, plain(", ".join(part for part in model if part)))
        rows.append([plain(line["tokenizer"]), number(line["value"]), *words])
    return table(["tokenizer", "value", *columns], rows)
