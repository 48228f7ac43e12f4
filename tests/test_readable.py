"""How the library and the notebooks read, in numbers.

The limits lie between the first edition's numbers and those of smalldiffusion, nanochat, edm2, mae
and handson-ml3, measured in the same way. Whoever meets one by packing lines breaks another.
"""

import ast
import io
import json
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("maetok_lab/**/*.py")}
TREES = {path: ast.parse(text) for path, text in FILES.items()}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DENSE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)
# The first edition had 131,608. Reading anybody's images took 12 thousand: rules for splits,
# identity of content, what is left out and why, odd files, probes that stream. Three more start
# and stop processes from a notebook. Six are for agreement with everybody: other people's
# checkpoints, mixtures far from zero, exact neighbours in float32's time, definitions of numbers.
# Seven are a demo, a map and stills of our own, which also live on a busy machine, and pages. Ten
# hold against attack: fences, endings and parents of runs, a server that ends its kernels, one
# guard for pictures, weights of strangers, words that are checked before anything starts. Twenty
# measure what the field has found since the paper: denoisers, mixed latents, grids, neighbours,
# ways; other people's tokenizers and results by name, other targets and times of training. Ten are
# rivals of the paper's masks, its ablations by name, and a study of all of them with its control.
# One puts into words what each rung means and what numbers say, for the notebooks.
# Six explain: the method as a picture of real data, mixtures and guidance to be looked at, and
# sentences that say what a notebook's numbers are.
MOST_TOKENS = 213_000
# Bare participles and question words say what happened to a thing, not what it is.
QUESTION_WORDS = {
    *("found", "told", "known", "kept", "asked", "wanted", "made", "given", "taken", "shown"),
    *("seen", "chosen", "picked", "done", "named", "what", "which", "who", "whose", "where"),
    *("how", "others", "rest", "mine", "theirs", "thing", "things", "few", "most"),
}
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def notebook_cells():
    """The code cells of each notebook, by its file's name."""
    notebooks = {}
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        notebooks[path.name] = [
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
        ]
    return notebooks


def as_module(cells):
    """A notebook's cells as a Python file, in which nothing is awaited outside of a function."""
    lines = "\n\n".join(cells).splitlines()
    for number, line in enumerate(lines):
        if line.lstrip().startswith("await "):
            lines[number] = line.replace("await ", "")
    return "\n".join(lines) + "\n"


NOTEBOOKS = notebook_cells()
MODULES = {name: as_module(cells) for name, cells in NOTEBOOKS.items()}


# Numbers ------------------------------------------------------------------------------------------


def docstring_lines(tree):
    """The numbers of the lines that docstrings take."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def comment_lines(text):
    """The numbers of the lines with a comment for people."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    for_tools = ("# fmt", "# noqa", "# type")
    return [token.start[0] for token in comments if not token.string.startswith(for_tools)]


def tokens_by_line(text, tree):
    """The number of code tokens of each line that has any."""
    docstrings = docstring_lines(tree)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = [token.start[0] for token in tokens if token.type not in NO_CODE]
    return Counter(line for line in code if line not in docstrings)


def bound_names(tree):
    """Every name that is assigned, and every parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def is_paired(node):
    """`a, b = x, y`; unpacking what a call returns is not."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    )


def measure(texts, columns):
    """The numbers of some files: shares in percent, counts by 1000 lines."""
    counts = Counter()
    tokens = []
    for text in texts:
        tree = ast.parse(text)
        nodes = list(ast.walk(tree))
        names = list(bound_names(tree))
        rows = text.splitlines()
        counts["lines"] += len(rows)
        counts["long"] += sum(len(row) > columns for row in rows)
        counts["comments"] += len(comment_lines(text))
        counts["dense"] += sum(isinstance(node, DENSE) for node in nodes)
        counts["paired"] += sum(map(is_paired, nodes))
        counts["names"] += len(names)
        counts["question words"] += sum(name in QUESTION_WORDS for name in names)
        tokens += tokens_by_line(text, tree).values()
    tokens.sort()
    thousand = counts["lines"] / 1000
    return {
        "comments, % of lines": round(counts["comments"] / thousand / 10, 1),
        "long lines, %": round(counts["long"] / thousand / 10, 1),
        "tokens a line, ninth decile": tokens[int(0.9 * len(tokens))],
        "comprehensions and ternaries in 1000 lines": round(counts["dense"] / thousand, 1),
        "paired assignments in 1000 lines": round(counts["paired"] / thousand, 1),
        "question words, % of names": round(100 * counts["question words"] / counts["names"], 2),
        "code tokens": sum(tokens),
    }


