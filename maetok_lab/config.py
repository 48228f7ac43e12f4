"""Change, check and store frozen config dataclasses.

A config is a frozen, keyword-only dataclass that lives beside the class it configures. It is changed only here, so that a
misspelt field or a wrong type is one clear line and never a silently ignored option.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from maetok_lab.hints import did_you_mean

Config = TypeVar("Config")


def not_in_fingerprint(default: Any) -> Any:
    """A dataclass field that does not change the result (device, workers, intervals) and so stays out of `fingerprint`."""
    return dataclasses.field(default=default, metadata={"fingerprint": False})


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of `config` with fields changed: `override(config, {"model.encoder.depth": 6})`.

    A double underscore stands for a dot too, for keyword arguments. Raises ValueError for an
    unknown field, with the nearest name, and TypeError for a value of the wrong type.
    """
    nested: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    hints = typing.get_type_hints(type(config))
    for path, value in changes.items():
        name, _, rest = path.replace("__", ".").partition(".")
        if name not in hints:
            raise ValueError(
                f"{type(config).__name__} has no field {name!r}{did_you_mean(name, hints)}"
            )
        if not rest:
            direct[name] = _checked(value, hints[name], f"{type(config).__name__}.{name}")
        elif dataclasses.is_dataclass(getattr(config, name)):
            nested.setdefault(name, {})[rest] = value
        else:
            raise ValueError(
                f"{type(config).__name__}.{name} has no fields of its own, but {path!r} asks for one"
            )
    for name, inner in nested.items():
        direct[name] = override(direct.get(name, getattr(config, name)), inner)
    return dataclasses.replace(config, **direct)


def to_json(config: Any) -> dict[str, Any]:
    """`config` as plain dicts, lists, numbers and strings; `from_json` is the inverse."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_json(cls: type[Config], data: Mapping[str, Any]) -> Config:
    """The config of class `cls` that `to_json` wrote.

    Unknown fields, and missing ones that change the result, are errors: a config is never guessed.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {unknown[0]!r}{did_you_mean(unknown[0], hints)}"
        )
    # What changes no result may be younger than the run that wrote the config.
    needed = {f.name for f in dataclasses.fields(cls) if f.metadata.get("fingerprint", True)}
    missing = sorted(needed - set(data))
    if missing:
        raise ValueError(f"{cls.__name__} needs the fields {missing}, which are not there")
    return cls(
        **{
            name: _checked(value, hints[name], f"{cls.__name__}.{name}")
            for name, value in data.items()
        }
    )


def differing_fields(mine: Any, theirs: Any, prefix: str = "") -> list[str]:
    """One line `path: mine, not theirs` for each field in which two plain-JSON configs differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted(set(mine) | set(theirs)):
            path = f"{prefix}.{key}" if prefix else key
            lines += differing_fields(mine.get(key, "(absent)"), theirs.get(key, "(absent)"), path)
        return lines
    return [] if mine == theirs else [f"{prefix}: {mine!r}, not {theirs!r}"]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it (lists become tuples, dicts become dataclasses), or a TypeError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _checked_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(
            isinstance(a, bool) for a in arguments if a == value
        ):
            raise ValueError(f"{where} must be one of {list(arguments)}, not {value!r}")
        return value
    if origin is tuple and isinstance(value, tuple | list):
        inner = arguments if Ellipsis not in arguments else (arguments[0],) * len(value)
        if len(inner) != len(value):
            raise TypeError(f"{where} needs {len(inner)} values, not {value!r}")
        return tuple(
            _checked(item, item_hint, f"{where}[{i}]")
            for i, (item, item_hint) in enumerate(zip(value, inner))
        )
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise TypeError(
            f"{where} must be {getattr(hint, '__name__', hint)}, not {type(value).__name__} {value!r}"
        )
    return value


def _checked_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    problems = []
    for hint in arguments:
        if hint is type(None):
            continue
        try:
            return _checked(value, hint, where)
        except (TypeError, ValueError) as problem:
            problems.append(problem)
    raise problems[0]
