"""Tokenizers by name, and what has been published of them: tables of data/, with their sources."""

from collections.abc import Iterable

import pandas as pd

from maetok_lab.hints import check_choice, did_you_mean
from maetok_lab.runs.weights import SHIPPED

TABLES = SHIPPED.parent
NUMBERS = {"value", "abs_r", "image_size", "tokens", "downsampling", "channels", "tokenizers"}
STUDY = "iFID, arXiv 2603.05630"  # 40 epochs of a SiT without guidance on each


def read_table(name: str) -> pd.DataFrame:
    """The facts in data/NAME.csv; words that are not there are "", numbers NaN."""
    table = pd.read_csv(TABLES / f"{name}.csv", keep_default_na=False, dtype=str)
    for column in NUMBERS.intersection(table.columns):
        table[column] = pd.to_numeric(table[column])
    return table


def published_results(measure: str | None = None) -> pd.DataFrame:
    """What others report of tokenizers on ImageNet at 256 px, a line a number.

    Columns tokenizer, measure, value, model, training, guidance, note, source, address; of one
    measure, or of all. None of them is comparable with a number on other images. ValueError for a
    measure that is not there.
    """
    table = read_table("published")
    if measure is None:
        return table
    check_choice(measure, set(table["measure"]), "published measure")
    return table[table["measure"] == measure].reset_index(drop=True)


def study_results(model: str = "SiT-XL") -> pd.DataFrame:
    """The numbers of the study that trained one model on many tokenizers alike.

    -> index tokenizer, a column a measure, gfid of `model` ("SiT-XL" or "SiT-B") without guidance.
    """
    table = published_results()
    table = table[table["source"] == STUDY]
    check_choice(model, set(table["model"]) - {""}, "model of the study")
    table = table[table["model"].isin(["", model])]
    return table.pivot(index="tokenizer", columns="measure", values="value")


def tokenizers(image_size: int = 256) -> pd.DataFrame:
    """The tokenizers that `open_tokenizer` opens by name.

    -> index name; source (what it takes for the name), class, image_size (its own where it has
    one), tokens, downsampling, channels, licence, published_as, note, address, and rfid, ifid, gfid
    of `study_results` under the name published_as.
    """
    table = read_table("tokenizers").set_index("name")
    table["image_size"] = table["image_size"].fillna(image_size).astype(int)

    # tokens on a grid follow from the size; one that does not divide has none
    across = table["image_size"] / table["downsampling"]
    on_grid = (across**2).where(across % 1 == 0)
    table["tokens"] = table["tokens"].fillna(on_grid)
    whole = ["tokens", "downsampling", "channels"]
    table[whole] = table[whole].astype("Int64")
    return table.join(study_results()[["rfid", "ifid", "gfid"]], on="published_as")


def source_of(name: str, runs: Iterable[str] = ()) -> str:
    """What `open_tokenizer` takes for a name of `tokenizers()`.

    FileNotFoundError with the nearest of them and of `runs` for another.
    """
    sources = read_table("tokenizers").set_index("name")["source"]
    if name not in sources:
        raise FileNotFoundError(
            f"{name!r} is no run, no folder, and no name that `lab.tokenizers()` lists"
            f"{did_you_mean(name, [*sources.index, *runs])}"
        )
    return sources[name]
