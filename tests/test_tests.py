"""Every test asserts something, itself or through a function of the tests that does."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
# of pytest, torch, numpy, pandas and playwright: what raises where an expectation is not met
ASSERTING = {"raises", "warns", "fail", "wait_for", "assert_close", "assert_allclose"}
ASSERTING |= {"assert_array_equal", "assert_frame_equal", "assert_series_equal"}


def functions():
    """(file, function) of every function under tests/, methods and inner ones included."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(TESTS), node


def names_in(function):
    """What a function calls: names, and of methods those that assert; "assert" for a statement."""
    names = {argument.arg for argument in function.args.args}  # fixtures
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            names.add("assert")
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in ASSERTING:
            names.add(node.attr)
    return names


def test_every_test_has_an_assertion_that_can_fail():
    uses = {}  # by name, as helpers are imported from file to file
    tests = []
    for path, function in functions():
        uses.setdefault(function.name, set()).update(names_in(function))
        if function.name.startswith("test_"):
            tests.append((path, function))
    assert len(tests) > 1000

    # helpers that assert, those that call them, and so on
    asserting = ASSERTING | {"assert"}
    larger = asserting | {name for name, names in uses.items() if names & asserting}
    while larger != asserting:
        asserting = larger
        larger = asserting | {name for name, names in uses.items() if names & asserting}
    without = []
    for path, function in tests:
        if not names_in(function) & asserting:
            without.append(f"{path}:{function.lineno} {function.name}")
    assert without == []
