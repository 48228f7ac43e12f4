"""What a source is once it was looked through, before any picture is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from maetok_lab.data.digests import Contents


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All pictures of a source, of every split."""

    name: str  # for messages
    # a row a picture: `path`, `split` ("" for none), `category`, `caption` and what else it says
    records: pd.DataFrame
    files: Sequence  # [row] -> the path or the encoded bytes of the picture
    contents: Contents | None = None  # the same pictures by file, for their digests
    identity: str | None = None  # of a source that states a hash of its content instead
    drawn: bool = False  # no name says the splits: they were dealt out by name
    notices: tuple[str, ...] = ()  # what was left out or guessed, to be said once
    max_size: int | None = None  # pixels of artwork that was drawn at one size
    keep_direction: tuple[str, ...] = ()  # categories whose pictures must not be mirrored


def whole_shards(shards: list[Path], magic: bytes, kind: str) -> tuple[list[Path], list[str]]:
    """Those of `shards` that start with `magic`, and notices of the others.

    Raises ValueError when none does.
    """
    whole = []
    problems = []
    for shard in shards:
        with open(shard, "rb") as file:
            start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            problems.append(
                f"{shard} is a pointer of Git LFS, not the data: `git lfs pull` gets it"
            )
        elif start.startswith(magic):
            whole.append(shard)
        else:
            problems.append(f"{shard} is no {kind} file")
    if not whole:
        raise ValueError(problems[0])
    return whole, [f"left out: {problem}" for problem in problems]
