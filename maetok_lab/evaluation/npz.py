"""The .npz files of the ADM evaluation suite: uint8 samples to hand in, real images and statistics to compare with."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maetok_lab.evaluation.features import Net, Reference, make_reference
from maetok_lab.evaluation.pixels import round_to_uint8
from maetok_lab.files import atomic_path, sha256


def write_npz(path: str | Path, images: Tensor | Iterable[Tensor], *, count: int | None = None) -> None:
    """Write images in [-1, 1] as the array `arr_0` uint8 (n, H, W, 3) that the ADM suite reads, whole or not at all.

    (n, 3, H, W), or an iterable of batches with their total `count`: only one batch is held then. Raises ValueError for
    NaN pixels and when more or fewer than `count` images come.
    """
    batches = [images] if isinstance(images, Tensor) else images
    count = len(images) if isinstance(images, Tensor) else count
    if count is None:
        raise ValueError("write_npz needs the count of images when they come in batches")
    written = 0
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        for batch in batches:
            pixels = round_to_uint8(batch).to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
            if not written:
                file.write(_header((count, *pixels.shape[1:])))
            file.write(pixels.tobytes())
            written += len(pixels)
        if written != count:
            raise ValueError(f"{written} images came, but {count} were announced")


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class NpzImages:
    """The images `arr_0` of an .npz as a source for evaluation: `len` and `batch(indices) -> (images, labels)`.

    Labels are `arr_1` where there is one, else zeros. Raises ValueError when arr_0 is not uint8 (n, H, W, 3).
    """

    def __init__(self, path: str | Path):
        self.split = Path(path).name
        with np.load(path, allow_pickle=False) as file:
            if "arr_0" not in file:
                raise ValueError(f"{path} has no array arr_0; it has {sorted(file.files)}")
            self._pixels = file["arr_0"]
            self._labels = file["arr_1"] if "arr_1" in file else np.zeros(len(self._pixels), dtype=np.int64)
        if self._pixels.dtype != np.uint8 or self._pixels.ndim != 4 or self._pixels.shape[3] != 3:
            raise ValueError(f"{path}: arr_0 must be uint8 (n, H, W, 3), not {self._pixels.dtype} {self._pixels.shape}")
        self.image_size = self._pixels.shape[1]

    def __len__(self) -> int:
        """How many images."""
        return len(self._pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices (B,) -> images (B, 3, H, W) in [-1, 1], labels (B,)."""
        pixels = torch.from_numpy(self._pixels[indices.numpy()]).permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1, torch.from_numpy(self._labels[indices.numpy()])


def read_reference(path: str | Path, net: Net, *, batch_size: int = 32) -> Reference:
    """An ADM reference or a published `mu`, `sigma` file as the real side of an evaluation.

    Images are preferred: they serve any network and every metric. A mean and covariance alone are Inception's: for
    another network they are refused with a ValueError.
    """
    path = Path(path)
    with np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        if "arr_0" not in names and {"mu", "sigma"} <= names:
            if net.name != "inception":
                raise ValueError(
                    f"{path} holds Inception's mean and covariance only; {net.name} needs the images (arr_0)"
                )
            statistics = torch.from_numpy(file["mu"]), torch.from_numpy(file["sigma"])
            return Reference(path.name, sha256(path)[:16], None, None, statistics=statistics)
    return make_reference(NpzImages(path), net, batch_size=batch_size)
