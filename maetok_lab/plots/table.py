"""A card as a table to be read: grouped by the question that a number answers, told on hover."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

# questions of a card, and the groups of entries that answer them
QUESTIONS = {
    "beside the card": ("known",),
    "what it knows": ("probe",),
    "what shape it has": ("mixture", "shape", "grid"),
    "what the decoder forgives": ("decoder", "interpolation"),
    "what a model can learn": ("denoiser", "diffusion", "paths"),
}
TIP = (  # what is told on hover: hidden until then, beside the number
    "visibility: hidden; position: absolute; z-index: 1; padding: 4px 8px; width: 32em; "
    "white-space: normal; text-align: left; background: #222; color: #fff;"
)
ARROWS = {"lower": "↓", "higher": "↑"}  # which way is better for diffusion, by the source


def card_table(cards: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Any:
    """Cards side by side by question: value ± standard error, unit, better way -> Styler.

    Hovering over a number tells its formula, source and settings. What has no value says why, where
    the card knows. Raises ValueError without cards, ImportError without jinja2.
    """
    if isinstance(cards, pd.DataFrame):
        cards = {"value": cards}
    if not cards:
        raise ValueError("no cards to show")
    names = list(cards)

    # what is told on hover is a table of the same shape
    table = pd.DataFrame(_rows(cards)).set_index(["question", "entry"])
    tips = pd.DataFrame("", index=table.index, columns=[*names, "unit", "better"])
    for name in names:
        tips[name] = table[f"tip of {name}"]
    styler = table[[*names, "unit", "better"]].style
    styler.set_tooltips(tips, props=TIP)
    return styler.set_table_styles([{"selector": "th", "props": "text-align: left"}])


def _rows(cards: Mapping[str, pd.DataFrame]) -> list[dict[str, str]]:
    """One row an entry that some card has, in the order of the questions and of the cards."""
    rows = []
    for question, groups in QUESTIONS.items():
        entries: dict[str, None] = {}  # in order, once
        for card in cards.values():
            entries |= dict.fromkeys(card.index[card["group"].isin(groups)])
        for entry in entries:
            row = {"question": question, "entry": entry, "unit": "", "better": ""}
            for name, card in cards.items():
                row |= _cells(name, card, entry)
            rows.append(row)
    return rows


def _cells(name: str, card: pd.DataFrame, entry: str) -> dict[str, str]:
    """What one card adds to a row: its number, and what is told on hover."""
    if entry not in card.index:
        return {name: "", f"tip of {name}": ""}
    line = card.loc[entry]
    stated = card.attrs.get("definitions", {}).get(entry, {})
    settings = stated.get("settings", {})
    number = f"{line['value']:.4g}"
    if pd.isna(line["value"]):
        number = "-"
    elif pd.notna(line["error"]):
        number += f" ± {line['error']:.2g}"
    words = [stated.get("formula", ""), stated.get("source", "")]
    words.append(", ".join(f"{key} {value}" for key, value in settings.items()))
    cells = {name: number, f"tip of {name}": " — ".join(word for word in words if word)}
    return cells | {"unit": line["unit"], "better": ARROWS.get(line.get("better", ""), "")}