LIBRARY_LIMITS = {
    "long lines, %": 0.5,
    "tokens a line, ninth decile": 20,
    "comprehensions and ternaries in 1000 lines": 35,
    "paired assignments in 1000 lines": 4,
    "question words, % of names": 0.3,
    "code tokens": MOST_TOKENS - 1,
}
NOTEBOOK_LIMITS = {
    "long lines, %": 0.5,
    "tokens a line, ninth decile": 20,
    "comprehensions and ternaries in 1000 lines": 50,
    "paired assignments in 1000 lines": 4,
    "question words, % of names": 0.3,
}


@pytest.fixture(scope="module")
def library():
    return measure(FILES.values(), columns=100)


@pytest.fixture(scope="module")
def notebooks():
    return measure(MODULES.values(), columns=95)


def test_the_library_has_comments(library):
    assert library["comments, % of lines"] >= 6


@pytest.mark.parametrize("number", LIBRARY_LIMITS)
def test_the_library_is_not_packed(library, number):
    assert library[number] <= LIBRARY_LIMITS[number]


@pytest.mark.parametrize("number", NOTEBOOK_LIMITS)
def test_notebooks_are_not_packed(notebooks, number):
    assert notebooks[number] <= NOTEBOOK_LIMITS[number]


# Sizes --------------------------------------------------------------------------------------------


def each(kinds):
    """(place, node, text) of every node of these kinds in the library."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                yield place, node, FILES[path]


def test_no_file_is_over_400_lines():
    lengths = {path.name: len(text.splitlines()) for path, text in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_over_60_lines():
    lengths = {place: node.end_lineno - node.lineno + 1 for place, node, _ in each(FUNCTIONS)}
    assert {place: length for place, length in lengths.items() if length > 60} == {}


def test_no_cell_of_a_notebook_is_over_25_lines():
    lengths = {
        (name, number): len(cell.splitlines())
        for name, cells in NOTEBOOKS.items()
        for number, cell in enumerate(cells, start=1)
    }
    assert {place: length for place, length in lengths.items() if length > 25} == {}


def test_no_notebook_has_more_than_four_import_lines():
    imports = {
        name: sum(
            isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(text))
        )
        for name, text in MODULES.items()
    }
    assert {name: count for name, count in imports.items() if count > 4} == {}


# Words --------------------------------------------------------------------------------------------


def test_docstrings_have_under_60_words():
    words = {}
    for place, node, _ in each((ast.ClassDef, *FUNCTIONS)):
        words[place] = len((ast.get_docstring(node) or "").split())
    assert {place: count for place, count in words.items() if count >= 60} == {}


def is_config(node):
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    return "frozen=True" in decorators and "kw_only=True" in decorators


def fields_of(node):
    return [line for line in node.body if isinstance(line, ast.AnnAssign)]


def test_each_field_of_a_config_has_a_comment_beside_or_above_it():
    bare = []
    for place, node, text in each(ast.ClassDef):
        fields = fields_of(node)
        # the results among them, without any default, say in their docstring what they hold
        if is_config(node) and any(field.value for field in fields):
            comments = set(comment_lines(text))
            own_lines = {n for n in comments if text.splitlines()[n - 1].lstrip().startswith("#")}
            for field in fields:
                beside = comments & set(range(field.lineno, field.end_lineno + 1))
                if not beside and field.lineno - 1 not in own_lines:
                    bare.append(f"{place}.{field.target.id}")
    assert bare == []


def test_a_function_of_more_than_15_lines_has_a_comment():
    bare = []
    for place, node, text in each(FUNCTIONS):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if body and node.end_lineno - body[0].lineno + 1 > 15:
            lines = range(body[0].lineno - 1, node.end_lineno + 1)
            if not set(lines) & set(comment_lines(text)):
                bare.append(place)
    assert bare == []
