"""What code a notebook runs: one hash of its cells and of the library's files that they reach.

Comments and docstrings do not count, nor does code that the notebook does not import: a finished
result stays finished when they change. All is read from import statements, those inside functions
too; nothing is executed.

A package's `__init__` offers names of other files. Each name is followed to its own file, so that
`import maetok_lab as lab` reaches only the files behind the `lab.names` that are used.
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from maetok_lab.identity import fingerprint_of
from maetok_lab.workflow.parameters import read_cells

LIBRARY = Path(__file__).parents[1]
ROOT = LIBRARY.name
EVERYTHING = f"{ROOT}.*"  # what a use that cannot be resolved needs
# Facts of a package itself; any other name that it does not offer may need all of its files.
PACKAGE_FACTS = {"__doc__", "__file__", "__name__", "__version__"}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Code:
    """What one piece of code is, and what it needs."""

    digest: str  # of its syntax tree without docstrings
    names: frozenset[str]  # that it uses, with dots: "maetok_lab.runs.Run"
    offers: dict[str, str]  # of a package: its names, and where each of them is from
    scripts: tuple[str, ...]  # names of JavaScript files beside it


def code_hash(path: str | Path) -> str:
    """Hash of what a notebook would run: its code cells, and the library as far as they use it."""
    cells = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code"]
    # One piece of code, since a name imported in one cell is used in others.
    source = "\n".join(cells)
    names = {EVERYTHING}
    try:
        code = read_code(source)
        facts = [code.digest]
        # A name that is computed when the cell runs cannot be followed.
        if not re.search(r"\b(import_module|__import__)\b", source):
            names = code.names
    except SyntaxError:  # magics of IPython, which may do anything
        facts = [source]

    for file, needed in sorted(reached_code(names).items()):
        facts += [file.relative_to(LIBRARY).as_posix(), needed.digest]
        facts += [(file.parent / script).read_text() for script in needed.scripts]
    return fingerprint_of(facts)


def reached_code(names: Iterable[str]) -> dict[Path, Code]:
    """Every file of the library that dotted names need, directly or through other files."""
    # What is pending may have been reached before, by the same or another name of the package.
    reached: dict[Path, Code] = {}
    pending = list(names)
    while pending:
        module, attribute = _split(pending.pop())
        file = _file(module)
        is_package = file.name == "__init__.py"
        if file not in reached:
            reached[file] = read_code(file.read_text(encoding="utf-8"), is_package)
            pending += reached[file].names
            if module != ROOT:  # its package is executed before it
                pending.append(module.rpartition(".")[0])

        # In a package a name leads to the file where it is from; other files are read whole.
        if not is_package or attribute in PACKAGE_FACTS | {""}:
            continue
        origin = reached[file].offers.get(attribute)
        if origin:
            pending.append(module + origin if origin.startswith(".") else origin)
        else:  # not found, or "*"
            pending += [_module(each) for each in file.parent.rglob("*.py")]
    return reached


@functools.cache  # each entry of a sweep asks, and to parse the whole library takes a second
def read_code(source: str, is_package: bool = False) -> Code:
    """What a file, or the cells of a notebook, are and need; SyntaxError if it is no Python."""
    tree = ast.parse(source)
    offers = _take_offers(tree) if is_package else {}
    origins = dict(offers)  # name in this code -> dotted name that it stands for
    names: set[str] = set()
    scripts: list[str] = []

    # The tree has no comments; docstrings are taken out of it on the way.
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        for name, dotted in _imports(node):
            names.add(dotted)
            # `import a.b` binds a; `import a.b as c` and `from a import b as c` bind c to a.b
            origins[name] = dotted if name != ROOT else ROOT
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # "maetok_lab.workflow.worker" is started as a program, "grid.js" is sent to a browser
            if re.fullmatch(rf"{ROOT}(\.\w+)+", node.value) and _file(node.value):
                names.add(node.value)
            elif re.fullmatch(r"\w+\.js", node.value):
                scripts.append(node.value)

    # What is done with those names: behind `import maetok_lab as lab`, lab.runs.Run is one use.
    for chain in _chains(tree):
        first, _, attributes = chain.partition(".")
        if first in origins:
            # a package that is passed on as a whole may be asked for anything
            names.add(f"{origins[first]}.{attributes or '*'}")
    return Code(fingerprint_of(ast.dump(tree)), frozenset(names), offers, tuple(scripts))


def _take_offers(tree: ast.Module) -> dict[str, str]:
    """Take out of a package's `__init__` what it only offers; what is left is code of its own.

    That is `from file import name`, and the table of `lazy_names`. -> name: where it is from, with
    a dot in front if it is from below the package.
    """
    offers: dict[str, str] = {}
    own = []
    for node in tree.body:
        match node:
            case ast.ImportFrom():
                offers |= _imports(node)
                continue
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                continue
            # lazy_names(__name__, {"training.loop": "train stop", "": "plots"}): "" are packages
            case ast.Assign(value=ast.Call(func=ast.Name(id="lazy_names"), args=[_, table])):
                for file, words in ast.literal_eval(table).items():
                    for name in words.split():
                        offers[name] = f".{file}.{name}" if file else f".{name}"
                del node.value.args[1]
        own.append(node)
    tree.body = own
    return offers


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Each name that an import from the library binds, with what is imported, dotted."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return
    for alias in node.names:
        dotted = alias.name
        if isinstance(node, ast.ImportFrom):
            dotted = f"{node.module}.{alias.name}"
        if dotted.partition(".")[0] == ROOT:
            yield alias.asname or alias.name.partition(".")[0], dotted


def _chains(tree: ast.AST) -> Iterator[str]:
    """Each name in the code with its attributes: `lab.runs.Run(...)` is "lab.runs.Run"."""
    pending = [tree]
    while pending:
        node = pending.pop()
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            yield ".".join([node.id, *attributes])
        pending += ast.iter_child_nodes(node)


def _split(name: str) -> tuple[str, str]:
    """A dotted name as its module, the longest part that is a file, and the word behind it."""
    module = name
    words = [""]
    while module != ROOT and not _file(module):
        module, _, word = module.rpartition(".")
        words.append(word)
    return module, words[-1]


def _file(module: str) -> Path | None:
    """The file of a module of the library; None for a name that is none."""
    path = LIBRARY.parent.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _module(file: Path) -> str:
    """The dotted name of a file of the library; the inverse of `_file`."""
    parts = file.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")
