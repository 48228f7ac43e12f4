"""Columns of one Parquet file: errors name it, and nothing is read that is far larger than it."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from maetok_lab.data.readers import BrokenImageError

_ROWS = 1024  # that are decoded at once, fewer where each may be large
_DECODED = 1 << 30  # bytes that a shard may decode to, besides a hundred times its file's


@contextlib.contextmanager
def open_shard(shard: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, whatever bytes its name holds: pyarrow's own opening takes text alone.

    Whatever goes wrong while it is open is a BrokenImageError that names it.
    """
    with named(shard), open(shard, "rb") as file, pq.ParquetFile(file) as parquet:
        rows = parquet.metadata.num_rows
        size = os.fstat(file.fileno()).st_size
        # every row is listed: a damaged number would be a list without an end
        groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
        if not 0 <= rows <= size or rows != sum(group.num_rows for group in groups):
            raise ValueError(f"it says that it has {rows} rows in {size} bytes")
        yield parquet


@contextlib.contextmanager
def named(shard: Path) -> Iterator[None]:
    """Give errors that do not name the shard its name, and say what can be done."""
    try:
        yield
    # pyarrow raises many kinds of error for a file that is cut off or damaged
    except Exception as problem:
        text = (str(problem).splitlines() or [type(problem).__name__])[0]
        if str(shard) in text:
            raise
        raise BrokenImageError(
            f"{shard} is damaged or cut off: {text}; copy or download it once more, or move it away"
        ) from problem


def batches(
    shard: Path, file: pq.ParquetFile, columns: list[str], groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Some columns of all row groups, or of some, a few rows at a time.

    ValueError where they decode to far more than the file has: one long value that each row names
    takes almost nothing in a file.
    """
    groups = range(file.metadata.num_row_groups) if groups is None else groups
    # a value is never longer than all that is encoded with it
    largest = max((file.metadata.row_group(i).total_byte_size for i in groups), default=0)
    rows = min(_ROWS, max(4, _DECODED // max(largest, 1)))
    most = _DECODED + 100 * os.path.getsize(shard)
    decoded = 0
    for batch in file.iter_batches(rows, row_groups=list(groups), columns=columns):
        decoded += batch.nbytes
        if decoded > most:
            raise ValueError(f"it decodes to more than {most / 1e9:.1f} GB")
        yield batch


def read_columns(
    shard: Path, file: pq.ParquetFile, columns: list[str], groups: Sequence[int] | None = None
) -> pa.Table:
    """What `batches` gives, as one table. ValueError where rows are missing."""
    parts = list(batches(shard, file, columns, groups))
    if not parts:
        return file.read_row_groups([], columns=columns)
    table = pa.Table.from_batches(parts)
    table.validate(full=True)  # text that is none, and places that are not there
    groups = range(file.metadata.num_row_groups) if groups is None else groups
    rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    if columns and table.num_rows != rows:
        raise ValueError(f"{table.num_rows} of {rows} rows are there")
    return table
