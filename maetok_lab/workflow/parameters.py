"""What a notebook can be asked: its parameters cell, read without running it, and values checked against it.

papermill injects a misspelt name with a warning, turns a tuple into a string and cannot pass a path at all. Here a
wrong name or type is one clear error before any kernel starts.
"""

import ast
import dataclasses
import hashlib
import io
import json
import math
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maetok_lab.hints import did_you_mean

PLAIN = (str, bool, int, float, type(None))


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One assignment of a parameters cell: its name, its default and the comment behind it."""

    name: str
    default: Any
    description: str


def read_cells(path: str | Path) -> list[dict[str, Any]]:
    """The cells of a notebook file, each with `source` as one string; a missing file raises with the nearest name."""
    path = Path(path)
    if not path.is_file():
        there = [other.name for other in path.parent.glob("*.ipynb")]
        raise FileNotFoundError(
            f"no notebook {path}{did_you_mean(path.name, there) if there else ''}"
        )
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is not a notebook (nbformat 4): {problem!r}") from None


def read_parameters(path: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, in its order; {} for a notebook without a cell tagged `parameters`."""
    for cell in read_cells(path):
        if cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", []):
            try:
                return declared_parameters(cell["source"])
            except (SyntaxError, ValueError) as problem:
                raise ValueError(
                    f"the parameters cell of {path} must be literal assignments: {problem}"
                ) from None
    return {}


def declared_parameters(source: str) -> dict[str, Parameter]:
    """The literal assignments in the source of a parameters cell; anything else in it raises ValueError."""
    comments = _comments(source)
    found = {}
    for node in ast.parse(source).body:
        if (
            not isinstance(node, ast.Assign)
            or len(node.targets) != 1
            or not isinstance(node.targets[0], ast.Name)
        ):
            raise ValueError(f"line {node.lineno} is not of the form `name = value`")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(
                f"line {node.lineno}: {ast.unparse(node.value)} is not a literal"
            ) from None
        name = node.targets[0].id
        found[name] = Parameter(name, default, comments.get(node.end_lineno, ""))
    return found


def check_parameters(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` as the notebook will get it: paths as absolute strings, tuples as lists, an int for a float as a float.

    Raises ValueError for a name that is not declared, and TypeError for a value of another type than the default's. A
    default of None means optional and takes any plain value. What lists and dicts hold is not compared.
    """
    for name in given:
        if name not in declared:
            hint = did_you_mean(name, declared) if declared else "; it has none"
            raise ValueError(f"the notebook has no parameter {name!r}{hint}")
    return {name: _checked(declared[name], value) for name, value in given.items()}


def parse_parameters(
    declared: Mapping[str, Parameter], given: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Values typed on a command line, as `check_parameters` takes them: Python literals, or strings as they stand."""
    return {
        name: _parsed(declared[name].default if name in declared else None, text)
        for name, text in given
    }


def code_hash(path: str | Path) -> str:
    """Hash of what a notebook would run: its code cells (not the prose) and the library's source."""
    digest = hashlib.sha256()
    for cell in read_cells(path):
        if cell["cell_type"] == "code":
            digest.update(
                json.dumps([cell["source"], cell.get("metadata", {}).get("tags", [])]).encode()
            )
    library = Path(__file__).parent.parent
    for file in sorted(library.rglob("*.py")):
        digest.update(
            json.dumps(
                [file.relative_to(library).as_posix(), file.read_text(encoding="utf-8")]
            ).encode()
        )
    return digest.hexdigest()[:16]


def _comments(source: str) -> dict[int, str]:
    """Line number -> the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _checked(parameter: Parameter, value: Any) -> Any:
    value = _plain(value, parameter.name)
    default = (
        parameter.default if not isinstance(parameter.default, tuple) else list(parameter.default)
    )
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    raise TypeError(
        f"parameter {parameter.name!r} must be {type(default).__name__} (its default is {default!r}), "
        f"not {type(value).__name__} {value!r}"
    )


def _plain(value: Any, name: str) -> Any:
    """`value` out of what a notebook can be handed: strings, numbers, None, lists and dicts of them."""
    if isinstance(value, Path):
        return str(value.absolute())  # the kernel works in another folder
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, name) for key, item in value.items()}
    if type(value) in PLAIN and not (isinstance(value, float) and math.isnan(value)):
        return value
    raise TypeError(
        f"parameter {name!r} must be made of plain Python values, not {type(value).__name__} {value!r}"
    )


def _parsed(default: Any, text: str) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
