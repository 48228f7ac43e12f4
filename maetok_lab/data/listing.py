"""What a source is once it was looked through, before any picture is decoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maetok_lab.data.digests import Contents
from maetok_lab.data.splits import LEFT_OUT, stand_in
from maetok_lab.hints import check_choice, counted, some
from maetok_lab.walking import printable

_NOT_LABELS = ("path", "split", "caption", "text")  # columns of the records that are no class


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All pictures of a source, of every split."""

    name: str  # for messages
    # a row a picture: `path`, `split` ("" for none), `category`, `caption` and what else it says
    records: pd.DataFrame
    files: Sequence  # [row] -> the path or the encoded bytes of the picture
    contents: Contents | None = None  # the same pictures by file, for their digests
    identity: str | None = None  # of a source that states a hash of its content instead
    draw_names: Callable[[], Sequence[str]]  # what each row's split is drawn by, if it has to be
    drawn: bool = False  # no name says the splits: they were dealt out by name
    facts: Mapping[str, Any] = field(default_factory=dict)  # what a set of ours says of itself
    notices: tuple[str, ...] = ()  # what was left out or guessed, to be said once
    max_size: int | None = None  # pixels of artwork that was drawn at one size
    keep_direction: tuple[str, ...] = ()  # categories whose pictures must not be mirrored


def sound_shards(
    shards: list[Path], read: Callable[[Path], Any]
) -> tuple[list[Path], list[Any], list[str]]:
    """Those of `shards` that `read` can read, what it gives of each, and notices of the others.

    Raises the ValueError of the first one when none can be read.
    """
    sound = []
    contents = []
    problems = []
    for shard in shards:
        try:
            with open(shard, "rb") as file:
                start = file.read(64)
            if start.startswith(b"version https://git-lfs"):
                raise ValueError(
                    f"{shard} is a pointer of Git LFS, not the data: `git lfs pull` gets it"
                )
            contents.append(read(shard))
            sound.append(shard)
        # libraries raise many kinds of error for files that are cut off or damaged
        except Exception as problem:
            text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            problems.append(text if str(shard) in text else f"{shard}: {text}")
    if not sound:
        raise ValueError(problems[0])
    return sound, contents, [f"left out: {printable(problem)}" for problem in problems]


def label_values(listing: Listing, labels: str) -> tuple[np.ndarray, list[str]]:
    """Number the label of every row of the listing -> int64 (rows,), -1 for none; class names."""
    records = listing.records
    choices = [name for name in records.columns if name not in _NOT_LABELS]
    if {"category", "style"} <= set(choices):
        choices.append("category-style")
    check_choice(labels, choices, f"labels for {listing.name}")
    if labels in records:
        column = records[labels]
    else:
        column = records["category"] + " / " + records["style"]

    # what is in no split makes no class
    column = column.where(records["split"] != LEFT_OUT)
    if isinstance(column.dtype, pd.CategoricalDtype):
        # the file's own numbering, classes without images included
        values = column.cat.codes.to_numpy()
        names = column.cat.categories
    else:
        values, names = pd.factorize(column, sort=True)
    return values.astype(np.int64), [str(name) for name in names]


def labelled_rows(
    listing: Listing, split: str, values: np.ndarray, labels: str
) -> tuple[str, np.ndarray, list[str]]:
    """The split that is read for `split`, its rows that have a label, and notices.

    `values` are those of `label_values`. Raises ValueError for a split that is not there.
    """
    splits = listing.records["split"].to_numpy(object)
    split, notice = stand_in(split, splits, values >= 0)
    rows = np.flatnonzero(splits == split)
    if not len(rows):
        there = ", ".join(sorted(set(splits) - {LEFT_OUT}))
        raise ValueError(
            f"{listing.name} has no images in split {split!r}; it has {there}."
            ' split_names={"SPLIT": "PATTERN"} names others by hand'
        )

    # what has no label is left out, unless that is all
    has_label = values[rows] >= 0
    if not has_label.any():
        raise ValueError(
            f"{listing.name}: no picture of {split} has a {labels}; name a column that all"
            ' have with labels="COLUMN"'
        )
    notices = [notice] if notice else []
    unlabelled = rows[~has_label]
    if len(unlabelled):
        examples = some(listing.records["path"].iloc[unlabelled[:4]].tolist())
        notices.append(
            f"{counted(len(unlabelled), 'picture')} of {split} without a {labels}"
            f" left out ({examples})"
        )
    return split, rows[has_label], notices
