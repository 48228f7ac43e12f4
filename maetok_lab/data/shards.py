"""The files of a latent cache: mapped .npy shards of (views, n, N, C), each with its checksum.

While a cache is being written, a shard's checksum lies beside it (in the form of `sha256sum`),
written after the shard: one without it was cut off and is made again. The complete cache has all of
them in sha256.json.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maetok_lab.device import DTYPES
from maetok_lab.files import atomic_path, is_full, no_room, read_json, write_bytes, write_json
from maetok_lab.identity import file_hash


class DamagedCache(ValueError):
    """A cache with shards that are not what was written."""


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
        if is_full(problem, path.parent):
            raise _no_room(path.parent, array.nbytes, problem) from problem
        raise


def check_room(folder: Path, needed: int) -> None:
    """Raise OSError before hours are spent on shards that the disk cannot hold."""
    if shutil.disk_usage(folder).free < needed:
        raise _no_room(folder, needed)


def _no_room(folder: Path, needed: int, problem: OSError | None = None) -> OSError:
    count = len(list(folder.glob("shard-*.npy")))
    subject = (
        f"the latent cache {folder.parent} was not written (its {count} finished shards are kept)"
    )
    return no_room(subject, folder, problem, needed)


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

    Raises DamagedCache when one is missing, or damaged: that is checked only with `verify`, which
    reads them all.
    """
    # the list of checksums is written after the last shard, so that it names all of them
    names = read_json(folder / "latents" / "sha256.json")
    paths = [folder / "latents" / name for name in names]
    damaged = []
    for path in paths:
        if not (is_sound(path) if verify else path.exists()):
            damaged.append(path.name)
    if damaged:
        raise DamagedCache(
            f"latent cache {folder.name} is damaged: {', '.join(damaged)} of {len(paths)} shards"
            " do not match their checksums; the cell that caches, run once more, encodes them again"
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
