"""Words of messages: the name that was probably meant, counts, and names safe to print."""

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
    __tracebackhide__ = True
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, choices)}")


def choose(name: str, choices: Mapping[str, Any], kind: str) -> Any:
    """`choices[name]`, after `check_choice`."""
    __tracebackhide__ = True
    check_choice(name, choices, kind)
    return choices[name]


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 picture", "2,000 pictures"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(names: Sequence[str], most: int = 3) -> str:
    """A few of many names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def printable(text: str) -> str:
    r"""Text that does nothing to a terminal: an escape code becomes `\x1b`, a byte that is no text,
    as old archives leave them in names, `\xe9`.
    """
    if text.isprintable():
        return text
    characters = []
    for character in text:
        # joiners, which letters and emoji need, are not printable but harmless
        if character.isprintable() or character in "\u200c\u200d":
            characters.append(character)
        elif "\udc80" <= character <= "\udcff":
            characters.append(f"\\x{ord(character) - 0xDC00:02x}")
        else:
            characters.append(character.encode("unicode_escape").decode())
    return "".join(characters)


def printable_lines(text: str) -> str:
    """`printable` for each line of a text."""
    return "\n".join(map(printable, text.split("\n")))
