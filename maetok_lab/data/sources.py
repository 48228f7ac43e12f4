"""What there is to read, listed before any picture is decoded.

To add a format: give it a file beside `folders`, `parquet` and `tars` that makes a `Listing`, and
name its suffix here.
"""

from pathlib import Path

from maetok_lab.data.folders import list_folder
from maetok_lab.data.listing import Listing
from maetok_lab.data.parquet import list_parquet
from maetok_lab.data.tars import COMPRESSED, list_tars

EMOJI = Path(__file__).resolve().parents[2] / "data" / "emoji.parquet"


def list_source(source: str | Path) -> Listing:
    """List "emoji" (the shipped set), an image folder, or Parquet files or tar shards.

    `source` is a file or a folder. Raises FileNotFoundError or ValueError for what is none of them.
    """
    if source == "emoji":
        if not EMOJI.exists():
            raise FileNotFoundError(
                f"the shipped set is missing: {EMOJI}; make it with `python data/build_emoji.py`"
            )
        return list_parquet([EMOJI], root=EMOJI.parent, name="emoji")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no source {str(source)!r};"
            " it must be 'emoji', an image folder, or Parquet or tar file(s)"
        )

    # shards may lie in the folder itself or in one folder a split
    root = path
    files = [*path.glob("*"), *path.glob("*/*")]
    if path.is_file():
        root = path.parent
        files = [path]
    shards = {".parquet": [], ".tar": []}
    for file in files:
        suffix = file.suffix.lower()
        if suffix in shards and file.is_file():
            shards[suffix].append(file)

    parquet, tars = map(sorted, shards.values())
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
