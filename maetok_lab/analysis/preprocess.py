"""Flatten, PCA, standardise: what every analysis does to latents first, in passes over chunks of rows.

Latents are (n, ...), a tensor, a LatentDataset, or anything with `shape` that gives rows when sliced (an array, a
memory map); each row is flattened. Only one chunk is float64 at a time, so a cache larger than memory can be analysed.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maetok_lab.identity import DIGITS, hash_of, tensor_bytes
from maetok_lab.rng import generator

CHUNK_VALUES = 1 << 23  # values in one chunk: 64 MB of float64
DUPLICATES = 0.05  # share of rows that may be copies of another row


class CachedRows:
    """A LatentDataset as (n, N, C): its raw latents, without the mirrored views, read when they are sliced."""

    def __init__(self, dataset: Any):
        self.dataset, self.device = dataset, dataset.device
        self.shape = (len(dataset), dataset.num_tokens, dataset.latent_dim)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Rows (m, N, C)."""
        return self.dataset.latents(torch.arange(self.shape[0])[index])


def as_rows(latents: Any) -> Any:
    """Latents as they are, except that a LatentDataset becomes `CachedRows`."""
    return (
        CachedRows(latents)
        if hasattr(latents, "latents") and hasattr(latents, "num_tokens")
        else latents
    )


def width_of(latents: Any) -> int:
    """Numbers in one flattened row. Raises ValueError unless latents are (n, ...) with n >= 1."""
    shape = tuple(getattr(latents, "shape", ()))
    if len(shape) < 2 or min(shape) < 1:
        came = shape or type(latents).__name__
        raise ValueError(f"latents must be (n, ...) with at least one number a row, not {came}")
    return math.prod(shape[1:])


