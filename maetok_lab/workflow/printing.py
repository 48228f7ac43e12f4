"""Tables as text that fits a terminal, whatever a run's or a folder's name does to one."""

import shutil
from typing import Any

import pandas as pd

from maetok_lab.hints import printable

PIPED_WIDTH = 160  # characters of a line that no terminal shows
LONGEST_CELL = 60  # characters
LEAST_WORDS = 12  # characters that a column of words must have left, to be cut and not left out


def terminal_width() -> int:
    """Characters of a line."""
    return shutil.get_terminal_size((PIPED_WIDTH, 24)).columns


def shortened(text: str, length: int = LONGEST_CELL) -> str:
    """`text`, or its beginning and "..."."""
    return text if len(text) <= length else text[: length - 3] + "..."


def table_text(table: pd.DataFrame, width: int) -> tuple[str, int]:
    """Columns from the left for as long as they fit into `width` -> text, columns left out."""
    columns: list[list[str]] = []
    room = width
    for name in table:
        cells = [printable(str(name)), *map(_cell, table[name])]
        longest = max(map(len, cells))
        is_number = pd.api.types.is_numeric_dtype(table[name])
        # half a number would be another one, half a sentence is better than none
        if longest > room and not is_number and (room >= LEAST_WORDS or not columns):
            cells = [shortened(cell, max(room, LEAST_WORDS)) for cell in cells]
            longest = max(map(len, cells))
        elif longest > room:
            break
        align = str.rjust if is_number else str.ljust
        columns.append([align(cell, longest) for cell in cells])
        room -= longest + 2
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns)]
    return "\n".join(lines), len(table.columns) - len(columns)


def _cell(value: Any) -> str:
    """One value; nothing for what is missing, four digits of a number."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return shortened(printable(str(value)))
