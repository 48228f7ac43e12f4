"""What a notebook can be asked: its parameters cell, read without running it, and values for it.

papermill injects a misspelt name with a warning, turns a tuple into a string and cannot pass a
path. Here a wrong name or type is one clear error before any kernel starts.
"""

import ast
import dataclasses
import io
import json
import math
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maetok_lab.config import check_depth, override
from maetok_lab.device import named_device
from maetok_lab.hints import check_choice, did_you_mean

PLAIN = (str, bool, int, float, type(None))  # what papermill writes as it stands


# What a notebook declares -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One assignment of a parameters cell."""

    name: str
    default: Any
    description: str  # the comment behind it
    choices: tuple[str, ...] = ()  # that its cell's metadata lists; () where any word will do


def read_cells(path: str | Path) -> list[dict[str, Any]]:
    """The cells of a notebook file, each with `source` as one string.

    Raises FileNotFoundError with the nearest name, and ValueError for a file that is no notebook.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no notebook {path}{nearest_file(path)}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]
    except RecursionError:
        raise ValueError(f"{path} is not a notebook: its JSON is nested too deeply") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is not a notebook (nbformat 4): {problem!r}") from None


def nearest_file(path: Path) -> str:
    """What a message about a missing file says next: the nearest name of its kind beside it."""
    siblings = [file.name for file in path.parent.glob(f"*{path.suffix}")]
    return did_you_mean(path.name, siblings) if siblings else ""


def read_parameters(path: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, in its order; {} without a cell tagged `parameters`.

    The cell's metadata may list what a parameter can be: {"choices": {"preset": ["test", "tiny"]}}.
    """
    for cell in read_cells(path):
        metadata = cell.get("metadata", {})
        if cell["cell_type"] != "code" or "parameters" not in metadata.get("tags", []):
            continue
        try:
            parameters = declared_parameters(cell["source"])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
            raise ValueError(
                f"the parameters cell of {path} must be literal assignments: {problem}"
            ) from None
        for name, choices in metadata.get("choices", {}).items():
            if name in parameters:
                parameters[name] = dataclasses.replace(parameters[name], choices=tuple(choices))
        return parameters
    return {}


def read_defaults(path: str | Path) -> dict[str, Any]:
    """The parameters of a notebook with their default values."""
    return {name: parameter.default for name, parameter in read_parameters(path).items()}


def declared_parameters(source: str) -> dict[str, Parameter]:
    """The literal assignments in the source of a parameters cell; ValueError for anything else."""
    body = ast.parse(source).body  # before it is taken apart: this ends sooner where it must
    # The comment of a parameter ends the line on which its value ends.
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").rstrip()

    parameters = {}
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case _:  # papermill could not put another value below it
                raise ValueError(f"line {node.lineno} is not of the form `name = value`")
        try:
            default = ast.literal_eval(value)
        except ValueError:
            raise ValueError(f"line {node.lineno}: {ast.unparse(value)} is not a literal") from None
        parameters[name] = Parameter(name, default, comments.get(node.end_lineno, ""))
    return parameters


# Values for it ----------------------------------------------------------------------------------


def check_parameters(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` as the notebook will get them: absolute strings for paths, lists for tuples.

    Raises ValueError for a name that has no default, TypeError for a value of another type than
    its default. What lists and dicts hold is not compared.
    """
    # The parameters are made a config, so that they are checked as every config is. A default of
    # None means optional and takes any plain value; a config's `object` alone would refuse a bool.
    types = {}
    for name, default in defaults.items():
        types[name] = object | bool if default is None else type(_plain(default, name))
    config_class = dataclasses.make_dataclass("Parameters", types.items(), frozen=True)

    for name, value in changes.items():
        check_depth(value, f"Parameters.{name}")
    plain = {name: _plain(value, name) for name, value in changes.items()}
    config = override(config_class(**defaults), plain)
    return {name: getattr(config, name) for name in changes}


def check_words(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> None:
    """ValueError, with the nearest one, for a word that is none of its parameter's choices.

    Of a list each word is looked at; a `device` is one that torch knows, on this machine or not.
    """
    for name, value in values.items():
        words = value if isinstance(value, list) else [value]
        for word in words:
            if isinstance(word, str) and parameters[name].choices:
                check_choice(word, parameters[name].choices, name)
            elif isinstance(word, str) and name == "device" and word != "auto":
                named_device(word)


def parse_parameters(
    defaults: Mapping[str, Any], pairs: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Values typed on a command line: Python literals, or strings as they stand."""
    return {name: _parsed(defaults.get(name), text) for name, text in pairs}


def _plain(value: Any, name: str) -> Any:
    """`value` as a notebook can be handed it: strings, numbers, None, lists and dicts of them."""
    if isinstance(value, Path):
        return str(value.absolute())  # the kernel works in another folder
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, name) for key, item in value.items()}
    # a notebook is UTF-8, and no path or line of Python holds a NUL
    if isinstance(value, str) and ("\0" in value or not _is_utf8(value)):
        raise ValueError(f"Parameters.{name} must be text of a notebook, not {value!r}")
    if type(value) in PLAIN and not (isinstance(value, float) and math.isnan(value)):
        return value
    raise TypeError(
        f"Parameters.{name} must be made of plain Python values, "
        f"not {type(value).__name__} {value!r}"
    )


def _is_utf8(text: str) -> bool:
    return text.encode("utf-8", "ignore").decode() == text


def _parsed(default: Any, text: str) -> Any:
    # where the default is a string, 3 is "3": a preset may have such a name
    if isinstance(default, str):
        return text
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text
    except (SyntaxError, RecursionError, MemoryError) as problem:
        # Python's parser gives up on what is nested too deeply; anything else is a word
        if isinstance(problem, SyntaxError) and "nested" not in str(problem):
            return text
        raise ValueError(f"a value of {len(text):,} characters is nested too deeply") from None
