"""HTML that a cell showed, as plain tables and lists: no style, no script, no attribute."""

import base64
import html
import re
from html.parser import HTMLParser

from maetok_lab.workflow.page import LONG_NUMBER, short_number

KEPT = {
    *("table", "thead", "tbody", "tr", "th", "td", "caption", "ul", "ol", "li", "p", "br"),
    *("b", "strong", "i", "em", "code", "pre", "sub", "sup", "h3", "h4"),
}
DROPPED = {"style", "script", "button", "svg", "select"}  # with all that is inside
SPANS = {"colspan", "rowspan"}
MOST_ROWS = 40
PICTURE = re.compile(r"src=['\"]data:image/png;base64,([^'\"]+)['\"]")


def cleaned(text: str) -> str:
    """`text` with the tags of tables and lists alone; long tables are clipped, and say so."""
    cleaner = _Cleaner()
    cleaner.feed(text)
    cleaner.close()
    body = "".join(cleaner.parts)
    # what was text between tags of a layout is left as lines
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    body = LONG_NUMBER.sub(lambda match: short_number(float(match[0])), body)
    return re.sub(r"<table>.*?</table>", _clipped, body, flags=re.DOTALL)


def still_picture(text: str) -> bytes | None:
    """The PNG that stands for a living view in its stored HTML; None where there is none."""
    match = PICTURE.search(text) if "maetok-still" in text else None
    return base64.b64decode(match[1]) if match else None


def _clipped(match: re.Match) -> str:
    rows = list(re.finditer(r"<tr>.*?</tr>", match[0], re.DOTALL))
    if len(rows) <= MOST_ROWS + 1:
        return match[0]
    # the head's row is one of them
    kept = match[0][: rows[MOST_ROWS + 1].start()]
    ends = "</tbody></table>" if "<tbody>" in kept else "</table>"
    count = len(rows) - 1 - MOST_ROWS
    return f"{kept.rstrip()}{ends}\n<p><em>{count} more rows are left out here.</em></p>"


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside = 0  # of what is dropped

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in DROPPED:
            self._inside += 1
        elif tag in KEPT and not self._inside:
            spans = [f' {name}="{value}"' for name, value in attributes if name in SPANS]
            self.parts.append(f"<{tag}{''.join(spans)}>")

    def handle_endtag(self, tag: str) -> None:
        if tag in DROPPED:
            self._inside = max(0, self._inside - 1)
        elif tag in KEPT and not self._inside:
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.parts.append(html.escape(data, quote=False))
