"""The comment beside or above a field is its documentation: an extension of griffe for that."""

import functools
import io
import tokenize
from pathlib import Path
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Gives each attribute without a docstring the comment that its line has."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe for every attribute that it has read."""
        if attr.docstring is None and attr.lineno and isinstance(attr.filepath, Path):
            words = comment_of(attr.filepath, attr.lineno, attr.endlineno or attr.lineno)
            if words:
                attr.docstring = griffe.Docstring(words, lineno=attr.lineno, parent=attr)


def comment_of(file: Path, first: int, last: int) -> str:
    """The comment on lines `first` to `last` of a file, else that on the lines above."""
    comments, own_lines = _comments(file)
    # a long value has comments of its own inside: only its first and last line speak of the whole
    for line in (first, last):
        if line in comments and line not in own_lines:
            return comments[line]
    above = []
    line = first - 1
    while line in own_lines:
        above.insert(0, comments[line])
        line -= 1
    return " ".join(above)


@functools.cache
def _comments(file: Path) -> tuple[dict[int, str], set[int]]:
    """By line: the words of its comment. And the lines that hold nothing else."""
    comments = {}
    own_lines = set()
    text = file.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").rstrip(" -")
            if not token.line[: token.start[1]].strip():
                own_lines.add(token.start[0])
    return comments, own_lines
