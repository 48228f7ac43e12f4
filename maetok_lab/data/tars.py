"""Tar shards as webdataset writes them: `key.jpg` beside `key.cls`, `key.json` and `key.txt`.

Pictures are read at random by offset. The headers are read once a process, with the standard
library (about a minute for a million pictures); nothing is written beside the shards, which may be
read-only.
"""

import functools
import json
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from maetok_lab.data.listing import SPLITS, Listing, split_by_name
from maetok_lab.data.readers import SUFFIXES
from maetok_lab.identity import text_hash

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TEXTS = ("cls", "json", "txt")  # label, anything, caption
_LONGEST_TEXT = 1 << 20  # bytes; what describes one picture is far shorter
_READERS = 8  # shards whose headers are read at once: that is mostly waiting for the disk


class TarImages:
    """The encoded pictures of tar shards: [i] -> bytes. Safe in threads, forks and pickles."""

    def __init__(
        self, shards: list[Path], shard_of: np.ndarray, offset: np.ndarray, size: np.ndarray
    ):
        self.shards = shards
        self.shard_of = shard_of  # (n,) the number of the shard that holds picture i
        self.offset = offset  # (n,) the first byte of the picture inside that shard
        self.size = size  # (n,) the number of its bytes

    def __getitem__(self, index: int) -> bytes:
        """Read the encoded bytes of one picture."""
        # opened anew every time: an open file has one position, which threads would share
        with open(self.shards[self.shard_of[index]], "rb", buffering=0) as file:
            file.seek(int(self.offset[index]))
            return file.read(int(self.size[index]))


def list_tars(shards: list[Path], *, root: Path, name: str) -> Listing:
    """List webdataset's tar shards; split by shard name, else by key.

    The category is what .cls or .json say (a number where all are), else the picture's folder, else
    `all`. Raises ValueError for shards without images.
    """
    # a shard's name says its split; where it does not, each key is drawn into one
    frames = index_shards(shards)
    parts = []
    for shard, frame in zip(shards, frames):
        relative = shard.relative_to(root).as_posix()
        part = frame[["category", "caption"]].copy()
        part.insert(0, "path", relative + ":" + frame["member"])
        part["split"] = _split_of_shard(relative) or [split_by_name(key) for key in frame["key"]]
        parts.append(part)
    records = pd.concat(parts, ignore_index=True)
    index = pd.concat(frames, ignore_index=True)
    if not len(records):
        raise ValueError(
            f"{name}: {shards[0].name} holds no images ({', '.join(sorted(SUFFIXES))});"
            " move other archives away"
        )

    # no .cls or .json says a class: the folder inside the shard does
    if records["category"].isna().all():
        folders = index["key"].str.rpartition("/")[0].str.rpartition("/")[2]
        records["category"] = folders.where(folders != "", "all")
    elif records["category"].str.fullmatch(r"\d+").all():
        records["category"] = records["category"].astype(int)
    records["caption"] = records["caption"].fillna(records["category"].astype(str))

    rows = zip(records["path"], index["size"], records["category"], records["caption"])
    identity = text_hash(map(str, rows))
    shard_of = np.repeat(np.arange(len(shards)), [len(frame) for frame in frames])
    offset = index["offset"].to_numpy(np.int64)
    size = index["size"].to_numpy(np.int64)
    files = TarImages(shards, shard_of, offset, size)
    return Listing(name=name, records=records, files=files, identity=identity)


def _split_of_shard(relative: str) -> str | None:
    """Find the split in names as `train-0001.tar`, `val/0001.tar`, `imagenet1k-train-0001.tar`."""
    for word in re.split(r"[-_./]", relative):
        if word in SPLITS:
            return SPLITS[word]
    return None


def index_shards(shards: list[Path]) -> list[pd.DataFrame]:
    """Index every shard: one row a picture, columns `key, member, offset, size, category, caption`.

    The last two are None where the shard does not say. Raises ValueError for a compressed, damaged
    or ambiguous shard, by its name.
    """
    sizes = []
    changes = []
    for shard in shards:
        facts = shard.stat()
        sizes.append(facts.st_size)
        changes.append(facts.st_mtime_ns)
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_index_shard, shards, sizes, changes))


@functools.cache  # the three splits of a source share the index; a changed shard has another key
def _index_shard(shard: Path, num_bytes: int, changed: int) -> pd.DataFrame:
    """Index one shard by its headers; the small texts beside the pictures are read on the way."""
    # by kind of file, then by key: the pictures' places, and the texts themselves
    places: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, dict[str, str]] = {kind: {} for kind in _TEXTS}
    for name, offset, size, text in _members(shard):
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")  # webdataset's key ends at the first dot
        key = stem
        if folder:
            key = f"{folder}/{stem}"
        kind = kind.lower()
        entries = texts.get(kind)
        content = text
        if f".{kind}" in SUFFIXES:
            entries = places
            content = (name, offset, size)
        if entries is None or not stem:  # of another kind, or a hidden file
            continue
        if key in entries:
            raise ValueError(
                f"{shard} holds {key!r} twice ({name});"
                " every key needs one picture and one text of a kind"
            )
        entries[key] = content

    # a text without a picture describes nothing
    rows = []
    for key, place in places.items():
        rows.append((key, *place, *_describe(shard, key, texts)))
    return pd.DataFrame(rows, columns=["key", "member", "offset", "size", "category", "caption"])


def _members(shard: Path) -> Iterator[tuple[str, int, int, str]]:
    """Walk the plain files of a shard: name, offset of the data, size, and what small texts say."""
    with open(shard, "rb") as file:
        start = file.read(8)
        for magic, packing in _MAGIC.items():
            if start.startswith(magic):
                raise ValueError(
                    f"{shard} is compressed ({packing});"
                    " pictures are read at random, so unpack it to a plain .tar"
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # else tarfile keeps an object for every file
                    if not member.isreg():
                        continue
                    text = ""
                    kind = member.name.rpartition(".")[2].lower()
                    if kind in _TEXTS and member.size <= _LONGEST_TEXT:
                        file.seek(member.offset_data)  # tarfile seeks to the next header itself
                        text = file.read(member.size).decode("utf-8", "replace").strip()
                    yield member.name.removeprefix("./"), member.offset_data, member.size, text
                # tarfile takes a damaged header for the end; the real end is a block of zeros, or
                # the end of the file
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is no whole tar file: {error}") from error


def _describe(
    shard: Path, key: str, texts: dict[str, dict[str, str]]
) -> tuple[str | None, str | None]:
    """Find label and caption: .cls and .txt first, then the fields of .json."""
    fields = {}
    if key in texts["json"]:
        try:
            fields = json.loads(texts["json"][key])
        except json.JSONDecodeError as error:
            raise ValueError(f"{shard}:{key}.json is no JSON: {error}") from error
        if not isinstance(fields, dict):  # a bare number or name
            fields = {"label": fields}
    label = texts["cls"].get(key, _first(fields, "label", "cls", "class", "category"))
    return label, texts["txt"].get(key, _first(fields, "caption", "text"))


def _first(fields: dict, *names: str) -> str | None:
    """Give the first of the fields that is there, as text."""
    for name in names:
        if fields.get(name) is not None:
            return str(fields[name])
    return None
