"""Refuse an unknown name with the one that was probably meant."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LISTED = 60  # names that a message can hold; of more, such as all of timm's, only the nearest


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `choices`, or their list when none is near."""
    choices = sorted(map(str, choices))
    # 0.6 is difflib's own: 'tinny' finds 'tiny', 'xyz' finds nothing
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose one of {choices}" if len(choices) <= LISTED else ""


def check_choice(name: str, choices: Iterable[str], kind: str) -> None:
    """Raise a ValueError, "unknown KIND NAME; did you mean ...", unless `name` is a choice."""
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, choices)}")


def choose(name: str, choices: Mapping[str, Any], kind: str) -> Any:
    """`choices[name]`, after `check_choice`."""
    check_choice(name, choices, kind)
    return choices[name]


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 picture", "2,000 pictures"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(names: Sequence[str], most: int = 3) -> str:
    """A few of many names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
