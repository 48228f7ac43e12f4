"""Image folders: one folder a class, with or without folders for splits (see `splits`)."""

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from maetok_lab.data.digests import Contents, file_digest
from maetok_lab.data.listing import Listing
from maetok_lab.data.splits import LEFT_OUT, Patterns, leave_out_strays, place_pictures
from maetok_lab.hints import some
from maetok_lab.walking import Names, Walk, printable


class FolderImages(Sequence):
    """The pictures of a folder: [i] -> path."""

    def __init__(self, root: str, names: Names):
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> str:
        """Give the path of one picture."""
        return f"{self.root}/{self.names[i]}"

    def hash_file(self, i: int) -> bytes:
        """The digest of one picture."""
        return file_digest(self[i])


def list_folder(walked: Walk, patterns: Patterns) -> Listing:
    """List the pictures that were found in a folder: root/class/*, root/train/class/*, root/*.

    The class of pictures in no folder of their own is `all`. Raises ValueError when most pictures
    lie beside class folders.
    """
    placed = place_pictures(walked.folders, walked.names, patterns)
    leave_out_strays(placed, walked.folders, walked.names)
    if not placed.drawn:
        placed.notices.extend(_say_shared_folders(walked, placed.splits))

    # a caption for each: its class, where it is in one, and its own name
    captions = []
    for name, category in zip(walked.names, placed.classes):
        stem = name.rpartition(".")[0]
        captions.append(printable(f"{category}/{stem}" if category else stem))

    paths = walked.paths()
    columns = {
        "path": list(map(printable, paths)),
        "split": placed.splits,
        "category": placed.categories(),
        "caption": captions,
    }
    names = Names(paths)
    files = FolderImages(os.path.abspath(walked.root), names)
    ones = np.ones(len(paths), np.int64)
    return Listing(
        name=str(walked.root),
        records=pd.DataFrame(columns),
        files=files,
        contents=Contents(files.root, names, ones, files.hash_file),
        drawn=placed.drawn,
        draw_names=placed.draw_names,
        notices=(*walked.notices(), *placed.notices),
    )


def _say_shared_folders(walked: Walk, splits: Sequence[str]) -> list[str]:
    """A notice where one folder is in two splits: a link, with which nothing is held out."""
    split_of = dict(zip(walked.folders, splits))
    first: dict[str, str] = {}  # by real path
    shared = []
    for folder, split in split_of.items():
        other = first.setdefault(os.path.realpath(walked.root / folder), folder)
        if split != split_of[other] and LEFT_OUT not in (split, split_of[other]):
            shared.append(f"{printable(folder)} is {printable(other)}")
    if not shared:
        return []
    return [
        f"the same pictures are in two splits ({some(shared)}): what is measured on one is no"
        " held-out number"
    ]