def flat_chunks(
    latents: Any, *, chunk_rows: int | None = None, device: torch.device | str | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows (b, D) float64 on `device`) for consecutive chunks; the device defaults to the latents' own."""
    size = chunk_rows or max(1, CHUNK_VALUES // width_of(latents))
    for start in range(0, latents.shape[0], size):
        rows = latents[start : start + size]
        # copied: a memory map may be read-only, which torch cannot express
        rows = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
        yield start, rows.detach().flatten(1).to(device or rows.device, torch.float64)


def device_of(latents: Any, device: torch.device | str | None = None) -> torch.device:
    """`device` if given, else where the latents are; never Apple's MPS, which has no float64."""
    device = torch.device(device or getattr(latents, "device", "cpu"))
    return torch.device("cpu") if device.type == "mps" else device


def row_hashes(latents: Any, *, chunk_rows: int | None = None) -> Tensor:
    """A 64-bit hash of each row's float64 values: (n, ...) -> (n,) int64. Raises ValueError for NaN or infinities."""
    weights = (
        torch.randint(-(2**62), 2**62, (width_of(latents),), generator=generator(0, "row-hash")) * 2
        + 1
    )
    hashes = []
    for start, rows in flat_chunks(latents, chunk_rows=chunk_rows, device="cpu"):
        if not rows.isfinite().all():
            bad = int((~rows.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"latents hold NaN or infinite values, first in row {start + bad}")
        hashes.append(
            (rows.view(torch.int64) * weights).sum(dim=1)
        )  # wraps around: exact arithmetic modulo 2^64
    return torch.cat(hashes)


def data_hash(hashes: Tensor) -> str:
    """16 hex digits that stand for all rows in their order, from `row_hashes`."""
    return hash_of([tensor_bytes(hashes)])[:DIGITS]


def check_latents(latents: Any, *, chunk_rows: int | None = None) -> Tensor:
    """`row_hashes`, after refusing latents that no density can be fitted to.

    Raises ValueError for fewer than 10 rows, NaN, rows that are all the same, and more than 5 % exact copies: copies on
    both sides of a held-out split would make the held-out number a training number.
    """
    latents = as_rows(latents)
    width_of(latents)
    if latents.shape[0] < 10:
        raise ValueError(f"too few latents: {latents.shape[0]} rows, at least 10 are needed")
    hashes = row_hashes(latents, chunk_rows=chunk_rows)
    distinct = len(hashes.unique())
    if distinct == 1:
        raise ValueError(f"latents are constant: all {len(hashes)} rows are the same")
    if distinct < (1 - DUPLICATES) * len(hashes):
        raise ValueError(
            f"duplicated latents: only {distinct} of {len(hashes)} rows are distinct; drop the copies"
        )
    return hashes


@dataclasses.dataclass(frozen=True)
class Reducer:
    """PCA fitted to some latents: scores = (row - mean) @ components.T / scale.

    mean (D,), components (d, D), scale (d,), spectrum (r,): all variances, largest first, in squared latent units.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor
    spectrum: Tensor

    @property
    def dimensions(self) -> int:
        """How many dimensions are kept."""
        return len(self.components)

    @property
    def explained(self) -> float:
        """Share of the variance in the dimensions kept, in (0, 1]."""
        return float(self.spectrum[: self.dimensions].sum() / self.spectrum.sum())

    def transform(
        self,
        latents: Any,
        *,
        rows: Tensor | None = None,
        chunk_rows: int | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Scores of latents of the same width, or of those where `rows` (n,) bool is true: (n, ...) -> (m, d) float64.

        Written to `out` (m, d) if given. Raises ValueError for another width.
        """
        latents = as_rows(latents)
        if width_of(latents) != len(self.mean):
            raise ValueError(f"fitted to rows of {len(self.mean)} numbers, not {width_of(latents)}")
        rows = torch.ones(latents.shape[0], dtype=torch.bool) if rows is None else rows
        if out is None:
            out = torch.empty(
                int(rows.sum()), self.dimensions, dtype=torch.float64, device=self.mean.device
            )
        projection, done = (self.components / self.scale[:, None]).T, 0  # (D, d)
        for start, chunk in flat_chunks(latents, chunk_rows=chunk_rows, device=self.mean.device):
            chunk = chunk[rows[start : start + len(chunk)].to(chunk.device)]
            out[done : done + len(chunk)] = (chunk - self.mean) @ projection
            done += len(chunk)
        return out


def fit_reducer(
    latents: Any,
    *,
    dimensions: int | None = None,
    variance: float = 0.9,
    standardise: bool = True,
    train: Tensor | None = None,
    chunk_rows: int | None = None,
    device: torch.device | str | None = None,
) -> Reducer:
    """PCA of flattened latents, to `dimensions` or to the fewest that explain `variance` of (0, 1]; then unit variance.

    (n, ...) -> Reducer. Two passes over the rows where `train` (n,) bool is true (all of them by default). The largest
    entry of each component is positive, so signs do not depend on the solver. Raises ValueError for a variance outside
    (0, 1], more dimensions than the latents have, and constant latents.
    """
    latents = as_rows(latents)
    mean, values, vectors = _principal_axes(latents, train, chunk_rows, device_of(latents, device))
    kept = dimensions or needed_dimensions(values, variance)
    if not 1 <= kept <= len(values):
        raise ValueError(
            f"dimensions must be between 1 and {len(values)}, the rank of the latents, not {dimensions}"
        )
    axes = vectors[:, :kept].T
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    scale = values[:kept].sqrt() if standardise else torch.ones_like(values[:kept])
    return Reducer(mean, axes, scale, values)


def needed_dimensions(spectrum: Tensor, variance: float) -> int:
    """The fewest leading dimensions that explain a share `variance` in (0, 1] of a spectrum (r,), largest first."""
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be in (0, 1], not {variance}")
    share = spectrum.cumsum(0) / spectrum.sum()
    return min(int((share < variance * (1 - 1e-12)).sum()) + 1, len(spectrum))


def spectrum_of(latents: Any, *, device: torch.device | str | None = None) -> Tensor:
    """PCA variances of flattened latents, largest first, without those that are zero: (n, ...) -> (r,) float64."""
    latents = as_rows(latents)
    mean, _, product, _ = _second_moments(latents, None, None, device_of(latents, device))
    return _nonzero(torch.linalg.eigvalsh(product).flip(0), mean, width_of(latents))


def common_dimensions(list_of_latents: Sequence[Any], variance: float = 0.9) -> int:
    """The one number of dimensions at which latents are compared, as in the paper: each explains at least `variance`.

    Raises ValueError if some latents have fewer dimensions than others need.
    """
    return shared_dimensions([spectrum_of(latents) for latents in list_of_latents], variance)


def shared_dimensions(spectra: Sequence[Tensor], variance: float = 0.9) -> int:
    """`common_dimensions` of latents whose spectra (r,) are known; the same errors."""
    if not spectra:
        raise ValueError("a common number of dimensions needs at least one set of latents")
    needed = [needed_dimensions(spectrum, variance) for spectrum in spectra]
    ranks = [len(spectrum) for spectrum in spectra]
    if max(needed) > min(ranks):
        raise ValueError(
            f"no common number of dimensions: {variance:.0%} of the variance takes {needed} dimensions, but the "
            f"latents have {ranks}; ask for less variance"
        )
    return max(needed)


def _principal_axes(
    latents: Any, train: Tensor | None, chunk_rows: int | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), variances (r,) and axes (D, r) of the chosen rows, the r with a variance above rounding."""
    mean, centred, product, count = _second_moments(latents, train, chunk_rows, device)
    values, vectors = torch.linalg.eigh(product)
    if centred is not None:
        vectors = centred.T @ vectors / (count * values.clamp(min=1e-300)).sqrt()
    values = _nonzero(values.flip(0), mean, width_of(latents))
    return mean, values, vectors.flip(1)[:, : len(values)]


def _second_moments(
    latents: Any, train: Tensor | None, chunk_rows: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """Mean (D,) and covariance (D, D) of the chosen rows, and their number n.

    With fewer rows than numbers a row the centred rows (n, D) and their Gram matrix over n instead, which is smaller and
    has the same eigenvalues.
    """
    width = width_of(latents)
    train = torch.ones(latents.shape[0], dtype=torch.bool) if train is None else train
    count = int(train.sum())

    def chunks() -> Iterator[Tensor]:
        for start, rows in flat_chunks(latents, chunk_rows=chunk_rows, device=device):
            yield rows[train[start : start + len(rows)].to(device)]

    mean = sum(rows.sum(dim=0) for rows in chunks()) / count
    if not mean.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    if count < width:
        centred = torch.cat(list(chunks())) - mean
        return mean, centred, centred @ centred.T / count, count
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)
    for rows in chunks():
        rows = rows - mean
        covariance.addmm_(rows.T, rows)
    return mean, None, covariance / count, count


def _nonzero(values: Tensor, mean: Tensor, width: int) -> Tensor:
    """The variances, largest first, that are above rounding. Raises ValueError where there are none."""
    rank = int((values > 1e-12 * width * values[0].clamp(min=0)).sum())
    if rank == 0 or values[0] <= 1e-24 * (1 + mean.square().sum()):
        raise ValueError("latents are constant: they have no variance")
    return values[:rank]
