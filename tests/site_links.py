"""What is wrong with a built site: links to nothing, and whatever it would load from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ELSEWHERE = ("http:", "https:", "//", "ws:", "wss:", "ftp:")
IN_CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
# Attributes whose address the browser loads by itself.
LOADED = {"src", "srcset", "poster", "data", "background", "action"}
NOT_FOLLOWED = ("mailto:", "data:", "javascript:", "blob:", "about:")


class Page(HTMLParser):
    """The places, links and loaded addresses of one page."""

    def __init__(self, file: Path):
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self._in_style = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self._in_style = tag == "style"
        for name, value in attributes:
            value = value or ""
            if name == "id" or (tag == "a" and name == "name"):
                self.names.add(value)
            elif name == "href":
                # a link that a person follows, or a style sheet, icon or font
                (self.links if tag in ("a", "area") else self.loaded).append(value)
            elif name == "srcset":
                self.loaded += [part.split()[0] for part in value.split(",") if part.strip()]
            elif name in LOADED:
                self.loaded.append(value)
            elif name == "style":
                self.loaded += addresses_in(value)

    def handle_endtag(self, tag):
        self._in_style = False

    def handle_data(self, data):
        if self._in_style:
            self.loaded += addresses_in(data)


def addresses_in(css):
    return [url or imported for url, imported in IN_CSS.findall(css)]


def problems(site: Path) -> list[str]:
    """One line for each link that does not resolve, and each address elsewhere that is loaded."""
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    lines = []
    for file, page in pages.items():
        lines += [problem(file, address, True, site, pages) for address in page.loaded]
        lines += [problem(file, address, False, site, pages) for address in page.links]
    for file in sorted(site.rglob("*.css")):
        addresses = addresses_in(file.read_text(encoding="utf-8"))
        lines += [problem(file, address, True, site, pages) for address in addresses]
    return [line for line in lines if line]


def problem(file, address, is_loaded, site, pages):
    """Why `address` of `file` is wrong; None where it is right."""
    place = f"{file.relative_to(site)}: {address}"
    if address.startswith(ELSEWHERE):
        return f"{place} is loaded from elsewhere" if is_loaded else None
    if address.startswith(NOT_FOLLOWED) or not address:
        return None
    if address.startswith("/"):
        # the page of what is missing is shown by a server, never from the disk
        return None if file.name == "404.html" else f"{place} begins at the root of a disk"
    parts = urlsplit(address)
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not target.is_file():
        return f"{place} is no file of the site"
    if not target.is_relative_to(site.resolve()) and target != file:
        return f"{place} leaves the site"
    names = pages[target].names if target in pages else set()
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and anchor not in names | {"__top"}:
        return f"{place} has no such place"
    return None
