"""Tar shards as webdataset writes them: `key.jpg` beside `key.cls`, `key.json` and `key.txt`.

Pictures are read at random by offset. The headers are read once, with the standard library (about a
minute for a million pictures), and kept where digests are; nothing is written beside the shards,
which may be read-only.
"""

import contextlib
import functools
import json
import os
import posixpath
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from maetok_lab.data.digests import Contents, digest, kept_folder
from maetok_lab.data.listing import Listing, sound_shards
from maetok_lab.data.readers import MOST_BYTES, SUFFIXES
from maetok_lab.data.splits import Patterns, leave_out_strays, place_pictures, split_of_shards
from maetok_lab.files import atomic_path
from maetok_lab.hints import counted, some
from maetok_lab.identity import DIGITS, hash_of
from maetok_lab.walking import Names, is_hidden, printable

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TEXTS = ("cls", "json", "txt")  # label, anything, caption
_LONGEST_TEXT = 1 << 20  # bytes; what describes one picture is far shorter
_WORTH_KEEPING = 64 << 20  # bytes of a shard whose headers take a while to read
_READERS = 8  # shards whose headers are read at once: that is mostly waiting for the disk


class TarImages:
    """The encoded pictures of tar shards: [i] -> bytes. Safe in threads, forks and pickles."""

    def __init__(self, shards: list[Path], frames: list[pd.DataFrame]):
        self.shards = shards
        self.counts = np.array([len(frame) for frame in frames], np.int64)  # of pictures, by shard
        index = pd.concat(frames, ignore_index=True)
        self.offset = index["offset"].to_numpy(np.int64)  # (n,) where picture i starts in its shard
        self.size = index["size"].to_numpy(np.int64)  # (n,) bytes
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, index: int) -> bytes:
        """Read the encoded bytes of one picture."""
        # opened anew every time: an open file has one position, which threads would share
        shard = self.shards[np.searchsorted(self._ends, index, side="right")]
        with open(shard, "rb", buffering=0) as file:
            file.seek(int(self.offset[index]))
            return file.read(int(self.size[index]))

    def hash_file(self, shard: int) -> bytes:
        """The digests of a shard's pictures, joined."""
        start = self._ends[shard] - self.counts[shard]
        return b"".join(digest(self[index]) for index in range(start, self._ends[shard]))


def list_tars(shards: list[Path], *, root: Path, name: str, patterns: Patterns) -> Listing:
    """List webdataset's tar shards; split by shard name, else by the names inside.

    The category is what .cls or .json say (a number where all are), else the picture's folder, else
    `all`. Raises ValueError for shards without images.
    """
    index_shards(shards)
    shards, indexes, notices = sound_shards(shards, index_shard)
    frames = [index.pictures for index in indexes]
    relative = [shard.relative_to(root).as_posix() for shard in shards]
    if not any(map(len, frames)):
        raise ValueError(
            f"{name}: {shards[0].name} holds no images ({', '.join(sorted(SUFFIXES))});"
            " move other archives away"
        )
    skipped = [f"{shard}:{name}" for shard, one in zip(relative, indexes) for name in one.skipped]
    if skipped:
        notices.append(f"{counted(len(skipped), 'member')} of tars left out ({some(skipped)})")
    index = pd.concat(frames, ignore_index=True)
    files = TarImages(shards, frames)
    paths = (
        np.repeat([f"{printable(shard)}:" for shard in relative], files.counts) + index["member"]
    )

    # a shard's name says its split; where it does not, the folders and names inside it do
    folders = [key.rpartition("/")[0] for key in index["member"]]
    names = [key.rpartition("/")[2] for key in index["member"]]
    placed = place_pictures(folders, names, patterns)
    by_shard, said = split_of_shards(relative, patterns)
    if any(by_shard) and len(set(by_shard)) >= len(set(placed.splits) if not placed.drawn else ()):
        placed.splits = list(np.repeat(by_shard, files.counts))
        placed.notices = said
        placed.drawn = False

    # no .cls or .json says a class: the folder inside the shard does
    categories = index["category"].replace("", None)
    is_there = categories.notna()
    if not is_there.any():
        leave_out_strays(placed, folders, names)
        categories = placed.categories()
    elif categories[is_there].str.fullmatch(r"-?\d{1,18}").all():
        # the hub's sets mark pictures whose classes are secret with -1
        categories = pd.array(categories.where(is_there, None).map(_whole), dtype="Int64")
    columns = {"path": paths, "split": placed.splits, "category": categories}
    records = pd.DataFrame(columns)
    records["caption"] = index["caption"].fillna(records["category"].astype(str))
    return Listing(
        name=name,
        records=records,
        files=files,
        contents=Contents(str(root.absolute()), Names(relative), files.counts, files.hash_file),
        draw_names=placed.draw_names,
        drawn=placed.drawn,
        notices=(*notices, *placed.notices),
    )


def _whole(text: str | None) -> int | None:
    """A class number; None for none and for -1."""
    return None if pd.isna(text) or int(text) < 0 else int(text)


class ShardIndex(NamedTuple):
    """What one shard holds, by its headers."""

    # a row a picture: `key, member, offset, size, category, caption`; the last two None where the
    # shard does not say
    pictures: pd.DataFrame
    skipped: list[str]  # members that are neither pictures nor texts about one


def index_shards(shards: list[Path]) -> None:
    """Read the headers of many shards at once: afterwards `index_shard` gives each without waiting.

    What is wrong with a shard, `index_shard` says.
    """

    def read(shard: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            index_shard(shard)

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(read, shards))


