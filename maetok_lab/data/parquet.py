"""Parquet shards with pictures in a column, as in the shipped set and in data sets of the hub."""

import bisect
import json
import os
from collections import OrderedDict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from maetok_lab.data.listing import SPLITS, Listing, split_by_name
from maetok_lab.identity import text_hash

_IN_MEMORY = 2 << 30  # a source of at most so many bytes stays in memory once it was read


class ParquetImages:
    """The encoded pictures of Parquet shards: [i] -> bytes.

    They are kept in memory when they are small, else read by row group with a small cache.
    """

    def __init__(self, shards: list[Path], column: str, field: str | None):
        self.column = column
        self.field = field  # of the column, where it is a struct
        self.groups: list[tuple[Path, int]] = []  # shard and number of each row group
        self.starts: list[int] = []  # the first row of each, counted over all shards
        rows = num_bytes = 0
        for shard in shards:
            metadata = pq.read_metadata(shard)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                self.groups.append((shard, number))
                self.starts.append(rows)
                rows += group.num_rows
                num_bytes += group.total_byte_size
        self.cached_groups = len(self.groups) if num_bytes <= _IN_MEMORY else 8
        self.cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getitem__(self, index: int) -> bytes | None:
        """Read the encoded bytes of one row."""
        group = bisect.bisect_right(self.starts, index) - 1
        return self._read_group(group)[index - self.starts[group]].as_py()

    def _read_group(self, group: int) -> pa.ChunkedArray:
        """The pictures of one row group, from the file or the cache."""
        # two threads may both read a group that is not there; that costs time only
        column = self.cache.pop(group, None)
        if column is None:
            shard, number = self.groups[group]
            with pq.ParquetFile(shard) as file:
                column = file.read_row_group(number, columns=[self.column]).column(self.column)
            if self.field:
                column = pa.chunked_array([chunk.field(self.field) for chunk in column.chunks])
        # at the end of the order again: the group that was not read for longest goes first
        self.cache[group] = column
        if len(self.cache) > self.cached_groups:
            self.cache.popitem(last=False)
        return column


def list_parquet(shards: list[Path], *, root: Path, name: str) -> Listing:
    """List Parquet shards with an image column {bytes, path}, as the hub's, or of plain bytes.

    Columns of labels and of splits are optional. Raises ValueError for shards without images.
    """
    # all shards are as the first one
    schema = pq.read_schema(shards[0])
    column, field = _image_column(schema, shards[0])
    simple = [f.name for f in schema if f.name != column and _is_plain(f.type)]
    frames = []
    parts = []
    for shard in shards:
        relative = shard.relative_to(root).as_posix()
        frame = _read_records(shard, relative, simple, column if field else None)
        frame["split"] = _splits_of(frame, relative)
        frames.append(frame)
        parts += [relative, shard.stat().st_size, _footer(shard)]
    records = _with_category(pd.concat(frames, ignore_index=True), schema)

    # what the shipped set says of itself; other files are known by their names, sizes and footers
    facts = json.loads((schema.metadata or {}).get(b"maetok_lab", b"{}"))
    return Listing(
        name=name,
        records=records,
        files=ParquetImages(shards, column, field),
        identity=facts.get("content") or text_hash(parts),
        max_size=facts.get("max_size"),
        keep_direction=tuple(facts.get("keep_direction", ())),
    )


def _read_records(
    shard: Path, relative: str, simple: list[str], column: str | None
) -> pd.DataFrame:
    """The plain columns of a shard, and a path for each row; pictures themselves are not read.

    `column` is that of the pictures, if it is a struct: the paths inside it are taken over.
    """
    columns = [*simple, f"{column}.path"] if column else simple
    with pq.ParquetFile(shard) as file:
        table = file.read(columns=columns)
    frame = table.select(simple).to_pandas()
    if not simple:  # pandas loses the number of rows of a table without columns
        frame = pd.DataFrame(index=range(pq.read_metadata(shard).num_rows))
    paths = [f"{relative}:{row}" for row in range(len(frame))]
    if column:
        inside = table.column(column).combine_chunks().field("path").to_pylist()
        for row, path in enumerate(inside):
            if path:
                paths[row] += f":{path}"
    frame["path"] = paths
    return frame


def _footer(shard: Path) -> str:
    """The end of a Parquet file, in hex: place, size and extremes of every piece of a column."""
    size = pq.read_metadata(shard).serialized_size
    with open(shard, "rb") as file:
        file.seek(-size - 8, os.SEEK_END)  # behind it are its length and "PAR1"
        return file.read(size).hex()


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column may be a label: text, numbers, truth values, or a dictionary of them."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or types.is_integer(kind) or types.is_boolean(kind)


def _image_column(schema: pa.Schema, shard: Path) -> tuple[str, str | None]:
    """Find the column of pictures, and its field of bytes where it is a struct."""
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
    column = "image" if "image" in columns else columns[0]
    return column, "bytes" if structs else None


def _splits_of(frame: pd.DataFrame, relative: str) -> list[str]:
    """The split of every row of a shard."""
    # a column may say it
    if "split" in frame:
        unknown = sorted(set(frame["split"]) - set(SPLITS), key=str)
        if unknown:
            raise ValueError(
                f"{relative}: unknown split {unknown[0]!r} in column split;"
                f" choose from {list(SPLITS)}"
            )
        return frame["split"].map(SPLITS).tolist()
    # else the hub's names of files or folders say it, such as `train-00000-of-00004.parquet`
    for part in relative.split("/"):
        word = part.removesuffix(".parquet").split("-")[0].split("_")[0]
        if word in SPLITS:
            return [SPLITS[word]] * len(frame)
    return [split_by_name(path) for path in frame["path"]]


def _with_category(records: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Give records a category (else `all`) and a caption (else the category)."""
    columns = ("category", "label", "labels", "class")
    label = next((column for column in columns if column in records), None)
    if label is None:
        records["category"] = "all"
    elif label != "category":
        # the hub's ClassLabel: the file may say the names of its numbers
        hub = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = hub.get("info", {}).get("features", {}).get(label, {}).get("names")
        values = records[label]
        records["category"] = pd.Categorical.from_codes(values, names) if names else values
    if "caption" not in records:
        records["caption"] = records.get("text", records["category"].astype(str))
    return records
