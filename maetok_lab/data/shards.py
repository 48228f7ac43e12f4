"""The files of a latent cache: mapped .npy shards of (views, n, N, C), each with its checksum.

While a cache is being written, a shard's checksum lies beside it (in the form of `sha256sum`),
written after the shard: one without it was cut off and is made again. The complete cache has all of
them in sha256.json.
"""

import errno
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maetok_lab.device import DTYPES
from maetok_lab.files import atomic_path, read_json, write_bytes, write_json
from maetok_lab.identity import file_hash

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or this person's share of it
_REPAIR = "Delete its summary.json, and write_latents encodes those shards again"


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a cache run lies."""
    return folder / "latents" / f"shard-{number:05d}.npy"


def to_array(latents: Tensor, dtype: str) -> np.ndarray:
    """Latents as they are stored: fp16 and fp32 as such, bf16 as its bits in int16."""
    latents = latents.to(DTYPES[dtype]).cpu()
    if dtype == "bf16":  # numpy has none
        latents = latents.view(torch.int16)
    return latents.numpy()


def from_array(array: np.ndarray, dtype: str) -> Tensor:
    """The inverse of `to_array`, still in the stored precision."""
    latents = torch.from_numpy(array)
    if dtype == "bf16":
        latents = latents.view(torch.bfloat16)
    return latents


def write_shard(path: Path, array: np.ndarray) -> None:
    """Write the shard, then its checksum; a full disk raises an OSError that says what is there."""
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
        write_bytes(_checksum_path(path), f"{file_hash(path)}  {path.name}\n".encode())
    except OSError as problem:
        if problem.errno in FULL:
            raise _disk_full(path.parent, array.nbytes) from problem
        raise


def check_room(folder: Path, needed: int) -> None:
    """Raise OSError before hours are spent on shards that the disk cannot hold."""
    if shutil.disk_usage(folder).free < needed:
        raise _disk_full(folder, needed)


def _disk_full(folder: Path, needed: int) -> OSError:
    count = len(list(folder.glob("shard-*.npy")))
    free = shutil.disk_usage(folder).free
    return OSError(
        errno.ENOSPC,
        f"the disk is full: the latent cache needs {needed / 1e9:.3g} GB more,"
        f" {free / 1e9:.3g} GB are free. Its {count} finished shards are kept;"
        " make room and call write_latents again",
        str(folder),
    )


def is_sound(path: Path) -> bool:
    """Whether a shard is there and matches its checksum."""
    return path.exists() and _recorded(path) == file_hash(path)


def complete(folder: Path, count: int) -> None:
    """Put the checksums of shards 0 .. count - 1 together into sha256.json."""
    paths = [shard_path(folder, number) for number in range(count)]
    write_json(folder / "latents" / "sha256.json", {path.name: _recorded(path) for path in paths})
    for path in paths:
        _checksum_path(path).unlink(missing_ok=True)


def open_shards(folder: Path, *, verify: bool) -> list[np.ndarray]:
    """The shards of a complete cache, mapped.

    Raises ValueError when one is missing, or damaged: that is checked only with `verify`, which
    reads them all.
    """
    # the list of checksums is written after the last shard, so that it names all of them
    names = read_json(folder / "latents" / "sha256.json")
    paths = [folder / "latents" / name for name in names]
    count = sum(path.exists() for path in paths)
    if count < len(paths):
        raise ValueError(
            f"latent cache {folder.name} is incomplete: {count} of {len(paths)} shards. {_REPAIR}"
        )
    damaged = []
    for path in paths:
        if verify and not is_sound(path):
            damaged.append(path.name)
    if damaged:
        raise ValueError(
            f"latent cache {folder.name} is damaged:"
            f" {', '.join(damaged)} do not match their checksums. {_REPAIR}"
        )
    return [np.load(path, mmap_mode="r") for path in paths]


def _recorded(path: Path) -> str | None:
    """The checksum that was written for a shard: beside it, or of the complete cache."""
    if _checksum_path(path).exists():
        return _checksum_path(path).read_text().partition(" ")[0]
    complete_list = path.parent / "sha256.json"
    if complete_list.exists():
        return read_json(complete_list).get(path.name)
    return None


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
