"""Parquet shards with pictures in a column, as in the shipped set and in data sets of the hub."""

import bisect
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import types

from maetok_lab.data.columns import batches, named, open_shard, read_columns
from maetok_lab.data.digests import Contents, digest, file_digest
from maetok_lab.data.listing import Listing, sound_shards
from maetok_lab.data.readers import BrokenImageError
from maetok_lab.data.splits import (
    LEFT_OUT,
    Patterns,
    drawn_split,
    matched_split,
    named_split,
    place_pictures,
    split_of_shards,
)
from maetok_lab.hints import counted, some
from maetok_lab.walking import Names, printable

_IN_MEMORY = 2 << 30  # a source of at most so many bytes stays in memory once it was read
_AT_ONCE = 16  # row groups of a larger one that are held, if they have no more than these bytes
_HELD = 256 << 20
LABELS = ("category", "label", "labels", "class")  # columns that may say the class, best first


class ParquetImages:
    """The encoded pictures of Parquet shards: [i] -> bytes, or the path of a file.

    They are kept in memory when they are small, else read by row group with a small cache.
    """

    def __init__(self, shards: list[Path], column: str, root: Path):
        self.shards = shards
        self.column = column
        self.root = root  # paths inside a shard are relative to it, or to the shard
        self.groups: list[tuple[int, int]] = []  # shard and number of each row group
        self.starts: list[int] = []  # the first row of each, counted over all shards
        self.counts: list[int] = []  # rows of each shard
        num_bytes = 0
        self.outside: set[int] = set()  # shards some of whose pictures lie in other files
        for number, shard in enumerate(shards):
            with open_shard(shard) as file:
                metadata = file.metadata
            rows = sum(self.counts)
            for part in range(metadata.num_row_groups):
                group = metadata.row_group(part)
                self.groups.append((number, part))
                self.starts.append(rows)
                rows += group.num_rows
                num_bytes += group.total_byte_size
            self.counts.append(metadata.num_rows)
        # how many groups an order should stay within, None for any (see `training.order`)
        self.at_once = None
        self.cached_groups = len(self.groups)
        if num_bytes > _IN_MEMORY:
            self.at_once = max(1, min(_AT_ONCE, _HELD * len(self.groups) // num_bytes))
            self.cached_groups = self.at_once + 1
        self.cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> bytes | Path | None:
        """Read the encoded bytes of one row, or say in which file they are."""
        group = bisect.bisect_right(self.starts, index) - 1
        shard, _ = self.groups[group]
        column = self._read_group(group)
        with named(self.shards[shard]):
            return self._picture(shard, column[index - self.starts[group]].as_py())

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of each row's row group."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def hash_file(self, shard: int) -> bytes:
        """The digests of a shard's pictures, joined."""
        digests = []
        try:
            with open_shard(self.shards[shard]) as file:
                for batch in batches(self.shards[shard], file, [self.column]):
                    for value in batch.column(0).to_pylist():
                        picture = self._picture(shard, value)
                        if isinstance(picture, Path):
                            self.outside.add(shard)
                            digests.append(file_digest(picture))
                        else:
                            digests.append(digest(picture))
        except (BrokenImageError, OSError):  # a damaged page: what is behind it cannot be read
            digests += [digest(None)] * (self.counts[shard] - len(digests))
        return b"".join(digests)

    def _picture(self, shard: int, value: bytes | dict | None) -> bytes | Path | None:
        """What a row holds: bytes, {bytes, path}, or a path of which the bytes lie in a file."""
        if not isinstance(value, dict):
            return value
        if value["bytes"] is None and value["path"]:
            for folder in (self.shards[shard].parent, self.root):
                file = folder / value["path"]
                if os.path.isfile(file):  # unlike Path.is_file, never raises
                    return file
        return value["bytes"]

    def _read_group(self, group: int) -> pa.ChunkedArray:
        """The pictures of one row group, from the file or the cache."""
        # two threads may both read a group that is not there; that costs time only
        column = self.cache.pop(group, None)
        if column is None:
            shard, number = self.groups[group]
            with open_shard(self.shards[shard]) as file:
                table = read_columns(self.shards[shard], file, [self.column], [number])
            column = table.column(self.column)
        # at the end of the order again: the group that was not read for longest goes first
        self.cache[group] = column
        if len(self.cache) > self.cached_groups:
            self.cache.popitem(last=False)
        return column


def list_parquet(shards: list[Path], *, root: Path, name: str, patterns: Patterns) -> Listing:
    """List Parquet shards with an image column {bytes, path}, as the hub's, or of plain bytes.

    Columns of labels and of splits are optional. Raises ValueError for shards without images.
    """
    shards, columns, notices = sound_shards(shards, _image_column)
    column = columns[0]
    relative = [shard.relative_to(root).as_posix() for shard in shards]
    files = ParquetImages(shards, column, root)
    records, metadata = _read_records(shards, relative, column, notices)
    draw_names = records.pop("draw_name").tolist()
    drawn = _find_splits(records, draw_names, relative, files.counts, patterns, notices)
    _find_category(records, _hub_names(metadata))

    # what the shipped set says of itself
    facts = _json_in(metadata[0], b"maetok_lab")
    counts = np.array(files.counts, np.int64)
    contents = Contents(
        str(root.absolute()), Names(relative), counts, files.hash_file, files.outside
    )
    return Listing(
        name=name,
        records=records,
        files=files,
        contents=contents,
        draw_names=lambda: draw_names,
        drawn=drawn,
        facts=facts,
        notices=tuple(notices),
        max_size=facts.get("max_size"),
        keep_direction=tuple(facts.get("keep_direction", ())),
    )


def _read_records(
    shards: list[Path], relative: list[str], column: str, notices: list[str]
) -> tuple[pd.DataFrame, list[Mapping[bytes, bytes]]]:
    """The plain columns of all shards with a path for each row, and each shard's metadata.

    Pictures themselves are not read. A column that a shard lacks, as test splits lack labels, has
    no value there.
    """
    tables = []
    metadata = []
    for shard, name in zip(shards, map(printable, relative)):
        with open_shard(shard) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise ValueError(
                    f"{shard} has no image column {column!r}, as the others have;"
                    f" it has {schema.names}"
                )
            plain = [f.name for f in schema if f.name != column and _is_plain(f.type)]
            is_struct = types.is_struct(schema.field(column).type)
            table = read_columns(shard, file, [*plain, f"{column}.path"] if is_struct else plain)
            rows = file.metadata.num_rows
            metadata.append(schema.metadata or {})
        # a picture's own path, where it has one, is what the other forms of a set call it
        paths = [f"{name}:{row}" for row in range(rows)]
        own = [None] * rows
        if is_struct:
            own = table.column(column).combine_chunks().field("path").to_pylist()
        names = pa.array([inside or path for path, inside in zip(paths, own)], pa.string())
        paths = [f"{path}:{inside}" if inside else path for path, inside in zip(paths, own)]
        table = table.select([name for name in plain if name not in ("path", "draw_name")])
        table = _decoded(table).append_column("path", pa.array(paths, pa.string()))
        tables.append(table.append_column("draw_name", names))
    return _to_pandas(_joined(tables, notices)), metadata


def _decoded(table: pa.Table) -> pa.Table:
    """Dictionaries of plain values as those values, unless their order is the file's own say."""
    for place, field in enumerate(table.schema):
        if types.is_dictionary(field.type) and not field.type.ordered:
            values = table.column(place).cast(field.type.value_type)
            table = table.set_column(place, field.name, values)
    return table


def _joined(tables: list[pa.Table], notices: list[str]) -> pa.Table:
    """All tables in one; a column that has text in one and numbers in another becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        notices.append("columns differ in type among the shards: all are read as text")
    texts = []
    for table in tables:
        columns = {name: table.column(name).cast(pa.string()) for name in table.column_names}
        texts.append(pa.table(columns))
    return pa.concat_tables(texts, promote_options="permissive")


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """A frame whose whole numbers stay whole, where some are missing or were written as floats."""
    frame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns):
        if types.is_floating(column.type) or (column.null_count and types.is_integer(column.type)):
            try:
                frame[name] = pd.array(column.to_pylist(), dtype="Int64")
            except (TypeError, ValueError, OverflowError):  # fractions, or numbers past 64 bits
                frame[name] = frame[name].map(str, na_action="ignore")
    return frame


def _json_in(metadata: Mapping[bytes, bytes], key: bytes) -> dict[str, Any]:
    """A dict that a file's metadata hold as JSON; {} where there is none that can be read."""
    try:
        content = json.loads(metadata.get(key, b"{}"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _hub_names(metadata: list[Mapping[bytes, bytes]]) -> dict[str, list[str]]:
    """The names of classes by column, as the hub's files say them; any shard may."""
    names_of: dict[str, list[str]] = {}
    for part in metadata:
        content = _json_in(part, b"huggingface")
        for key in ("info", "features"):
            content = content.get(key)
            content = content if isinstance(content, dict) else {}
        for column, feature in content.items():
            names = feature.get("names") if isinstance(feature, dict) else None
            if isinstance(names, list) and names and len(set(map(str, names))) == len(names):
                names_of.setdefault(column, list(map(str, names)))
    return names_of


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column may be a label: text, numbers, truth values, or a dictionary of them."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind)  # pandas writes 1.0 beside a null
    return text or number or types.is_boolean(kind)


def _image_column(shard: Path) -> str:
    """Find the column of pictures. Raises ValueError for a file without one."""
    with open_shard(shard) as file:
        schema = file.schema_arrow
    # the hub's pictures are structs {bytes, path}; such a column goes before plain bytes
    structs = []
    binaries = []
    for column in schema:
        kind = column.type
        if types.is_struct(kind):
            if {"bytes", "path"} <= {field.name for field in kind}:
                structs.append(column.name)
        elif types.is_binary(kind) or types.is_large_binary(kind):
            binaries.append(column.name)
    columns = structs or binaries
    if not columns:
        raise ValueError(
            f"{shard} has no image column {{bytes, path}} and no binary column;"
            f" it has {schema.names}"
        )
    return "image" if "image" in columns else columns[0]


def _find_splits(
    records: pd.DataFrame,
    draw_names: Sequence[str],
    relative: Sequence[str],
    counts: Sequence[int],
    patterns: Patterns,
    notices: list[str],
) -> bool:
    """Give every row its split: by a column `split`, else by its shard's name, else by its own.

    -> whether they were dealt out by names
    """
    by_shard, said = split_of_shards(relative, patterns)
    splits = [split for split, count in zip(by_shard, counts) for _ in range(count)]

    # a column may say it, in the same words; what a person wrote by hand may name its values
    if "split" in records:
        of_value = {}
        for value in records["split"].unique():
            word = "" if pd.isna(value) else str(value)
            match = matched_split([word], patterns)
            of_value[value] = match[0] if match else (None if patterns else named_split(word))
        if any(of_value.values()):
            unknown = sorted(str(value) for value, split in of_value.items() if split is None)
            splits = [of_value[value] or LEFT_OUT for value in records["split"]]
            said = []
            if unknown:
                notices.append(
                    f"{counted(splits.count(LEFT_OUT), 'row')} left out: split"
                    f" {some(unknown)} is none of train, val and test; split_names ="
                    f' {{"val": "{unknown[0]}", ...}} makes it one'
                )
    notices += said
    drawn = False
    if None in splits:  # the pictures' own paths may
        folders = [name.rpartition("/")[0] for name in draw_names]
        placed = place_pictures(folders, [name.rpartition("/")[2] for name in draw_names], patterns)
        drawn = placed.drawn
        notices += placed.notices
        splits = placed.splits
        if drawn:  # by the whole path: a column says the class, no folder
            splits = list(map(drawn_split, draw_names))
    records["split"] = [split or LEFT_OUT for split in splits]
    return drawn


def _find_category(records: pd.DataFrame, names_of: Mapping[str, list[str]]) -> None:
    """Give records a category (else `all`) and a caption (else the category).

    `names_of` are the hub's ClassLabels. A label of -1 is none: so the hub's sets mark pictures
    whose classes are secret.
    """
    label = next((column for column in LABELS if column in records), None)
    for column in {*names_of, label} & set(records.columns):
        if pd.api.types.is_integer_dtype(records[column]):
            names = names_of.get(column)
            records[column] = _without_secrets(records[column], records["split"], bool(names))
            if names and column != label:
                records[column] = _named(records, column, names)
    if label is None:
        records["category"] = "all"
    elif label in names_of and pd.api.types.is_integer_dtype(records[label]):
        records["category"] = _named(records, label, names_of[label])
    elif label != "category":
        records["category"] = records[label]
    if "caption" not in records:
        records["caption"] = records.get("text", records["category"].astype(str))


def _without_secrets(values: pd.Series, splits: pd.Series, are_classes: bool) -> pd.Series:
    """Labels with nothing in place of -1, where that is no class like others."""
    is_secret = values == -1
    if not are_classes:  # plain numbers may be below zero: unless a split has nothing but -1
        is_secret &= is_secret.groupby(splits).transform("all")
    return values.astype("Int64").mask(is_secret.fillna(False)) if is_secret.any() else values


def _named(records: pd.DataFrame, label: str, names: list[str]) -> pd.Categorical:
    """Numbers of classes by their names. Raises ValueError for a number that has none."""
    numbers = records[label].fillna(-1).astype(np.int64)
    odd = np.flatnonzero((numbers < -1) | (numbers >= len(names)))
    if len(odd):
        raise ValueError(
            f"{records['path'][odd[0]]}: {label} {numbers[odd[0]]} is none of the"
            f" {len(names)} classes that the file names"
        )
    return pd.Categorical.from_codes(numbers, names)
