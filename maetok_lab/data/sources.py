"""What there is to read: the shipped emoji, image folders, Parquet and tar shards, listed before any picture is decoded.

To add a format: list it into a `Listing` here, and name its suffix in `list_source`.
"""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from maetok_lab.data.readers import SUFFIXES
from maetok_lab.data.tars import COMPRESSED, TarImages, index_shards
from maetok_lab.identity import hash_of, text_hash

EMOJI = Path(__file__).resolve().parents[2] / "data" / "emoji.parquet"
SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_IN_MEMORY = (
    2 << 30
)  # encoded bytes of Parquet images that are kept rather than read again by row group


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """All pictures of a source: records has `path`, `split`, `category`, `caption` and whatever else the source tells.

    files[i] is the path or the bytes of row i; identity says what the content is.
    """

    name: str
    records: pd.DataFrame
    files: Sequence
    identity: str
    max_size: int | None = None
    keep_direction: tuple[str, ...] = ()


def list_source(source: str | Path) -> Listing:
    """List the shipped set ("emoji"), an image folder, or one or more Parquet files or tar shards (a file or a folder)."""
    if source == "emoji":
        if not EMOJI.exists():
            raise FileNotFoundError(
                f"the shipped set is missing: {EMOJI}; make it with `python data/build_emoji.py`"
            )
        return list_parquet([EMOJI], root=EMOJI.parent, name="emoji")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no source {str(source)!r}; it must be 'emoji', an image folder, or Parquet or tar file(s)"
        )
    root = path if path.is_dir() else path.parent
    files = [*path.glob("*"), *path.glob("*/*")] if path.is_dir() else [path]
    parquet, tars = (
        sorted(f for f in files if f.suffix.lower() == suffix and f.is_file())
        for suffix in (".parquet", ".tar")
    )
    if parquet and tars:
        raise ValueError(
            f"{path} holds both Parquet and tar shards; name a file or folder of one kind"
        )
    if parquet:
        return list_parquet(parquet, root=root, name=str(path))
    if tars:
        return list_tars(tars, root=root, name=str(path))
    if path.is_dir():
        return list_folder(path)
    if path.name.lower().endswith(COMPRESSED):
        raise ValueError(
            f"{path} is compressed; pictures are read at random, so unpack it to a plain .tar"
        )
    raise ValueError(f"{path} is neither a folder nor a .parquet or .tar file")


def split_by_name(name: str) -> str:
    """Draw a split from a file's relative name alone: 80% train, 10% val, 10% test, the same on every machine."""
    fraction = int(hash_of([name.encode("utf-8", "surrogateescape")])[:8], 16) / 2**32
    return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"


