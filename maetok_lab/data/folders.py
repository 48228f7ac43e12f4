"""Image folders: one folder a class, with or without a folder a split."""

import os
import re
from pathlib import Path

import pandas as pd

from maetok_lab.data.listing import SPLITS, Listing, split_by_name
from maetok_lab.data.readers import SUFFIXES
from maetok_lab.identity import text_hash


def list_folder(root: Path) -> Listing:
    """List root/class/*, root/train/class/* beside root/val/class/*, or a flat root/*.

    The class of a flat folder is `all`. Raises ValueError for a folder without images, and for one
    with images beside its class folders or split folders.
    """
    files = []
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower() in SUFFIXES and not name.startswith("."):
                files.append(file)
    files.sort()  # a folder's own order differs between machines
    if not files:
        kinds = "no *.parquet, no *.tar (compressed ones must be unpacked)"
        raise ValueError(f"{root} has no images: {kinds} and none of {', '.join(sorted(SUFFIXES))}")

    # one folder named train or val makes the folders of the first level splits
    paths = [file.relative_to(root).as_posix() for file in files]
    split_folders = set()
    for path in paths:
        folder, inside, _ = path.partition("/")
        if inside and _without_year(folder) in {"train", "val", "valid", "validation"}:
            split_folders.add(folder)

    # the class is the next folder: "" for a picture that is in none
    splits = []
    classes = []
    for path in paths:
        folders = path.split("/")[:-1]
        if split_folders:
            first = folders.pop(0) if folders else ""
            split = SPLITS.get(_without_year(first))
            if split is None:
                raise ValueError(
                    f"{root} has folders {sorted(split_folders)},"
                    f" but {path} is in no split's folder"
                )
        else:
            split = split_by_name(path)
        splits.append(split)
        classes.append(folders[0] if folders else "")
    if "" in classes and len(set(classes)) > 1:
        beside = paths[classes.index("")]
        raise ValueError(f"{root} mixes class folders with images beside them ({beside})")

    classes = [name or "all" for name in classes]
    captions = []
    parts = []
    for file, path, name in zip(files, paths, classes):
        captions.append(file.stem if name == "all" else f"{name}/{file.stem}")
        parts += [path, file.stat().st_size]
    records = {"path": paths, "split": splits, "category": classes, "caption": captions}
    return Listing(
        name=str(root), records=pd.DataFrame(records), files=files, identity=text_hash(parts)
    )


def _without_year(folder: str) -> str:
    """COCO's val2017 is val."""
    return re.sub(r"20\d\d$", "", folder)
