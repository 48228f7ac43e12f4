"""What a source is once it was looked through, and how pictures without a split get one."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from maetok_lab.identity import hash_of

SPLITS = {  # by the names that data sets give them
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All pictures of a source, of every split."""

    name: str  # for messages
    # a row a picture: `path`, `split`, `category`, `caption` and whatever else the source says
    records: pd.DataFrame
    files: Sequence  # [row] -> the path or the encoded bytes of the picture
    identity: str  # hash of the content
    max_size: int | None = None  # pixels of artwork that was drawn at one size
    keep_direction: tuple[str, ...] = ()  # categories whose pictures must not be mirrored


def split_by_name(name: str) -> str:
    """Draw a split from a relative file name: 80% train, 10% val, 10% test, alike everywhere."""
    # of the name alone, so that a new picture moves no other one
    fraction = int(hash_of([name.encode("utf-8", "surrogateescape")])[:8], 16) / 2**32
    if fraction < 0.8:
        return "train"
    return "val" if fraction < 0.9 else "test"
