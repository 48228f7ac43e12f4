"""The .npz files of the ADM suite: samples to hand in, real images or statistics to compare to."""

import contextlib
import dataclasses
import io
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maetok_lab.evaluation.features import Reference, make_reference
from maetok_lab.evaluation.pixels import round_to_uint8
from maetok_lab.files import atomic_path
from maetok_lab.identity import DIGITS, file_hash
from maetok_lab.pictures import from_uint8
from maetok_lab.protocols import Net


def write_npz(
    path: str | Path,
    images: Tensor | Iterable[Tensor],
    *,
    count: int | None = None,
    labels: Tensor | None = None,
) -> None:
    """Write images in [-1, 1] as the array `arr_0`, uint8 (n, H, W, 3); whole or not at all.

    (n, 3, H, W), or an iterable of batches with their total `count`: only one batch is held then.
    `labels` (n,) become `arr_1`. Raises ValueError for NaN pixels and when another number of images
    or labels comes.
    """
    if isinstance(images, Tensor):
        count = len(images)
        images = [images]
    if count is None:
        raise ValueError("write_npz needs the count of images when they come in batches")
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")

    # an .npz is a zip file of .npy files; numpy itself could only write an array that is held whole
    written = 0
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for batch in images:
                levels = round_to_uint8(batch).to(torch.uint8)
                pixels = levels.permute(0, 2, 3, 1).cpu().numpy()
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
    """What stands before the bytes of a uint8 array in an .npy file."""
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


class NpzImages:
    """The images `arr_0` of an .npz as a source for evaluation.

    Labels are `arr_1` where there is one, else zeros. What is stored uncompressed, as `write_npz`
    does, stays on disk. Raises ValueError when arr_0 is not uint8 (n, H, W, 3), when labels are not
    one an image, and for a file that is cut off.
    """

    def __init__(self, path: str | Path):
        self.split = Path(path).name  # the name of a reference made of it
        with _opened(path) as file:
            if "arr_0" not in file:
                raise ValueError(f"{path} has no array arr_0; it has {sorted(file.files)}")
            self._pixels = _mapped(Path(path), "arr_0.npy")
            if self._pixels is None:
                self._pixels = np.asarray(file["arr_0"])
            self._labels = np.zeros(len(self._pixels), dtype=np.int64)
            if "arr_1" in file:
                self._labels = np.asarray(file["arr_1"])
        dtype = self._pixels.dtype
        shape = self._pixels.shape
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(f"{path}: arr_0 must be uint8 (n, H, W, 3), not {dtype} {shape}")
        dtype = self._labels.dtype
        if self._labels.shape != shape[:1] or not np.issubdtype(dtype, np.integer):
            raise ValueError(
                f"{path}: arr_1 must hold one whole number, the label, for each of the {shape[0]} "
                f"images of arr_0, not {dtype} {self._labels.shape}"
            )
        self._labels = self._labels.astype(np.int64)
        self.image_size = shape[1]

    def __len__(self) -> int:
        """How many images."""
        return len(self._pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices (B,) -> images (B, 3, H, W) in [-1, 1], labels (B,)."""
        rows = indices.numpy()
        pixels = torch.from_numpy(np.array(self._pixels[rows])).permute(0, 3, 1, 2)
        return from_uint8(pixels), torch.from_numpy(self._labels[rows])


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz; ValueError for any other file, and one that is cut off or damaged."""
    # numpy reads the directory of an .npz now, and its arrays when they are asked for
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no whole .npz file: it may be cut off; copy it once more ({error})"
        ) from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(
            f"{path} is one array {file.shape}, not an .npz with the images as arr_0: "
            "numpy.savez(path, arr_0=array) writes one"
        )
    with file:
        try:
            yield file
        # many kinds, of a damaged entry and of a header that names more than there is
        except Exception as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} is damaged; copy it once more ({error})") from error


def _mapped(path: Path, name: str) -> np.ndarray | None:
    """An array of an .npz as a memory map; None where it is compressed or empty."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        if np.lib.format.read_magic(file)[0] == 1:
            read_header = np.lib.format.read_array_header_1_0
        else:
            read_header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        npy_header = file.tell()

    # Before an entry's bytes stands its local header: 30 bytes, its name and an extra field, whose
    # lengths are in bytes 26 to 29. The directory at the file's end does not know that extra field.
    with open(path, "rb") as raw:
        raw.seek(entry.header_offset + 26)
        lengths = np.frombuffer(raw.read(4), "<u2")
    start = entry.header_offset + 30 + int(lengths.sum()) + npy_header
    if not math.prod(shape):  # an empty array cannot be mapped
        return None
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def read_reference(
    path: str | Path, net: Net, *, batch_size: int = 32, outputs: Sequence[str] = ("features",)
) -> Reference:
    """An ADM reference or a published `mu`, `sigma` file as the real side of an evaluation.

    Images (`arr_0`) serve any network and every metric. Published means and covariances (`mu`,
    `sigma`, and ADM's spatial `mu_s`, `sigma_s`) are Inception's. Raises ValueError for a file that
    has nothing for this network.
    """
    path = Path(path)
    published = {}
    with _opened(path) as file:
        names = set(file.files)
        # ADM's suite prefers published statistics too: they are of many more images than the file's
        pairs = {"statistics": ("mu", "sigma"), "spatial_statistics": ("mu_s", "sigma_s")}
        for field, keys in pairs.items():
            if net.name == "inception" and names.issuperset(keys):
                published[field] = tuple(torch.from_numpy(file[key]) for key in keys)
    if "arr_0" not in names and not published:
        if "mu" in names and net.name != "inception":
            raise ValueError(
                f"{path} holds Inception's mean and covariance only; "
                f"{net.name} needs the images (arr_0)"
            )
        raise ValueError(
            f"{path} is no reference: it needs arr_0 or mu and sigma; it has {sorted(names)}"
        )

    # with statistics the hash is that of the file, else that of the images (`make_reference`)
    if published:
        published["sha256"] = file_hash(path)[:DIGITS]
    if "arr_0" not in names:
        return Reference(path.name, count=None, image_size=None, **published)
    images = NpzImages(path)
    reference = make_reference(images, net, name=path.name, batch_size=batch_size, outputs=outputs)
    return dataclasses.replace(reference, **published)
