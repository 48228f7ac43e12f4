"""A notebook's code is its cells and what they import: no comments, docstrings, or other files."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from maetok_lab.workflow import code
from maetok_lab.workflow.code import code_hash, reached_code, read_code

REAL = code.LIBRARY
TOY = {  # a library with a front door, a package that offers names, and a file for each question
    "__init__.py": '''"""A map."""
from maetok_lab._setup import set_up
from maetok_lab.lazy import lazy_names

set_up()

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__, {"": "widgets", "training.loop": "train stop", "runs": "Run"}
)
''',
    "_setup.py": "def set_up(): pass",
    "lazy.py": "import importlib\ndef lazy_names(package, names): importlib.import_module(package)",
    "config.py": "SIZE = 1",
    "runs/__init__.py": "from maetok_lab.runs.run import Run\n"
    "from maetok_lab.runs.table import table",
    "runs/run.py": "from maetok_lab.config import SIZE\nclass Run: size = SIZE",
    "runs/table.py": "def table(): return 1",
    "training/__init__.py": "",
    "training/loop.py": "def train():\n"
    "    from maetok_lab.training.guard import guard\n    guard()",
    "training/guard.py": "def guard(): return 1",
    "widgets/__init__.py": "from maetok_lab.lazy import lazy_names\n"
    "_NAMES, __getattr__, __dir__ = lazy_names(__name__, {'grid': 'Grid', 'live': 'follow'})",
    "widgets/live.py": "def follow(): return 1",
    "widgets/grid.py": "class Grid: script = 'grid.js'\nWORKER = 'maetok_lab.training.guard'",
    "widgets/grid.js": "draw()",
}


def write(path, *cells):
    cells = [cell if hasattr(cell, "cell_type") else new_code_cell(cell) for cell in cells]
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The folder of the toy library."""
    folder = tmp_path / "maetok_lab"
    for name, source in TOY.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    monkeypatch.setattr(code, "LIBRARY", folder)
    read_code.cache_clear()
    yield folder
    read_code.cache_clear()


def reached(*cells):
    """The files of the library that cells reach, as names."""
    files = reached_code(read_code("\n".join(cells)).names)
    return {file.relative_to(code.LIBRARY).as_posix() for file in files}


def test_the_hash_sees_code_but_not_prose_outputs_comments_or_docstrings(tmp_path):
    base = code_hash(write(tmp_path / "a.ipynb", new_markdown_cell("one"), "def f(): return 1"))
    for number, same in enumerate(
        [
            "def f(): return 1  # a comment",
            "# a comment\n\ndef f():\n    return 1",
            'def f():\n    """A docstring."""\n    return 1',
            '"""A docstring."""\ndef f(): return 1',
        ]
    ):
        path = write(tmp_path / f"same-{number}.ipynb", new_markdown_cell("two"), same)
        assert code_hash(path) == base
    assert code_hash(write(tmp_path / "b.ipynb", "def f(): return 2")) != base
    assert code_hash(write(tmp_path / "c.ipynb", "def f(): return '1'")) != base


FRONT = {"__init__.py", "_setup.py", "lazy.py"}
RUN = {*FRONT, "runs/__init__.py", "runs/run.py", "config.py"}
TRAIN = {*FRONT, "training/__init__.py", "training/loop.py", "training/guard.py"}
LIVE = {"widgets/__init__.py", "widgets/live.py"}
ALL = {name for name in TOY if name.endswith(".py")}


@pytest.mark.parametrize(
    ("cell", "files"),
    [
        ("import torch\ntorch.zeros(1)", set()),
        ("import maetok_lab as lab\nprint(lab.__doc__)", FRONT),
        ("import maetok_lab as lab\nlab.train(1)", TRAIN),
        ("import maetok_lab\nmaetok_lab.Run.open('x')", RUN),
        ("from maetok_lab import train", TRAIN),
        ("import maetok_lab as lab\nlab.widgets.follow", {*FRONT, *LIVE}),
        ("from maetok_lab.widgets import follow as f\nf()", {*FRONT, *LIVE}),
        ("from maetok_lab.runs import Run", RUN),
        ("from maetok_lab import runs\nruns.Run", RUN),
        ("from maetok_lab import runs as r\nr.run.Run", RUN),
        ("def f():\n    import maetok_lab.config", {*FRONT, "config.py"}),
        (
            "from maetok_lab.widgets import grid",  # which starts another file as a program
            {*FRONT, "widgets/__init__.py", "widgets/grid.py"}
            | {"training/__init__.py", "training/guard.py"},
        ),
        # What cannot be resolved needs all that there is.
        ("import maetok_lab as lab\nlab.unknown()", ALL),
        ("import maetok_lab as lab\ngetattr(lab, name)", ALL),
        ("from maetok_lab import *", ALL),
        ("from maetok_lab import runs\nprint(runs)", {*RUN, "runs/table.py"}),
    ],
)
def test_imports_are_followed_name_by_name(library, cell, files):
    assert reached(cell) == files


