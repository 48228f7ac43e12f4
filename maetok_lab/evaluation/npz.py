"""The .npz files of the ADM evaluation suite: uint8 samples to hand in, real images and statistics to compare with."""

import dataclasses
import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maetok_lab.evaluation.features import Reference, make_reference
from maetok_lab.evaluation.pixels import round_to_uint8
from maetok_lab.files import atomic_path, sha256
from maetok_lab.protocols import Net


def write_npz(
    path: str | Path,
    images: Tensor | Iterable[Tensor],
    *,
    count: int | None = None,
    labels: Tensor | None = None,
) -> None:
    """Write images in [-1, 1] as the array `arr_0` uint8 (n, H, W, 3) that the ADM suite reads, whole or not at all.

    (n, 3, H, W), or an iterable of batches with their total `count`: only one batch is held then. `labels` (n,) become
    `arr_1`. Raises ValueError for NaN pixels and when more or fewer than `count` images or labels come.
    """
    batches = [images] if isinstance(images, Tensor) else images
    count = len(images) if isinstance(images, Tensor) else count
    if count is None:
        raise ValueError("write_npz needs the count of images when they come in batches")
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    written = 0
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for batch in batches:
                pixels = (
                    round_to_uint8(batch)
                    .to(torch.uint8)
                    .permute(0, 2, 3, 1)
                    .cpu()
                    .contiguous()
                    .numpy()
                )
                if not written:
                    file.write(_header((count, *pixels.shape[1:])))
                file.write(pixels.tobytes())
                written += len(pixels)
        if written != count:
            raise ValueError(f"{written} images came, but {count} were announced")
        if labels is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.cpu().numpy().astype(np.int64))


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


class NpzImages:
    """The images `arr_0` of an .npz as a source for evaluation: `len` and `batch(indices) -> (images, labels)`.

    Labels are `arr_1` where there is one, else zeros. What is stored uncompressed, as `write_npz` does, stays on disk.
    Raises ValueError when arr_0 is not uint8 (n, H, W, 3).
    """

    def __init__(self, path: str | Path):
        self.split = Path(path).name
        with np.load(path, allow_pickle=False) as file:
            if "arr_0" not in file:
                raise ValueError(f"{path} has no array arr_0; it has {sorted(file.files)}")
            mapped = _mapped(Path(path), "arr_0.npy")
            self._pixels = file["arr_0"] if mapped is None else mapped
            self._labels = (
                file["arr_1"] if "arr_1" in file else np.zeros(len(self._pixels), dtype=np.int64)
            )
        if self._pixels.dtype != np.uint8 or self._pixels.ndim != 4 or self._pixels.shape[3] != 3:
            raise ValueError(
                f"{path}: arr_0 must be uint8 (n, H, W, 3), not {self._pixels.dtype} {self._pixels.shape}"
            )
        self.image_size = self._pixels.shape[1]

    def __len__(self) -> int:
        """How many images."""
        return len(self._pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices (B,) -> images (B, 3, H, W) in [-1, 1], labels (B,)."""
        pixels = torch.from_numpy(np.array(self._pixels[indices.numpy()])).permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1, torch.from_numpy(self._labels[indices.numpy()])


def _mapped(path: Path, name: str) -> np.ndarray | None:
    """An array of an .npz as a memory map; None where it is compressed."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            return None
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[np.lib.format.read_magic(file)[0]](file)
        header = file.tell()
        with open(path, "rb") as raw:  # the local header before the data says how long it is itself
            raw.seek(archive.getinfo(name).header_offset + 26)
            name_length, extra_length = np.frombuffer(raw.read(4), "<u2")
        start = (
            archive.getinfo(name).header_offset + 30 + int(name_length) + int(extra_length) + header
        )
    return (
        np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
        if math.prod(shape)
        else None
    )


def read_reference(
    path: str | Path, net: Net, *, batch_size: int = 32, outputs: Sequence[str] = ("features",)
) -> Reference:
    """An ADM reference or a published `mu`, `sigma` file as the real side of an evaluation.

    Images (`arr_0`) serve any network and every metric. Means and covariances (`mu`, `sigma`, and ADM's spatial `mu_s`,
    `sigma_s`) are Inception's: with Inception they are preferred for FID and sFID, as in ADM's suite, where they come from
    many more images than the file holds; another network needs the images, and a file without is refused with a ValueError.
    """
    path = Path(path)
    with np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        if not names & {"arr_0", "mu"}:
            raise ValueError(
                f"{path} is no reference: it needs arr_0 or mu and sigma; it has {sorted(names)}"
            )
        pairs = {"statistics": ("mu", "sigma"), "spatial_statistics": ("mu_s", "sigma_s")}
        published = {
            field: tuple(torch.from_numpy(file[key]) for key in keys)
            for field, keys in pairs.items()
            if net.name == "inception" and names.issuperset(keys)
        }
    if "arr_0" not in names and net.name != "inception":
        raise ValueError(
            f"{path} holds Inception's mean and covariance only; {net.name} needs the images (arr_0)"
        )
    if "arr_0" not in names:
        return Reference(path.name, sha256(path)[:16], None, None, **published)
    reference = make_reference(
        NpzImages(path), net, name=path.name, batch_size=batch_size, outputs=outputs
    )
    return dataclasses.replace(
        reference, **published, **({"sha256": sha256(path)[:16]} if published else {})
    )