# ---- folders ----
def list_folder(root: Path) -> Listing:
    """List root/class/*, root/train/class/* beside root/val/class/*, or a flat root/* (one class, `all`).

    A split's folder may have a year, as COCO's val2017.
    """
    files = [
        Path(folder, file) for folder, _, names in os.walk(root, followlinks=True) for file in names
    ]
    files = sorted(f for f in files if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        kinds = "no *.parquet, no *.tar (compressed ones must be unpacked)"
        raise ValueError(f"{root} has no images: {kinds} and none of {', '.join(sorted(SUFFIXES))}")
    names = [file.relative_to(root).as_posix() for file in files]
    folders = {name.split("/")[0] for name in names if "/" in name}
    explicit = {
        folder
        for folder in folders
        if _without_year(folder) in {"train", "val", "valid", "validation"}
    }
    splits, classes = [], []
    for name in names:
        *folders, _ = name.split("/")
        if explicit:
            split = SPLITS.get(_without_year(folders[0])) if folders else None
            if split is None:
                raise ValueError(
                    f"{root} has folders {sorted(explicit)}, but {name} is in no split's folder"
                )
            splits.append(split)
            folders = folders[1:]
        else:
            splits.append(split_by_name(name))
        classes.append(folders[0] if folders else "")
    if "" in classes and len(set(classes)) > 1:
        beside = names[classes.index("")]
        raise ValueError(f"{root} mixes class folders with images beside them ({beside})")
    classes = [name or "all" for name in classes]
    captions = [
        file.stem if name == "all" else f"{name}/{file.stem}" for file, name in zip(files, classes)
    ]
    records = pd.DataFrame(
        {"path": names, "split": splits, "category": classes, "caption": captions}
    )
    identity = text_hash(
        part for name, file in zip(names, files) for part in (name, file.stat().st_size)
    )
    return Listing(name=str(root), records=records, files=files, identity=identity)


def _without_year(folder: str) -> str:
    return re.sub(r"20\d\d$", "", folder)


# ---- Parquet ----
class ParquetImages:
    """The encoded pictures of Parquet shards: in memory when they are small, else by row group with a small cache."""

    def __init__(self, shards: list[Path], column: str, field: str | None):
        self.shards, self.column, self.field = shards, column, field
        self.groups: list[tuple[int, Path, int]] = []  # first row, shard, row group
        self.rows, num_bytes = 0, 0
        for shard in shards:
            metadata = pq.read_metadata(shard)
            for group in range(metadata.num_row_groups):
                self.groups.append((self.rows, shard, group))
                self.rows += metadata.row_group(group).num_rows
                num_bytes += metadata.row_group(group).total_byte_size
        self.cached_groups = len(self.groups) if num_bytes <= _IN_MEMORY else 8
        self.cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __len__(self) -> int:
        """Count the rows of all shards."""
        return self.rows

    def __getitem__(self, index: int) -> bytes | None:
        """Read the encoded bytes of one row."""
        low, high = 0, len(self.groups)
        while high - low > 1:  # the last group that begins at or before index
            middle = (low + high) // 2
            low, high = (middle, high) if self.groups[middle][0] <= index else (low, middle)
        return self._read_group(low)[index - self.groups[low][0]].as_py()

    def _read_group(self, number: int) -> pa.ChunkedArray:
        column = self.cache.pop(number, None)  # threads may read a group twice; never a missing one
        if column is None:
            _, shard, group = self.groups[number]
            with pq.ParquetFile(shard) as file:
                column = file.read_row_group(group, columns=[self.column]).column(self.column)
            if self.field:
                column = pa.chunked_array([chunk.field(self.field) for chunk in column.chunks])
        self.cache[number] = column
        if len(self.cache) > self.cached_groups:
            self.cache.popitem(last=False)
        return column


def list_parquet(shards: list[Path], *, root: Path, name: str) -> Listing:
    """List Parquet shards with an image column {bytes, path} (or plain bytes) and optional label and split columns."""
    schema = pq.read_schema(shards[0])
    column, field = _image_column(schema, shards[0])
    simple = [f.name for f in schema if f.name != column and _is_plain(f.type)]
    frames = []
    for shard in shards:
        with pq.ParquetFile(shard) as file:  # of the pictures, only their paths
            table = file.read(columns=[*simple, f"{column}.path"] if field else simple)
        relative = shard.relative_to(root).as_posix()
        frame = table.select(simple).to_pandas()
        if not simple:
            frame = pd.DataFrame(index=range(pq.read_metadata(shard).num_rows))
        inside = table.column(column).combine_chunks() if field else None
        paths = inside.field("path").to_pylist() if field else [None] * len(frame)
        frame["path"] = [
            f"{relative}:{row}" + (f":{path}" if path else "") for row, path in enumerate(paths)
        ]
        frame["split"] = _splits_of(frame, relative)
        frames.append(frame)
    records = _with_category(pd.concat(frames, ignore_index=True), schema)
    facts = json.loads((schema.metadata or {}).get(b"maetok_lab", b"{}"))
    identity = facts.get("content") or text_hash(
        part
        for shard in shards
        for part in (shard.relative_to(root), shard.stat().st_size, pq.read_metadata(shard))
    )
    return Listing(
        name=name,
        records=records,
        files=ParquetImages(shards, column, field),
        identity=identity,
        max_size=facts.get("max_size"),
        keep_direction=tuple(facts.get("keep_direction", ())),
    )


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _image_column(schema: pa.Schema, shard: Path) -> tuple[str, str | None]:
    """Find the column of pictures, and its field of bytes where it is a struct."""
    structs = [
        f.name
        for f in schema
        if pa.types.is_struct(f.type) and {"bytes", "path"} <= {g.name for g in f.type}
    ]
    binaries = [
        f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
    ]
    found = structs or binaries
    if not found:
        raise ValueError(
            f"{shard} has no image column {{bytes, path}} and no binary column; it has {schema.names}"
        )
    column = "image" if "image" in found else found[0]
    return column, "bytes" if structs else None


def _splits_of(frame: pd.DataFrame, relative: str) -> list[str]:
    """Take a split column, else the hub's file or folder name (`train-00000-of-00004`), else the row's name."""
    if "split" in frame:
        unknown = sorted(set(frame["split"]) - set(SPLITS), key=str)
        if unknown:
            raise ValueError(
                f"{relative}: unknown split {unknown[0]!r} in column split; choose from {list(SPLITS)}"
            )
        return frame["split"].map(SPLITS).tolist()
    for part in relative.split("/"):
        word = part.removesuffix(".parquet").split("-")[0].split("_")[0]
        if word in SPLITS:
            return [SPLITS[word]] * len(frame)
    return [split_by_name(path) for path in frame["path"]]


def _with_category(records: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Give records a category (from `label`, by its ClassLabel names where the file tells them) and a caption."""
    label = next(
        (name for name in ("category", "label", "labels", "class") if name in records), None
    )
    if label is None:
        records["category"] = "all"
    elif label != "category":
        hub = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = hub.get("info", {}).get("features", {}).get(label, {}).get("names")
        values = records[label]
        records["category"] = pd.Categorical.from_codes(values, names) if names else values
    if "caption" not in records:
        records["caption"] = (
            records["text"] if "text" in records else records["category"].astype(str)
        )
    return records


# ---- tar ----
def list_tars(shards: list[Path], *, root: Path, name: str) -> Listing:
    """List webdataset's tar shards; split by shard name, else by key.

    The category is what .cls or .json say (a number where all are), else the picture's folder, else `all`.
    """
    frames = index_shards(shards)
    relative = [shard.relative_to(root).as_posix() for shard in shards]
    parts = []
    for shard, frame in zip(relative, frames):
        part = pd.DataFrame(
            {
                "path": shard + ":" + frame["member"],
                "category": frame["category"],
                "caption": frame["caption"],
            }
        )
        part["split"] = _split_of_shard(shard) or [split_by_name(key) for key in frame["key"]]
        parts.append(part)
    records, place = pd.concat(parts, ignore_index=True), pd.concat(frames, ignore_index=True)
    if not len(records):
        raise ValueError(
            f"{name}: {shards[0].name} holds no images ({', '.join(sorted(SUFFIXES))}); move other archives away"
        )
    if records["category"].isna().all():
        folders = place["key"].str.rpartition("/")[0].str.rpartition("/")[2]
        records["category"] = folders.where(folders != "", "all")
    elif records["category"].str.fullmatch(r"\d+").all():
        records["category"] = records["category"].astype(int)
    records["caption"] = records["caption"].fillna(records["category"].astype(str))
    shard_of = np.repeat(np.arange(len(shards)), [len(frame) for frame in frames])
    files = TarImages(
        shards, shard_of, place["offset"].to_numpy(np.int64), place["size"].to_numpy(np.int64)
    )
    identity = text_hash(
        map(str, zip(records["path"], place["size"], records["category"], records["caption"]))
    )
    return Listing(name=name, records=records, files=files, identity=identity)


def _split_of_shard(relative: str) -> str | None:
    """Find the split in a shard's file or folder name: `train-0001.tar`, `val/0001.tar`, `imagenet1k-train-0001.tar`."""
    return next((SPLITS[word] for word in re.split(r"[-_./]", relative) if word in SPLITS), None)
