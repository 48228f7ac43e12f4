"""Links of a document of the repository, as its page needs them."""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
# By file of the repository: its page. Documents in docs/ are pages at their own paths.
DOCUMENTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "data/README.md": "data.md",
}
FOLDERS = {"benchmarks": "benchmarks.md", "data": "data.md", "notebooks": "executed/index.md"}
# code is passed by, unless it is the words of a link
PARTS = re.compile(
    r"(?P<fence>^(?P<mark>```+|~~~+).*?^(?P=mark))"
    r"|(?P<picture>!?)\[(?P<words>(?:[^\[\]`]|`[^`\n]*`)*)\]\((?P<target>[^)\s]+)(?P<title>[^)]*)\)"
    r"|(?P<code>`[^`\n]+`)",
    re.MULTILINE | re.DOTALL,
)


def pages() -> dict[str, str]:
    """Every file and folder of the repository outside of docs/ that has a page -> that page."""
    notebooks = {}
    for path in ROOT.glob("notebooks/*.ipynb"):
        notebooks[f"notebooks/{path.name}"] = f"executed/{path.stem}.md"
    return {**DOCUMENTS, **FOLDERS, **notebooks}


def rewritten(text: str, source: str, page: str, targets: Mapping[str, str]) -> str:
    """Markdown of the file `source`, with links that hold from `page`.

    A link to a file that has no page becomes its words and its path; one to nothing stays as it
    is, and the build will say so.
    """

    def replace(match: re.Match) -> str:
        path, anchor = _target(match, source)
        if path is None:
            return match[0]
        # its page, or its copy on the site
        destination = targets.get(path)
        is_asset = path.startswith("docs/") and not path.endswith(".py")
        if destination is None and is_asset:
            destination = path.removeprefix("docs/")
        if destination is None:
            return _as_words(match["words"], path) if (ROOT / path).exists() else match[0]

        place = posixpath.relpath(destination, posixpath.dirname(page) or ".")
        return f"{match['picture']}[{match['words']}]({place}{anchor}{match['title']})"

    return PARTS.sub(replace, text)


def moved(text: str, source: str, destination: str) -> str:
    """Markdown of the file `source`, with links that hold in the file `destination`."""

    def replace(match: re.Match) -> str:
        path, anchor = _target(match, source)
        if path is None:
            return match[0]
        place = posixpath.relpath(path, posixpath.dirname(destination))
        return f"{match['picture']}[{match['words']}]({place}{anchor}{match['title']})"

    return PARTS.sub(replace, text)


def _target(match: re.Match, source: str) -> tuple[str | None, str]:
    """The file of the repository that a match of `PARTS` in file `source` leads to, and "#ANCHOR".

    None for what is no link, or one to another site or within the page.
    """
    target = match["target"]
    if target is None or re.match(r"[a-z]+:|#", target):
        return None, ""
    path, mark, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), mark + anchor


def _as_words(words: str, path: str) -> str:
    """A file without a page: its path as code, behind other words."""
    return f"`{path}`" if words.strip("`") in (path, Path(path).name) else f"{words} (`{path}`)"
