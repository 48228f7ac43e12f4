"""Parameters cells are read without running them, values checked before any kernel starts."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from maetok_lab.workflow.parameters import (
    check_parameters,
    check_words,
    declared_parameters,
    parse_parameters,
    read_parameters,
)

CELL = """\
preset = "tiny"  # which sizes: test, tiny
seed = 0  # of every draw
rate = 0.5  # of class dropout
widgets = True
components = [1, 5]  # of the mixture
table = {"a": 1}
runs = None  # folder for runs; None is runs/
"""


@pytest.fixture
def declared():
    return declared_parameters(CELL)


@pytest.fixture
def defaults(declared):
    return {name: parameter.default for name, parameter in declared.items()}


def write(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def test_names_defaults_and_comments_are_read_in_order(declared):
    assert list(declared) == ["preset", "seed", "rate", "widgets", "components", "table", "runs"]
    assert declared["preset"].default == "tiny"
    assert declared["preset"].description == "which sizes: test, tiny"
    assert declared["components"].default == [1, 5]
    assert declared["widgets"].description == ""


def test_only_the_tagged_cell_counts(tmp_path):
    tagged = new_code_cell("a = 1", metadata={"tags": ["parameters"]})
    path = write(tmp_path / "one.ipynb", new_markdown_cell("# One"), new_code_cell("b = 2"), tagged)
    assert list(read_parameters(path)) == ["a"]
    assert read_parameters(write(tmp_path / "none.ipynb", new_code_cell("a = 1"))) == {}


@pytest.mark.parametrize(
    "line",
    [
        "a = b",
        "a: int = 1",
        "a = b = 1",
        "a, b = 1, 2",
        "print()",
        "a = 2 * 3 * b",
        "a =",
        "del a",
        "import a",
        "a += 1",
    ],
)
def test_a_cell_with_anything_but_literal_assignments_is_refused(tmp_path, line):
    path = write(tmp_path / "bad.ipynb", new_code_cell(line, metadata={"tags": ["parameters"]}))
    with pytest.raises(ValueError, match=r"bad\.ipynb must be literal assignments"):
        read_parameters(path)


def test_an_unknown_name_gets_the_nearest_one(defaults):
    with pytest.raises(ValueError, match="no field 'presett'; did you mean 'preset'"):
        check_parameters(defaults, {"presett": "tiny"})
    with pytest.raises(ValueError, match="no field 'preset'; choose one of \\[\\]"):
        check_parameters({}, {"preset": "tiny"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preset", 3),
        ("preset", None),
        ("seed", 1.0),
        ("seed", True),
        ("seed", "1"),
        ("rate", "0.5"),
        ("rate", True),
        ("rate", float("nan")),
        ("widgets", 1),
        ("components", 3),
        ("table", [1]),
        ("runs", object()),
        ("components", [object()]),
    ],
)
def test_a_wrong_type_is_refused_with_what_came(defaults, name, value):
    with pytest.raises(TypeError, match=f"Parameters.{name} must be"):
        check_parameters(defaults, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "arrives"),
    [
        ("rate", 1, 1.0),
        ("components", (1, 2, 3), [1, 2, 3]),
        ("components", [], []),
        ("table", {"b": (1, None)}, {"b": [1, None]}),
        ("runs", None, None),
        ("runs", True, True),
        ("runs", 3, 3),
        ("runs", [1.5, "x"], [1.5, "x"]),
        ("preset", Path("/some/where"), "/some/where"),
        ("runs", Path("here"), str(Path.cwd() / "here")),
    ],
)
def test_values_arrive_as_the_notebook_can_take_them(defaults, name, value, arrives):
    got = check_parameters(defaults, {name: value})[name]
    assert got == arrives
    assert type(got) is type(arrives)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("preset", "tiny", "tiny"),
        ("preset", "3", "3"),
        ("seed", "3", 3),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2),
        ("widgets", "false", False),
        ("widgets", "True", True),
        ("components", "[1, 20]", [1, 20]),
        ("runs", "None", None),
        ("runs", "/tmp/my runs", "/tmp/my runs"),
        ("runs", "(1, 2)", (1, 2)),
        ("unknown", "x", "x"),
    ],
)
def test_words_of_a_command_line_become_literals_or_stay_strings(defaults, name, text, value):
    got = parse_parameters(defaults, [(name, text)])[name]
    assert got == value
    assert type(got) is type(value)


def test_a_missing_notebook_and_a_file_that_is_none_are_one_clear_line(tmp_path):
    write(tmp_path / "00_start_here.ipynb")
    with pytest.raises(FileNotFoundError, match=r"did you mean '00_start_here\.ipynb'"):
        read_parameters(tmp_path / "00_start.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.ipynb is not a notebook"):
        read_parameters(tmp_path / "broken.ipynb")


def test_a_word_that_is_none_of_the_choices_is_refused(tmp_path):
    metadata = {"tags": ["parameters"], "choices": {"preset": ["test", "tiny"], "other": ["x"]}}
    cell = new_code_cell(CELL + 'device = "auto"\nkinds = ["a"]\n', metadata=metadata)
    cell.metadata.choices["kinds"] = ["a", "b"]
    declared = read_parameters(write(tmp_path / "a.ipynb", cell))
    assert declared["preset"].choices == ("test", "tiny")
    for wrong, message in [
        ({"preset": "tset"}, "unknown preset 'tset'; did you mean 'test'"),
        ({"kinds": ["a", "q"]}, r"unknown kinds 'q'; choose one of \['a', 'b'\]"),
        ({"device": "gpu"}, "unknown device 'gpu'; did you mean 'cpu'"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_words(declared, wrong)
    # whether a device is there is for the machine to say that runs the notebook
    check_words(declared, {"preset": "test", "kinds": ["b"], "device": "cuda:7", "runs": "q"})
    check_words(declared, {"device": "auto"})


def test_comments_with_equal_signs_are_read_as_comments():
    declared = declared_parameters("t = 0.5  # t = 1 is noise\nword = 'a = 1 # b'  # x=2\n")
    assert {name: each.default for name, each in declared.items()} == {
        "t": 0.5,
        "word": "a = 1 # b",
    }
    assert declared["t"].description == "t = 1 is noise"


@pytest.mark.parametrize("depth", [60, 300, 5_000, 1_000_000])
def test_what_is_nested_too_deeply_is_one_line(defaults, tmp_path, depth):
    pairs = [("runs", "[" * depth + "]" * depth)]
    with pytest.raises(ValueError, match=r"nested (too deeply|more than 50 deep)"):
        check_parameters(defaults, parse_parameters(defaults, pairs))
    value = []
    for _ in range(depth):
        value = [value]
    with pytest.raises(ValueError, match=r"Parameters\.runs is nested more than 50 deep"):
        check_parameters(defaults, {"runs": value})
    cell = new_code_cell(f"a = {'[' * depth}{']' * depth}", metadata={"tags": ["parameters"]})
    if depth > 60:
        with pytest.raises(ValueError, match=r"of .*deep\.ipynb must be literal"):
            read_parameters(write(tmp_path / "deep.ipynb", cell))
    (tmp_path / "json.ipynb").write_text("[" * depth)
    with pytest.raises(ValueError, match=r"json\.ipynb is not a notebook"):
        read_parameters(tmp_path / "json.ipynb")


@pytest.mark.parametrize("word", ["\0", "~\0", "caf\udce9", "\ud800"])
def test_text_that_no_notebook_can_hold_is_refused(defaults, word):
    with pytest.raises(ValueError, match=r"Parameters\.preset must be text of a notebook, not '"):
        check_parameters(defaults, {"preset": word})
    with pytest.raises(ValueError, match=r"Parameters\.table must be text of a notebook, not '"):
        check_parameters(defaults, {"table": {"a": [word]}})
