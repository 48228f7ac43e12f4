"""An executed notebook as one page for readers: results first, code and logs folded.

The page has no address in it but those that its prose links to, so it opens without a network.
"""

import html
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Any

from maetok_lab.files import write_bytes
from maetok_lab.workflow.summary import MIME

STYLE = """
body {margin: 0; color: #222; background: #fff; font: 16px/1.5 system-ui, sans-serif}
main {max-width: 72rem; margin: 0 auto; padding: 1.5rem 2rem 4rem 17rem}
nav {position: fixed; top: 0; bottom: 0; left: 0; width: 14rem; padding: 1.5rem 1rem;
     overflow-y: auto; border-right: 1px solid #ddd; font-size: 14px; line-height: 1.35}
nav a {display: block; margin: .45em 0; color: #0072b2; text-decoration: none}
nav a.deeper {margin-left: 1em}
@media (max-width: 60rem) {nav {position: static; width: auto} main {padding-left: 2rem}}
h1 {line-height: 1.25} img, svg {max-width: 100%; height: auto}
pre {overflow-x: auto; font-size: 13px; line-height: 1.35; white-space: pre-wrap}
details {margin: .4em 0} summary {cursor: pointer; color: #666; font-size: 13px}
.prompt {display: none} .highlight {background: #f6f6f4; padding: .1em .8em; border-radius: 4px}
table {border: 0; border-collapse: collapse; font-size: 14px; overflow-x: auto; display: block}
th, td {padding: .2em .8em; border: 0; border-bottom: 1px solid #ddd; text-align: right}
.verdict {margin: 1em 0 2em; padding: .5em 1.5em 1em; border: 1px solid #ddd; border-radius: 8px}
"""
PAGE = """<!doctype html><html lang='en'><head><meta charset='utf-8'>\
<meta name='viewport' content='width=device-width'><title>{title}</title><style>{style}</style>\
</head><body><nav aria-label='contents'>{contents}</nav><main>{body}</main></body></html>
"""
HIGHLIGHT = "highlight"  # tag of a cell whose pictures belong beside the verdict
LONG_LOG = 4  # lines of text from which on a log is folded
HEADING = re.compile(r"<h([123])([^>]*)>(.*?)</h\1>", re.DOTALL)
LINK = re.compile(r"<a href=\"(?!https?:|#|mailto:)([^\"]*)\">(.*?)</a>", re.DOTALL)
LONG_NUMBER = re.compile(r"(?<=<td>)-?\d+\.\d{4,}(?:e[+-]?\d+)?(?=</td>)")


def write_html(notebook: Any, path: Path, *, folder: Path, home: Path | None = None) -> None:
    """An executed notebook as one page; pictures that its prose links to are in `folder`.

    Paths below `home` are shown without it.
    """
    exporter = _Exporter(folder)
    title = path.parent.name
    # papermill leaves cells without anything in them
    cells = [cell for cell in notebook.cells if cell.source.strip() or cell.get("outputs")]
    parts = [exporter.cell(cell) for cell in cells]
    # after the first words
    opening = 1 if cells and cells[0].cell_type == "markdown" else 0
    parts.insert(opening, _verdict(exporter, cells))

    # headings get their places, and the list of contents
    contents: list[str] = []
    body = HEADING.sub(lambda match: _anchored(match, contents), "\n".join(parts))
    body = LINK.sub(lambda match: _resolved(match, path.parent), body)
    body = LONG_NUMBER.sub(lambda match: short_number(float(match[0])), body)
    if home is not None:
        body = body.replace(f"{html.escape(str(home))}/", "")
    style = STYLE + exporter.colours
    page = PAGE.format(title=html.escape(title), style=style, contents="".join(contents), body=body)
    write_bytes(path, page.encode())


def short_number(value: float) -> str:
    """Three digits, or all before the point."""
    if abs(value) >= 100 or not value:
        return f"{value:.0f}"
    return f"{value:.3g}"


