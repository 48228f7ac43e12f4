"""An executed notebook as a Markdown page with its pictures beside it."""

import base64
import dataclasses
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from builder.cleaning import cleaned, still_picture
from builder.links import ROOT, moved
from builder.notebooks import cells_digest, is_injected, run_command, title_of
from maetok_lab.files import read_json
from maetok_lab.runs.provenance import clock
from maetok_lab.workflow.page import short_number
from maetok_lab.workflow.parameters import declared_parameters, read_cells
from maetok_lab.workflow.summary import MIME

WIDGET = "application/vnd.jupyter.widget-view+json"
MOST_LINES = 30  # of text that one cell printed
LONGEST_LINE = 200
WIDEST = 1400  # pixels of a picture
QUALITY = 78  # of its WebP
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LIVE = "*A living view stands here in the notebook; it has no picture.*"


@dataclasses.dataclass(frozen=True)
class Copy:
    """A finished notebook in a runs folder."""

    folder: Path
    summary: dict[str, Any]
    values: dict[str, Any]  # of its parameters


def newest_copy(runs: Path, name: str, preset: str) -> Copy | None:
    """The executed copy of notebook `name` at `preset` that ended last; None without one."""
    copies = []
    for path in runs.glob(f"notebooks/{name}-*/summary.json"):
        if (path.parent / "notebook.ipynb").exists():
            values = read_json(path.parent / "parameters.json")
            if values.get("preset") == preset:
                copies.append(Copy(path.parent, read_json(path), values))
    return max(copies, key=lambda copy: copy.summary["ended"], default=None)


def write_page(copy: Copy, name: str, output: Path) -> list[Path]:
    """Write NAME.md and NAME-1.webp, NAME-2.webp, ... into `output`, in the place of older ones.

    -> the files.
    """
    for old in (output / f"{name}.md", *output.glob(f"{name}-*.webp")):
        old.unlink(missing_ok=True)
    cells = read_cells(copy.folder / "notebook.ipynb")
    pictures = _Pictures(output, name)
    parts = list(page_parts(cells, name, pictures))
    parts.insert(1, head(copy, cells, name))
    body = "\n\n".join(part.strip() for part in parts if part.strip())

    # places on the machine where it ran say nothing to a reader
    for place in (copy.folder.parents[2], ROOT):
        if place != place.parent:  # of the whole disk nothing could be told apart
            body = body.replace(f"{place}/", "")
    body = body.replace(f"{Path.home()}/", "~/")
    page = output / f"{name}.md"
    page.write_text(f"---\ncells: {cells_digest(cells)}\n---\n\n{body}\n", encoding="utf-8")
    return [page, *pictures.files]


def page_parts(cells: list[Mapping[str, Any]], name: str, pictures: "_Pictures") -> Iterator[str]:
    """The title, then every cell's prose, code and outputs."""
    title, cells = title_of(cells, name)
    yield f"# {title}"
    # what one run was handed is in the head, and would name this machine's folders
    for cell in cells:
        if cell["cell_type"] == "markdown":
            heading = re.search(r"^#+ (.*)", cell["source"], re.MULTILINE)
            pictures.heading = heading[1] if heading else pictures.heading
            yield moved(cell["source"], f"notebooks/{name}.ipynb", f"docs/executed/{name}.md")
        elif cell["cell_type"] == "code" and not is_injected(cell) and cell["source"].strip():
            yield code_block(cell)
            yield from outputs(cell.get("outputs", []), pictures)


def code_block(cell: Mapping[str, Any]) -> str:
    """A cell's code; folded where the notebook hides it."""
    code = f"```python\n{cell['source'].strip()}\n```"
    if cell.get("metadata", {}).get("jupyter", {}).get("source_hidden"):
        return f'<details markdown="1">\n<summary>code</summary>\n\n{code}\n\n</details>'
    return code


