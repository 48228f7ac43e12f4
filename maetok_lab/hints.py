"""What a message about an unknown name says next."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `choices`, or the list of them when nothing is near."""
    choices = sorted(map(str, choices))
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of {choices}"
