"""The files of a latent cache: memory-mapped .npy shards of (views, n, N, C), each with its checksum.

While a cache is being written, a shard's checksum lies beside it (in the form of `sha256sum`), written after the shard: one
without it was cut off and is made again. The complete cache has all of them in sha256.json.
"""

import errno
import shutil
from pathlib import Path

import numpy as np
import torch

from maetok_lab.device import DTYPES
from maetok_lab.files import atomic_path, read_json, write_bytes, write_json
from maetok_lab.identity import file_hash

FULL = (errno.ENOSPC, errno.EDQUOT)


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a cache run lies."""
    return folder / "latents" / f"shard-{number:05d}.npy"


def to_array(latents: torch.Tensor, dtype: str) -> np.ndarray:
    """Latents as they are stored: fp16 and fp32 as such, bf16 as its bits in int16, because numpy has no bf16."""
    latents = latents.to(DTYPES[dtype]).cpu()
    return (latents.view(torch.int16) if dtype == "bf16" else latents).numpy()


def from_array(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The inverse of `to_array`, still in the stored precision."""
    latents = torch.from_numpy(array)
    return latents.view(torch.bfloat16) if dtype == "bf16" else latents


def write_shard(path: Path, array: np.ndarray) -> None:
    """The shard, then its checksum. OSError that says what is kept when the disk is full."""
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
        write_bytes(_checksum_path(path), f"{file_hash(path)}  {path.name}\n".encode())
    except OSError as problem:
        if problem.errno in FULL:
            raise _disk_full(path.parent, array.nbytes) from problem
        raise


def check_room(folder: Path, needed: int) -> None:
    """OSError before hours are spent on shards that the disk cannot hold."""
    if shutil.disk_usage(folder).free < needed:
        raise _disk_full(folder, needed)


def _disk_full(folder: Path, needed: int) -> OSError:
    kept, free = len(list(folder.glob("shard-*.npy"))), shutil.disk_usage(folder).free
    return OSError(
        errno.ENOSPC,
        f"the disk is full: the latent cache needs {needed / 1e9:.3g} GB more, {free / 1e9:.3g} GB are free. Its {kept} finished "
        "shards are kept; make room and call write_latents again",
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
    """The shards of a complete cache, mapped. ValueError when one is missing, or damaged (as far as `verify` reads them)."""
    names = list(read_json(folder / "latents" / "sha256.json"))
    paths = [folder / "latents" / name for name in names]
    there = [path for path in paths if path.exists()]
    if len(there) < len(paths):
        raise ValueError(
            f"latent cache {folder.name} is incomplete: {len(there)} of {len(paths)} shards. {_REPAIR}"
        )
    damaged = [path.name for path in paths if verify and not is_sound(path)]
    if damaged:
        raise ValueError(
            f"latent cache {folder.name} is damaged: {', '.join(damaged)} do not match their checksums. {_REPAIR}"
        )
    return [np.load(path, mmap_mode="r") for path in paths]


_REPAIR = "Delete its summary.json, and write_latents encodes those shards again"


def _recorded(path: Path) -> str | None:
    together = path.parent / "sha256.json"
    if _checksum_path(path).exists():
        return _checksum_path(path).read_text().partition(" ")[0]
    return read_json(together).get(path.name) if together.exists() else None


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