def test_a_name_imported_in_one_cell_is_followed_in_others(library):
    assert reached("import maetok_lab as lab", "lab.train()") == TRAIN


@pytest.mark.parametrize("cell", ["%matplotlib inline", "importlib.import_module(name)"])
def test_a_cell_that_may_do_anything_needs_all(library, tmp_path, cell):
    path = write(tmp_path / "magic.ipynb", cell)
    before = code_hash(path)
    (library / "config.py").write_text("SIZE = 2")
    assert code_hash(path) != before


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("runs/run.py", "from maetok_lab.config import SIZE\nclass Run: size = SIZE + 1", False),
        ("config.py", "SIZE = 2", False),
        ("config.py", '"""Sizes."""\n\nSIZE = 1  # pixels', True),
        ("training/guard.py", "def guard(): return 2", True),
        ("runs/table.py", "def table(): return 2", True),
        ("new.py", "NEW = 1", True),
        ("_setup.py", "def set_up(): return 1", False),
        ("__init__.py", TOY["__init__.py"].replace("train stop", "train"), True),
        ("__init__.py", TOY["__init__.py"] + "print(1)", False),
        ("widgets/grid.js", "draw(1)", True),
    ],
)
def test_what_changes_the_hash_of_a_notebook_that_imports_runs(library, tmp_path, file, text, same):
    path = write(tmp_path / "n.ipynb", "import maetok_lab as lab\nlab.Run()")
    before = code_hash(path)
    (library / file).write_text(text)
    assert (code_hash(path) == before) == same


def test_javascript_is_code_of_the_file_that_names_it(library, tmp_path):
    path = write(tmp_path / "n.ipynb", "import maetok_lab.widgets.grid")
    before = code_hash(path)
    (library / "widgets" / "grid.js").write_text("draw(1)")
    assert code_hash(path) != before


# The library itself ---------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the whole library, which may be changed."""
    folder = tmp_path / "maetok_lab"
    shutil.copytree(REAL, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "LIBRARY", folder)
    read_code.cache_clear()
    yield folder
    read_code.cache_clear()


def with_comments_and_docstrings(text):
    """A file with a comment behind it, and another docstring for the file and each function."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.Expr(ast.Constant("Another docstring."))
            node.body = [docstring] + node.body[ast.get_docstring(node) is not None :]
    return f"# A comment.\n{ast.unparse(tree)}\n# Another one.\n"


def test_comments_and_docstrings_anywhere_leave_every_notebook_finished(copy, repository):
    notebooks = sorted((repository / "notebooks").glob("*.ipynb"))
    before = [code_hash(path) for path in notebooks]
    for file in copy.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if text.strip():
            file.write_text(with_comments_and_docstrings(text))
    assert [code_hash(path) for path in notebooks] == before


def test_a_notebook_about_images_does_not_depend_on_models_but_on_images(copy, repository):
    path = repository / "notebooks" / "01_images.ipynb"
    before = code_hash(path)
    for name in ("tokenizer/model.py", "workflow/sweep.py", "__main__.py"):
        (copy / name).write_text((copy / name).read_text() + "\nNEW = 1\n")
    assert code_hash(path) == before
    (copy / "data" / "readers.py").write_text(
        (copy / "data" / "readers.py").read_text() + "\nNEW = 1\n"
    )
    assert code_hash(path) != before


def test_the_library_imports_nothing_by_a_name_that_is_computed():
    """Such an import could not be followed; the tables of `lazy_names` are."""
    # a user's own tokenizer is none of the library: its fingerprint says what it is
    apart = {REAL / "lazy.py", REAL / "tokenizer" / "imported.py"}
    for file in Path(REAL).rglob("*.py"):
        if file not in apart:
            assert not re.search(r"import_module\(|__import__\(", file.read_text()), file
