"""The API's pages: one a room, in the order of the design, with its public names alone."""

import ast
import re
from pathlib import Path

from builder.links import ROOT
from builder.words import plain, table
from maetok_lab.workflow.code import read_code

LIBRARY = ROOT / "maetok_lab"
PACKAGE = LIBRARY.name
DESIGN = ROOT / "docs" / "design.md"
ROW = re.compile(r"^\| `?(\w+)/?`? \| (.*?) \|(?: `([\w ]+)`)? \|$", re.MULTILINE)
# What packages import for themselves, not for others.
USED = {f"{PACKAGE}.lazy.lazy_names", f"{PACKAGE}._torchvision.make_importable"}
FRONT = """\
# API

`import maetok_lab as lab` is enough: each name is imported when it is first used. The rooms, in the
order of the [design](../design.md):
"""
FOUNDATIONS = """\
# What the rooms stand on

Files beside the rooms, which all of them may import: what `lab` offers of these.
"""


def design_rows() -> dict[str, tuple[str, list[str]]]:
    """By row of the design's table: its responsibility, and its files in order."""
    rows = {}
    for name, words, files in ROW.findall(DESIGN.read_text(encoding="utf-8")):
        rows[name] = (words, files.split())
    return rows


def rooms() -> list[str]:
    """All rooms: those of the design in its order, then those that it does not know yet."""
    there = sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))
    named = [name for name in design_rows() if name in there]
    return named + [name for name in there if name not in named]


def api_pages() -> dict[str, str]:
    """Every page of the API by its path."""
    pages = {"api/index.md": front_page(), "api/root.md": root_page()}
    for room in rooms():
        pages[f"api/{room}.md"] = room_page(room)
    return pages


def offers_of(room: str) -> dict[str, str]:
    """The public names of a room, or of the library for "" -> the module that has them, dotted."""
    package = f"{PACKAGE}.{room}".rstrip(".")
    init = LIBRARY.joinpath(room, "__init__.py")
    modules = {}
    for name, place in read_code(init.read_text(encoding="utf-8"), is_package=True).offers.items():
        place = package + place if place.startswith(".") else place
        # what the file uses itself is from elsewhere
        if place.startswith(f"{package}.") and place not in USED:
            modules[name] = place.removesuffix(f".{name}")
    return modules


def front_page() -> str:
    """The map of the library, its rooms, and where each name of `lab` is described."""
    rows = []
    responsibilities = design_rows()
    for room in rooms():
        first, *_ = _docstring(LIBRARY / room / "__init__.py").splitlines() or [""]
        words, _ = responsibilities.get(room, (first, []))
        rows.append([f"[`lab.{room}`]({room}.md)", words])
    rows.append(["[the files below them](root.md)", "what every room asks for"])

    # a name of the front door is described where its room has it
    names = []
    for name, module in sorted(offers_of("").items()):
        if module != PACKAGE:
            room = module.removeprefix(f"{PACKAGE}.").partition(".")[0]
            module = offers_of(room)[name] if (LIBRARY / room).is_dir() else module
            names.append(f"- [`lab.{name}`][{origin(module, name)}]")
    docstring = _docstring(LIBRARY / "__init__.py")
    parts = [FRONT, table(["room", "what it is for"], rows), "## Names of `lab`", "\n".join(names)]
    return "\n\n".join([*parts, "## The map", f"```text\n{docstring}\n```"]) + "\n"


def root_page() -> str:
    """What the front door offers of the files beside the rooms."""
    parts = [FOUNDATIONS]
    by_file: dict[str, list[str]] = {}
    for name, module in offers_of("").items():
        place = f"{PACKAGE}.{name}" if module == PACKAGE else module
        file = place.removeprefix(f"{PACKAGE}.")
        if (LIBRARY / f"{file}.py").exists():
            by_file.setdefault(file, [])
            by_file[file] += [] if module == PACKAGE else [name]
    for file in design_rows()["root"][1]:
        if file in by_file:
            parts.append(_file_section("", file, by_file[file] or public_names(_path("", file))))
    return "\n\n".join(parts) + "\n"


def room_page(room: str) -> str:
    """A room's docstring, then its public names by file; of a room that names none, all of them."""
    by_file: dict[str, list[str]] = {}
    for name, module in offers_of(room).items():
        by_file.setdefault(module.removeprefix(f"{PACKAGE}.{room}."), []).append(name)
    if not by_file:
        for path in sorted(LIBRARY.glob(f"{room}/[!_]*.py")):
            by_file[path.stem] = public_names(path)

    # files in the order of the design; those without a place there keep the order of the room
    order = design_rows().get(room, ("", []))[1]
    files = sorted(by_file, key=lambda file: order.index(file) if file in order else len(order))
    parts = [f"# `lab.{room}`", _docstring(LIBRARY / room / "__init__.py")]
    parts += [_file_section(room, file, by_file[file]) for file in files]
    return "\n\n".join(parts) + "\n"


def _file_section(room: str, file: str, names: list[str]) -> str:
    """One file: its docstring's first paragraph, then its names."""
    path = _path(room, file)
    module = f"{PACKAGE}.{room}.{file}" if room else f"{PACKAGE}.{file}"
    parts = [f"## {file}", plain(_docstring(path).partition("\n\n")[0])]
    for name in names:
        place = origin(module, name)
        home = place.split(".")[1]
        # a name of another room is described there, if it is public there
        if home != room and (LIBRARY / home).is_dir() and name in offers_of(home):
            parts.append(f"### {name}\n\nSee [`lab.{home}.{name}`][{place}].")
        else:
            parts.append(f"::: {place}")
    return "\n\n".join(parts)


def public_names(path: Path) -> list[str]:
    """Classes and functions that a file defines, in its order, without private ones."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]


def origin(module: str, name: str) -> str:
    """The dotted place where a name of `module` is defined: there, or where it is imported from."""
    path = LIBRARY.parent.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return f"{node.module}.{name}"
    return f"{module}.{name}"


def _path(room: str, file: str) -> Path:
    return LIBRARY.joinpath(room, file.replace(".", "/")).with_suffix(".py")


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
