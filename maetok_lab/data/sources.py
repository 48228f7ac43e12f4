"""What there is to read, listed before any picture is decoded.

To add a format: give it a file beside `folders`, `parquet` and `tars` that makes a `Listing`, and
name its suffix here.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from maetok_lab.data.folders import list_folder
from maetok_lab.data.listing import Listing
from maetok_lab.data.parquet import list_parquet
from maetok_lab.data.readers import SUFFIXES, UNREAD
from maetok_lab.data.splits import (
    LEFT_OUT,
    cut_val,
    leave_out_unlabelled_val,
    named_split,
    read_patterns,
)
from maetok_lab.data.tars import COMPRESSED, list_tars
from maetok_lab.hints import some
from maetok_lab.walking import Walk, printable, walk

EMOJI = Path(__file__).resolve().parents[2] / "data" / "emoji.parquet"
SHARDS = (".parquet", ".tar")
FEW = 10  # pictures in one folder, beside shards: fewer are none of the set's
_ARCHIVES = (*COMPRESSED, ".zip", ".rar", ".7z", ".arrow")


def list_source(
    source: str | Path, split_names: Mapping[str, str | Sequence[str]] | None = None
) -> Listing:
    """List "emoji" (the shipped set), an image folder, or Parquet files or tar shards.

    `source` is a file or a folder; `split_names` names by hand what belongs to each split. Raises
    FileNotFoundError or ValueError for what is none of them.
    """
    patterns = read_patterns(split_names)
    # the shipped set lies in the checkout
    if source == "emoji":
        if not EMOJI.exists():
            raise FileNotFoundError(
                f"the shipped set is missing: {EMOJI}; make it with `python data/build_emoji.py`"
            )
        emoji = list_parquet([EMOJI], root=EMOJI.parent, name="emoji", patterns=patterns)
        return dataclasses.replace(emoji, identity=emoji.facts["content"], draw_names=list)
    path = Path(os.path.expanduser(source)) if isinstance(source, str | Path) else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"no source {source!r}; it must be 'emoji', an image folder, or Parquet or tar file(s)"
        )

    # what is in no split is in the records, but never read
    listing = (_list_inside if path.is_dir() else _list_file)(path, patterns)
    actual = listing.records["split"].to_numpy(object)
    notices = list(listing.notices)
    if not (actual != LEFT_OUT).any():
        there = some(listing.records["path"].tolist()) or "no picture"
        raise ValueError(
            f"{path} has no picture in train, val or test: there is {there}, and split_names ="
            f" {dict(split_names or {})}"
        )
    has_class = listing.records["category"].notna().to_numpy()
    # a val that was named by hand is wanted: without classes it is an error
    notice = None if patterns else leave_out_unlabelled_val(actual, has_class)
    if notice:
        notices.append(notice)
    if notice := cut_val(actual, listing.draw_names):
        notices.append(notice)
    name = path.resolve().name
    split = named_split(name.removesuffix(path.suffix))
    if listing.drawn and split:
        notices.append(
            f"the source is called {name}, but names inside it say no split: its pictures are dealt"
            f' out as train, val and test. The folder around it, or split_names={{"{split}": "*"}},'
            " keeps them together"
        )
    listing.records["split"] = actual
    # nobody draws from here on, and worker processes would be sent all the names
    return dataclasses.replace(listing, notices=tuple(notices), draw_names=list)


def _list_file(path: Path, patterns: dict[str, list[str]]) -> Listing:
    """List one Parquet file or tar. Raises ValueError for anything else."""
    lists = {".parquet": list_parquet, ".tar": list_tars}
    if path.is_file() and path.suffix.lower() in lists:
        list_shards = lists[path.suffix.lower()]
        return list_shards([path], root=path.parent, name=str(path), patterns=patterns)
    if path.name.lower().endswith(COMPRESSED):
        raise ValueError(
            f"{path} is compressed; pictures are read at random, so unpack it to a plain .tar"
        )
    raise ValueError(f"{path} is neither a folder nor a .parquet or .tar file")


def _list_inside(path: Path, patterns: dict[str, list[str]]) -> Listing:
    """List what is in a folder: pictures or shards."""
    name = str(path)
    pictures, shards = _sorted_out(walk(path))
    parquet, tars = shards[".parquet"], shards[".tar"]
    # Pictures in folders of their own go before a tar that lies beside them: it may be the archive
    # that they came from. Shards have a few pictures beside them for their page on the hub.
    in_folders = [folder for folder in pictures.folders if folder]
    in_folders = len(set(in_folders)) > 1 or len(in_folders) >= FEW
    if parquet and tars and not in_folders:
        raise ValueError(
            f"{path} holds both Parquet and tar shards; name a file or folder of one kind"
        )
    if parquet:
        try:
            listing = list_parquet(parquet, root=path, name=name, patterns=patterns)
        except ValueError:
            if not in_folders:  # else it is a table beside them
                raise
        else:
            if len(listing.records) >= len(pictures.names):
                return _beside(listing, pictures, tars)
    elif tars and not in_folders:
        return _beside(list_tars(tars, root=path, name=name, patterns=patterns), pictures, [])
    if not pictures.names:
        kinds = "no *.parquet, no *.tar (compressed ones must be unpacked)"
        said = "".join(f"; {notice}" for notice in pictures.notices())
        raise ValueError(
            f"{path} has no images: {kinds} and none of {', '.join(sorted(SUFFIXES))}{said}"
        )
    for shard in (*parquet, *tars):
        pictures.leave_out("shards beside folders of pictures", shard.name)
    return list_folder(pictures, patterns)


def _sorted_out(walked: Walk) -> tuple[Walk, dict[str, list[Path]]]:
    """What was found, as pictures and shards; kinds that cannot be read are left out."""
    pictures = Walk(walked.root, left_out=walked.left_out)
    shards: dict[str, list[Path]] = {suffix: [] for suffix in SHARDS}
    for folder, name in zip(walked.folders, walked.names):
        suffix = name[name.rfind(".") :].lower()
        if suffix in SUFFIXES:
            pictures.folders.append(folder)
            pictures.names.append(name)
        elif suffix in shards:
            shards[suffix].append(walked.root / folder / name)
        elif suffix in UNREAD or name.lower().endswith(_ARCHIVES):
            kind = f"files of kind {suffix}, which is not read,"
            pictures.leave_out(kind, f"{folder}/{name}".lstrip("/"))
    return pictures, shards


def _beside(listing: Listing, pictures: Walk, tars: list[Path]) -> Listing:
    """A listing of shards, with notices of what lies beside them."""
    notices = [*listing.notices, *pictures.notices()]
    beside = [*pictures.names, *(tar.name for tar in tars)]
    if beside:
        notices.append(
            f"{len(beside)} files beside the shards left out ({printable(some(beside))})"
        )
    return dataclasses.replace(listing, notices=tuple(notices))
