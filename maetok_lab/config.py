"""Change, check and store frozen config dataclasses.

A config is a frozen, keyword-only dataclass that lives beside the class it configures. It is
changed only here, so that a misspelt field or a wrong type is one clear line, never an ignored
option. Notebooks leave functions that set `__tracebackhide__` out of what they print of an error:
five of them in each other say nothing more.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from maetok_lab.hints import did_you_mean

Config = TypeVar("Config")
ABSENT = "(absent)"
DEEPEST = 50  # dicts and lists in each other; no config has more than six


def not_in_fingerprint(default: Any) -> Any:
    """A config field that changes no result (device, workers): `identity.fingerprint` skips it."""
    return dataclasses.field(default=default, metadata={"fingerprint": False})


def younger(default: Any) -> Any:
    """A config field that runs on disk may lack: with `default` all is as it was without the field.

    So at its default `identity.fingerprint` skips it, and `from_json` does without it.
    """
    return dataclasses.field(default=default, metadata={"younger": True})


def content_counts(default: str | None = None) -> Any:
    """A config field that names a local file: `identity.fingerprint` takes what is in the file.

    So it may lie elsewhere on another machine, and is another one when its content is.
    """
    return dataclasses.field(default=default, metadata={"file": True})


# Changes ------------------------------------------------------------------------------------------


class Relative:
    """A change that follows from the config it is made to, such as twice its size."""

    def of(self, config: Any, path: str) -> Any:
        """The value that the field at `path` ("model.latent_dim") gets in a copy of `config`."""
        raise NotImplementedError


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of `config` with fields changed: `override(config, {"model.encoder.depth": 6})`.

    A double underscore stands for a dot too, for keyword arguments. A dict stands for a whole inner
    config: fields it lacks take their defaults; a `Relative` one follows from `config`. Raises
    ValueError for an unknown field, with the nearest name, and TypeError for a wrong type.
    """
    __tracebackhide__ = True
    class_name = type(config).__name__
    hints = typing.get_type_hints(type(config))
    # changes of the config's own fields, and, by field, those inside of configs that it holds
    values: dict[str, Any] = {}
    inner_changes: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        path = path.replace("__", ".")
        check_depth(value, f"{class_name}.{path}")
        if isinstance(value, Relative):
            value = value.of(config, path)
        name, _, inner_path = path.partition(".")
        _check_field(name, hints, class_name)
        if not inner_path:
            values[name] = _checked(value, hints[name], f"{class_name}.{name}", complete=False)
        elif dataclasses.is_dataclass(getattr(config, name)):
            inner_changes.setdefault(name, {})[inner_path] = value
        else:
            raise ValueError(
                f"{class_name}.{name} has no fields of its own, but {path!r} asks for one"
            )

    # last, so that an inner config can be replaced and a field of the new one changed in one call
    for name, inner in inner_changes.items():
        values[name] = override(values.get(name, getattr(config, name)), inner)
    return dataclasses.replace(config, **values)


def differing_fields(config: Any, other: Any, path: str = "") -> list[str]:
    """One line `path: value, not other` for each field in which two plain-JSON configs differ."""
    if not (isinstance(config, dict) and isinstance(other, dict)):
        return [] if config == other else [f"{path}: {config!r}, not {other!r}"]
    lines = []
    for name in sorted(set(config) | set(other)):
        inner_path = f"{path}.{name}" if path else name
        values = config.get(name, ABSENT), other.get(name, ABSENT)
        lines += differing_fields(*values, inner_path)
    return lines


# JSON ---------------------------------------------------------------------------------------------


def to_json(config: Any) -> dict[str, Any]:
    """`config` as plain dicts, lists, numbers and strings; `from_json` is the inverse."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def from_json(cls: type[Config], data: Mapping[str, Any]) -> Config:
    """The config of class `cls` that `to_json` wrote.

    Unknown fields, and missing ones that change the result, are errors: a config is never guessed.
    """
    __tracebackhide__ = True
    check_depth(data, cls.__name__)
    return _built(cls, data, complete=True)


def _built(cls: type[Config], data: Mapping[str, Any], *, complete: bool) -> Config:
    """A config of fields by name; where they need not be `complete`, others take their defaults."""
    __tracebackhide__ = True
    hints = typing.get_type_hints(cls)
    missing = []
    for field in dataclasses.fields(cls):
        # what changes no result may be younger than the run that wrote the config
        optional = not field.metadata.get("fingerprint", True) or "younger" in field.metadata
        if not complete:
            defaults = (field.default, field.default_factory)
            optional = any(default is not dataclasses.MISSING for default in defaults)
        if field.name not in data and not optional:
            missing.append(field.name)
    values = {}
    for name, value in data.items():
        _check_field(name, hints, cls.__name__)
        values[name] = _checked(value, hints[name], f"{cls.__name__}.{name}", complete=complete)
    if missing:
        raise ValueError(f"{cls.__name__} needs the fields {sorted(missing)}, which are not there")
    return cls(**values)


# Checks -------------------------------------------------------------------------------------------


def check_depth(value: Any, subject: str) -> None:
    """ValueError for dicts and lists that are more than `DEEPEST` deep in each other."""
    # level by level, as a function that calls itself would be what gives up
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = []
        for part in level:
            if isinstance(part, Mapping):
                inner += part.values()
            elif isinstance(part, list | tuple):
                inner += part
        level = inner
    if level:
        raise ValueError(f"{subject} is nested more than {DEEPEST} deep")


def _check_field(name: str, hints: Mapping[str, Any], class_name: str) -> None:
    __tracebackhide__ = True
    if name not in hints:
        raise ValueError(f"{class_name} has no field {name!r}{did_you_mean(name, hints)}")


def _checked(value: Any, hint: Any, path: str, *, complete: bool) -> Any:
    """`value` as its annotation `hint` has it, or an error that names its `path`.

    What JSON cannot hold is made of what it can: lists become tuples, and dicts configs, with all
    of their fields if these must be `complete`.
    """
    __tracebackhide__ = True
    origin = get_origin(hint)
    parts = get_args(hint)
    if origin in (Union, types.UnionType):
        return _checked_union(value, parts, path, complete=complete)
    if origin is Literal:
        # True == 1, but is not what Literal[1] means
        if not any(value == part and type(value) is type(part) for part in parts):
            raise ValueError(f"{path} must be one of {list(parts)}, not {value!r}")
        return value
    if origin is tuple and isinstance(value, tuple | list):
        # tuple[float, ...] takes any number, tuple[float, float] two
        if Ellipsis in parts:
            parts = parts[:1] * len(value)
        if len(parts) != len(value):
            raise TypeError(f"{path} needs {len(parts)} values, not {value!r}")
        pairs = enumerate(zip(value, parts))
        return tuple(
            _checked(item, part, f"{path}[{i}]", complete=complete) for i, (item, part) in pairs
        )

    # a config of a run has been through JSON, and 1 is written for 1.0 by hand
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _built(hint, value, complete=complete)
    if hint is float and type(value) is int:
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        name = getattr(hint, "__name__", hint)
        raise TypeError(f"{path} must be {name}, not {type(value).__name__} {value!r}")
    return value


def _checked_union(value: Any, hints: tuple[Any, ...], path: str, *, complete: bool) -> Any:
    __tracebackhide__ = True
    if value is None and type(None) in hints:
        return None
    # the first type that fits; where none does, the error of the first
    problems = []
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return _checked(value, hint, path, complete=complete)
        except (TypeError, ValueError) as problem:
            problems.append(problem)
    raise problems[0]