def index_shard(shard: Path) -> ShardIndex:
    """Index one shard. Raises ValueError, with its name, for a compressed or damaged one."""
    facts = shard.stat()
    return _index_shard(shard, facts.st_size, facts.st_mtime_ns)


@functools.cache  # the three splits of a source share the index; a changed shard has another key
def _index_shard(shard: Path, num_bytes: int, changed: int) -> ShardIndex:
    """The index of one shard: that of a large one is kept for other processes."""
    if num_bytes < _WORTH_KEEPING:
        return _read_index(shard)
    key = hash_of([os.fsencode(shard.absolute()), f"{num_bytes} {changed}".encode()])[:DIGITS]
    kept = kept_folder() / f"tar-{key}.parquet"
    try:
        pictures = pd.read_parquet(kept)
        return ShardIndex(pictures, pictures.attrs["skipped"])
    except (OSError, ValueError, KeyError):  # none yet, or a damaged one
        index = _read_index(shard)
    index.pictures.attrs["skipped"] = index.skipped
    with contextlib.suppress(OSError), atomic_path(kept) as temporary:
        index.pictures.to_parquet(temporary)
    return index


def _read_index(shard: Path) -> ShardIndex:
    """Index one shard by its headers; the small texts beside the pictures are read on the way."""
    # by kind of file, then by key: the pictures' places, and the texts themselves
    places: dict[str, tuple[str, int, int]] = {}
    doubtful: list[tuple[str, str, tuple[str, int, int]]] = []
    texts: dict[str, dict[str, str]] = {kind: {} for kind in _TEXTS}
    skipped = []
    for name, offset, size, text in _members(shard):
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")  # webdataset's key ends at the first dot
        key = f"{folder}/{stem}" if folder else stem
        kind = kind.lower()
        place = (name, offset, size)
        last = f".{kind.rpartition('.')[2]}"
        if offset < 0 or any(map(is_hidden, name.split("/"))):
            skipped.append(name)
        elif kind in texts:
            texts[kind][key] = text
        elif f".{kind}" in SUFFIXES:
            # an updated member stands further behind; of two kinds of one picture the first counts
            if key in places and places[key][0] != name:
                skipped.append(name)
            else:
                places[key] = place
        elif last in SUFFIXES:
            doubtful.append((key, name, place))
        else:
            skipped.append(name)
    # `a.seg.png` beside `a.jpg` is something about it; `cat.0.png` alone is a picture
    for key, name, place in doubtful:
        if key in places:
            skipped.append(name)
        else:
            places[name.rpartition(".")[0]] = place

    # a text without a picture describes nothing
    rows = []
    for key, place in places.items():
        rows.append((key, *place, *_describe(key, texts)))
    columns = ["key", "member", "offset", "size", "category", "caption"]
    return ShardIndex(pd.DataFrame(rows, columns=columns), skipped)


def _members(shard: Path) -> Iterator[tuple[str, int, int, str]]:
    """Walk the files of a shard: name, offset of the data, size, and what small texts say.

    A hard link has its target's offset, any other link -1, as what is no whole picture has: a
    sparse file, and one longer than any picture.
    """
    with open(shard, "rb") as file:
        start = file.read(8)
        for magic, packing in _MAGIC.items():
            if start.startswith(magic):
                raise ValueError(
                    f"{shard} is compressed ({packing});"
                    " pictures are read at random, so unpack it to a plain .tar"
                )
        file.seek(0)
        places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # else tarfile keeps an object for every file
                    if tar.offset <= member.offset:  # a size below zero leads back, for ever
                        raise tarfile.ReadError(f"damaged header at byte {member.offset}")
                    if member.isreg():
                        places[member.name] = member.offset_data, member.size
                    elif not member.islnk() and not member.issym():
                        continue
                    offset, size = places.get(
                        member.name if member.isreg() else member.linkname, (-1, 0)
                    )
                    text = ""
                    kind = member.name.rpartition(".")[2].lower()
                    if kind in _TEXTS and size <= _LONGEST_TEXT and offset >= 0:
                        file.seek(offset)  # tarfile seeks to the next header itself
                        text = file.read(size).decode("utf-8", "replace").strip()
                    name = posixpath.normpath(printable(member.name)).lstrip("/")
                    if member.issym() or member.issparse() or size > MOST_BYTES:
                        offset = -1
                    yield name, offset, size, text
                # tarfile takes a damaged header for the end; the real end is a block of zeros, or
                # the end of the file
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
        except Exception as error:  # a damaged header raises many kinds
            text = (str(error).splitlines() or ["a header that needs more memory than there is"])[0]
            raise ValueError(
                f"{shard} is no whole tar file: {text}; copy or download it once more"
            ) from error


def _describe(key: str, texts: dict[str, dict[str, str]]) -> tuple[str | None, str | None]:
    """Find label and caption: .cls and .txt first, then the fields of .json, if it can be read."""
    fields = {}
    with contextlib.suppress(ValueError, RecursionError):  # endless numbers, lists in lists
        fields = json.loads(texts["json"].get(key) or "{}")
    if not isinstance(fields, dict):  # a bare number or name
        fields = {"label": fields}
    label = texts["cls"].get(key, _first(fields, "label", "cls", "class", "category"))
    return label, texts["txt"].get(key, _first(fields, "caption", "text"))


def _first(fields: dict, *names: str) -> str | None:
    """Give the first of the fields that is there, as text."""
    for name in names:
        if fields.get(name) is not None:
            return str(fields[name]).encode("utf-8", "replace").decode()  # half an emoji is none
    return None
