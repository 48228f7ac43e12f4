"""What mkdocs calls while it builds the site: pages that are no files of docs/, and links.

A hook and no plugin: mkdocs makes pages of text itself (`File.generated`), and every link of the
repository's documents has to be rewritten for the site in any case.
"""

import re

from builder import links, notebooks, reference, tables, words
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from maetok_lab.workflow.parameters import read_cells

# By page: the file of the repository that its links are relative to.
SOURCES = {page: source for source, page in links.DOCUMENTS.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put one entry a notebook and a room into the nav."""
    names = [path.stem for path in notebooks.notebook_paths()]
    rooms = [{f"lab.{room}": f"api/{room}.md"} for room in reference.rooms()]
    entries = {
        "Notebooks": ["executed/index.md", *({name: f"executed/{name}.md"} for name in names)],
        "API": ["api/index.md", *rooms, {"below the rooms": "api/root.md"}],
    }
    for item in config.nav:
        for title in set(item) & set(entries):
            item[title] = entries[title]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made: root documents, notebooks, tables, the API."""
    made = {"card.md": tables.card_page(), "tokenizers.md": tables.tokenizers_page()}
    made |= reference.api_pages()
    made["executed/index.md"] = notebooks.index_page()
    for source, page in links.DOCUMENTS.items():
        # one that is missing is a broken entry of the nav, which mkdocs names
        if (links.ROOT / source).exists():
            made[page] = (links.ROOT / source).read_text(encoding="utf-8")
    for path in notebooks.notebook_paths():
        page = f"executed/{path.stem}.md"
        if files.get_file_from_path(page) is None:
            made[page] = notebooks.page_without_outputs(read_cells(path), path.stem)
            SOURCES[page] = f"notebooks/{path.name}"
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that hold on the site, lists that begin, and which notebook has changed."""
    place = page.file.src_uri
    if page.meta.get("cells"):
        name = re.sub(r"^executed/|\.md$", "", place)
        cells = read_cells(links.ROOT / "notebooks" / f"{name}.ipynb")
        markdown = notebooks.with_note(markdown, cells, str(page.meta["cells"]), name)
    if place.startswith("api/") or place in ("card.md", "tokenizers.md", "executed/index.md"):
        return markdown  # made for the site
    source = SOURCES.get(place, f"docs/{place}")
    return words.spaced(links.rewritten(markdown, source, place, links.pages()))
