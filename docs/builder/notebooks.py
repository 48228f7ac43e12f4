"""Notebooks at build time: their index, pages without outputs, and which page is out of date."""

import hashlib
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from builder.links import ROOT
from maetok_lab.workflow.parameters import read_cells

EXECUTED = ROOT / "docs" / "executed"
SMALLEST = 200  # pixels of the shorter side of a picture that says something
INTRODUCTION = """\
# Notebooks

What each notebook asks, its code, and what came out of it where its page says so. `make lab` opens
them to be run; `python -m maetok_lab run notebooks/NAME.ipynb` runs one from a shell.
"""


def notebook_paths() -> list[Path]:
    """All notebooks, in the order of their names."""
    return sorted(ROOT.glob("notebooks/*.ipynb"))


def is_injected(cell: Mapping[str, Any]) -> bool:
    """Whether a cell holds the values that one run was handed."""
    return "injected-parameters" in cell.get("metadata", {}).get("tags", [])


def cells_digest(cells: list[Mapping[str, Any]]) -> str:
    """Hash of the code of a notebook, the same before and after it was executed."""
    sources = []
    for cell in cells:
        if cell["cell_type"] == "code" and not is_injected(cell) and cell["source"].strip():
            sources.append(cell["source"].strip())
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def title_of(cells: list[Mapping[str, Any]], name: str) -> tuple[str, list[Mapping[str, Any]]]:
    """The title, and the cells without it; a notebook without one is called by its file."""
    first = cells[0] if cells else {"cell_type": "code"}
    match = re.match(r"# (.*)\n?", first.get("source", ""))
    if first["cell_type"] != "markdown" or not match:
        return name.replace("_", " ").capitalize(), cells
    return match[1].strip(), [{**first, "source": first["source"][match.end() :]}, *cells[1:]]


def facts_of(cells: list[Mapping[str, Any]]) -> dict[str, str]:
    """The title cell's sentences by the words that they begin with: "Question", "Time", ..."""
    source = cells[0]["source"] if cells and cells[0]["cell_type"] == "markdown" else ""
    facts = {}
    for line in source.splitlines():
        for word, sentence in re.findall(r"\*\*(\w+)[.:]\*\* (.*?)(?= \*\*\w+[.:]\*\*|$)", line):
            facts[word] = sentence.strip()
    return facts


def with_note(text: str, cells: list[Mapping[str, Any]], digest: str, name: str) -> str:
    """A page with a note under its title where the notebook's code is not the page's any more."""
    if digest == cells_digest(cells):
        return text
    note = (
        '!!! warning "The notebook has changed since"\n'
        "    Code and outputs below are those of the day when this page was made. "
        f"`{run_command(name)}`, then `python docs/make_pages.py`, makes it anew."
    )
    title, _, below = text.lstrip().partition("\n")
    return f"{title}\n\n{note}\n{below}"


def run_command(name: str) -> str:
    """The command that executes a notebook."""
    return f"python -m maetok_lab run notebooks/{name}.ipynb"


def page_without_outputs(cells: list[Mapping[str, Any]], name: str) -> str:
    """A notebook that nobody has executed for the site."""
    title, below = title_of(cells, name)
    parts = [
        f"# {title}",
        f'!!! info "Not executed yet"\n    This page has no outputs: `{run_command(name)}` makes '
        "them, and prints where its own page is.",
    ]
    for cell in below:
        code = f"```python\n{cell['source'].strip()}\n```"
        parts.append(cell["source"] if cell["cell_type"] == "markdown" else code)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def first_picture(name: str) -> str | None:
    """The file of the first picture of an executed page that is not tiny."""
    files = EXECUTED.glob(f"{name}-*.webp")
    for file in sorted(files, key=lambda file: int(file.stem.rpartition("-")[2])):
        with Image.open(file) as picture:
            if min(picture.size) >= SMALLEST:
                return file.name
    return None


def index_page() -> str:
    """Title, question, time and a picture of every notebook."""
    parts = [INTRODUCTION]
    for path in notebook_paths():
        cells = read_cells(path)
        facts = facts_of(cells)
        # the title, a picture where the page has one, the question and the time
        lines = [f"## [{title_of(cells, path.stem)[0]}]({path.stem}.md)", f"`{path.name}`"]
        picture = first_picture(path.stem)
        if picture:
            words = html.escape(title_of(cells, path.stem)[0].replace('"', ""))
            lines.append(f"[![{words}]({picture}){{ .first }}]({path.stem}.md)")
        lines.append(facts.get("Question", ""))
        lines.append(f"*Time:* {facts['Time']}" if "Time" in facts else "")
        parts.append("\n\n".join(line for line in lines if line))
    return "\n\n".join(parts) + "\n"
