"""Text of others as Markdown: what is special in it, tables, and what two dialects read apart."""

import html
import re
from collections.abc import Iterable, Sequence

ADDRESS = re.compile(r"https?://\S+")
ARXIV = re.compile(r"(?:arXiv )(\d{4}\.\d{5})")
LIST_STARTS = re.compile(r"([-*+]|1[.)]) ")


def escaped(text: str) -> str:
    """`text` so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))


def plain(text: str) -> str:
    """`text` as it is, but that numbers of arXiv become links."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", escaped(text))


def linked(words: str, address: str) -> str:
    """Markdown `words` as a link to the first address in `address`, or alone without one."""
    match = ADDRESS.search(address)
    return f"[{words}]({match[0]})" if match else words


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells hold Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """A number as it was published, nothing for one that is missing."""
    return "" if value != value else f"{value:g}"


def spaced(text: str) -> str:
    """Markdown of GitHub's dialect for Python-Markdown, which begins no list or table in a
    paragraph: an empty line goes before each.
    """
    lines = []
    before = ""
    fence = ""
    for line in text.splitlines():
        # inside a fence nothing is changed; it ends with what it began with
        opening = re.match(r"\s*(```+|~~~+)", line)
        if fence:
            fence = "" if opening and opening[1].startswith(fence) else fence
        elif opening:
            fence = opening[1]
        elif _interrupts(line, before):
            lines.append("")
        lines.append(line)
        before = line
    return "\n".join(lines) + "\n"


def _interrupts(line: str, before: str) -> bool:
    """Whether a list or a table begins in the paragraph of the line before."""
    if not before.strip() or before.startswith((" ", "\t", "#", ">")):
        return False
    if line.startswith("|"):
        return not before.startswith("|")
    return bool(LIST_STARTS.match(line)) and not re.match(r"([-*+]|\d+[.)]) ", before)