def head(copy: Copy, cells: list[Mapping[str, Any]], name: str) -> str:
    """By which command, preset, seed, commit and date the page was made."""
    origin = copy.summary.get("provenance") or {}
    commit = "a commit that was not recorded"
    if origin.get("commit"):
        commit = f"commit `{origin['commit'][:10]}`"
        commit += " with changes that were not committed" if origin.get("dirty") else ""
    seed = f", seed {copy.values['seed']}" if "seed" in copy.values else ""
    return (
        f"> Executed by `{command(copy, cells, name)}` (preset `{copy.values['preset']}`{seed}) at "
        f"{commit}, {copy.summary['ended'][:10]}, in {clock(copy.summary['seconds'])} "
        f"minutes. Outputs are as they came. The notebook is `notebooks/{name}.ipynb`."
    )


def command(copy: Copy, cells: list[Mapping[str, Any]], name: str) -> str:
    """The command line that makes the same copy again."""
    defaults = {}
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            defaults = declared_parameters(cell["source"])

    words = run_command(name).split()
    for parameter, value in copy.values.items():
        # where the runs were kept changes nothing
        if parameter in defaults and parameter != "runs" and value != defaults[parameter].default:
            words += ["-p", parameter, value if isinstance(value, str) else repr(value)]
    return shlex.join(words)


def outputs(shown: list[Mapping[str, Any]], pictures: "_Pictures") -> Iterator[str]:
    """What a cell showed; text that was printed in a row is one block."""
    printed = []
    has_picture = any(_picture(output) for output in shown)
    for output in shown:
        if output["output_type"] == "stream":
            printed.append("".join(output["text"]))
            continue
        yield text_block("".join(printed))
        printed = []
        yield _displayed(output, pictures, has_picture)
    yield text_block("".join(printed))


def _displayed(output: Mapping[str, Any], pictures: "_Pictures", has_picture: bool) -> str:
    """One output: its picture, its report, its table, or its text."""
    data = {kind: _joined(value) for kind, value in output.get("data", {}).items()}
    # the richest form that a page without a kernel can show
    picture = _picture(output)
    if picture:
        return pictures.add(picture)
    if WIDGET in data:
        return "" if has_picture else LIVE
    if "text/markdown" in data:
        return data["text/markdown"]
    if "text/html" in data:
        body = cleaned(data["text/html"])
        css = "output report" if MIME in data else "output"
        return f'<div class="{css}">\n{body}\n</div>' if body else ""
    text = data.get("text/plain", "")
    # a number of its own line has as many digits as a table's
    if re.fullmatch(r"-?\d+\.\d{4,}(e[+-]?\d+)?", text):
        text = short_number(float(text))
    return text_block(text)


def _picture(output: Mapping[str, Any]) -> bytes | None:
    """The picture of an output, a living view's static twin among them."""
    data = output.get("data", {})
    if "image/png" in data:
        return base64.b64decode(_joined(data["image/png"]))
    return still_picture(_joined(data.get("text/html", "")))


def _joined(value: Any) -> Any:
    return "".join(value) if isinstance(value, list) else value


def text_block(text: str) -> str:
    """Printed text in a fence, its middle left out where it is long."""
    lines = []
    for line in COLOURS.sub("", text).rstrip().split("\n"):
        line = line.rstrip("\r").rpartition("\r")[2]  # what a terminal would show at the end
        lines.append(f"{line[:LONGEST_LINE]} ..." if len(line) > LONGEST_LINE else line)
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        words = f"... {len(lines) - 2 * half} lines are left out here ..."
        lines = [*lines[:half], words, *lines[-half:]]
    body = "\n".join(lines)
    return f"```text\n{body}\n```" if body.strip() else ""


class _Pictures:
    """Numbers the pictures of a page and writes them as WebP."""

    def __init__(self, output: Path, name: str):
        self.output = output
        self.name = name
        self.heading = name
        self.files: list[Path] = []

    def add(self, png: bytes) -> str:
        """The Markdown of a picture, which opens in full when it is clicked."""
        # figures are drawn for white, and wider than any page
        picture = Image.open(io.BytesIO(png)).convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        page = page.convert("RGB")
        if page.width > WIDEST:
            height = round(page.height * WIDEST / page.width)
            page = page.resize((WIDEST, height), Image.Resampling.LANCZOS)
        file = self.output / f"{self.name}-{len(self.files) + 1}.webp"
        page.save(file, quality=QUALITY, method=6)
        self.files.append(file)
        words = re.sub(r"[\[\]`*_]", "", self.heading)
        return f"[![{words}]({file.name})]({file.name})"