class _Exporter:
    """nbconvert's rendering, a cell at a time."""

    def __init__(self, folder: Path):
        from nbconvert import HTMLExporter
        from pygments.formatters import HtmlFormatter

        # the basic template has no scripts
        options = {"template_name": "basic", "embed_images": True, "exclude_anchor_links": True}
        options["log"] = logging.getLogger(__name__)
        options["log"].setLevel("ERROR")  # it would tell of each figure that it has no words
        self._html = HTMLExporter(**options)
        self._html_of_outputs = HTMLExporter(**options, exclude_input=True)
        self._folder = str(folder)
        self.colours = HtmlFormatter().get_style_defs(".highlight")

    def prose(self, cell: Any) -> str:
        """A cell as it is."""
        return self._page_of(cell, self._html)

    def cell(self, cell: Any) -> str:
        """Prose as it is; code folded, then what it printed and showed."""
        from nbformat import v4

        if cell.cell_type != "code":
            return self.prose(cell)
        name = "parameters" if "parameters" in cell.metadata.get("tags", []) else "code"
        code = self.prose(v4.new_code_cell(cell.source))
        parts = [f"<details><summary>{name}</summary>{code}</details>"]
        # what was printed in a row is one log
        for printed, group in itertools.groupby(cell.outputs, key=_is_printed):
            show = self._log if printed else self.outputs
            parts.append(show(list(group)))
        return "".join(parts)

    def outputs(self, outputs: list[Any]) -> str:
        """What a cell showed, without the cell."""
        from nbformat import v4

        return self._page_of(v4.new_code_cell("", outputs=outputs), self._html_of_outputs)

    def _page_of(self, cell: Any, exporter: Any) -> str:
        from nbformat import v4

        resources = {"metadata": {"path": self._folder}}
        body, _ = exporter.from_notebook_node(v4.new_notebook(cells=[cell]), resources=resources)
        return body.replace("No description has been provided for this image", "figure")

    def _log(self, streams: list[Any]) -> str:
        lines = "".join(stream.text for stream in streams).rstrip().splitlines()
        text = self.outputs(streams)
        if len(lines) < LONG_LOG:
            return text
        last = f"{len(lines)} lines, the last: {html.escape(lines[-1][:120])}"
        return f"<details><summary>{last}</summary>{text}</details>"


def _is_printed(output: Any) -> bool:
    return output.output_type == "stream"


def _verdict(exporter: _Exporter, cells: list[Any]) -> str:
    """The reported numbers, and the pictures of the cells that are tagged for it."""
    numbers = []
    pictures = []
    for cell in cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if MIME in data:
                numbers.append(exporter.outputs([output]))
            elif "image/png" in data and HIGHLIGHT in cell.metadata.get("tags", []):
                pictures.append(exporter.outputs([output]))
    parts = [*pictures, *numbers]
    if not parts:
        return ""
    return f"<section class='verdict'><h2>In short</h2>{''.join(parts)}</section>"


def _anchored(match: re.Match, contents: list[str]) -> str:
    level, attributes, words = match.groups()
    plain = re.sub(r"<[^>]+>", "", words)
    name = f"part-{len(contents)}"
    deeper = " class='deeper'" if level == "3" else ""
    contents.append(f"<a href='#{name}'{deeper}>{plain}</a>")
    attributes = re.sub(r"\s*id=(\"[^\"]*\"|'[^']*')", "", attributes)
    return f"<h{level} id='{name}'{attributes}>{words}</h{level}>"


def _resolved(match: re.Match, folder: Path) -> str:
    """A link to a notebook, to its page where it was run; words alone where there is none."""
    target, words = match.groups()
    name = Path(target.partition("#")[0]).stem
    pages = sorted(folder.parent.glob(f"{name}-*/notebook.html"))
    if not target.endswith(".ipynb") or not pages:
        return words
    # the page of the same preset and seed, if there is one
    same = folder.name.partition("-")[2]
    best = [page for page in pages if page.parent.name == f"{name}-{same}"] or pages
    return f'<a href="{html.escape(os.path.relpath(best[0], folder))}">{words}</a>'
