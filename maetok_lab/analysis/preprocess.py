"""Flatten, PCA, standardise: what every analysis does to latents first, in chunks of rows.

Latents are (n, ...), a tensor, a LatentDataset, or anything with `shape` that gives rows when
sliced (an array, a memory map); each row is flattened to D numbers. Only one chunk of them is
float64 at a time, so a cache larger than memory can be analysed. Everything here is float64: a
covariance is a sum over up to a million rows, and its small eigenvalues decide how many dimensions
are kept.
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

CHUNK_VALUES = 1 << 23  # numbers in one chunk: 64 MB of float64
SUSPECTS = 4096  # rows that are compared at once


# Rows ---------------------------------------------------------------------------------------------


class CachedRows:
    """A LatentDataset as (n, N, C): its raw latents, without mirrored views, read when sliced."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.device = dataset.device
        self.shape = (len(dataset), dataset.num_tokens, dataset.latent_dim)
        # what a diffusion model on them is told, and how they are normalised for it
        self.labels = dataset.labels
        self.space = dataset.space

    def __getitem__(self, index: Any) -> Tensor:
        """Rows (m, N, C)."""
        return self.dataset.latents(torch.arange(self.shape[0])[index])


def as_rows(latents: Any) -> Any:
    """Latents as they are, except that a LatentDataset becomes `CachedRows`.

    Raises ValueError for lists and whatever else has no shape.
    """
    if hasattr(latents, "latents") and hasattr(latents, "num_tokens"):
        return CachedRows(latents)
    if not hasattr(latents, "shape"):
        raise ValueError(
            f"latents must be a tensor, an array or cached latents (n, ...), not "
            f"{type(latents).__name__}; torch.as_tensor makes one of equally long lists"
        )
    return latents


def take_rows(latents: Any, indices: Tensor) -> Tensor:
    """Some rows (m, ...) of latents (n, ...), where they are."""
    latents = as_rows(latents)
    if isinstance(latents, Tensor):
        return latents[indices.to(latents.device)]
    return torch.as_tensor(latents[indices.numpy()])


def width_of(latents: Any) -> int:
    """D, numbers in one flattened row. ValueError unless latents are (n, ...) with n >= 1."""
    shape = tuple(latents.shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"latents must be (n, ...) with at least one number a row, not {shape}")
    return math.prod(shape[1:])


def flat_chunks(
    latents: Any, device: torch.device | str | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows (b, D) float64 on `device`) for consecutive chunks of latents (n, ...).

    The device defaults to the latents' own.
    """
    size = max(1, CHUNK_VALUES // width_of(latents))
    for start in range(0, latents.shape[0], size):
        rows = latents[start : start + size]
        if not isinstance(rows, Tensor):
            # copied: a memory map may be read-only, which torch cannot express
            rows = torch.from_numpy(np.array(rows))
        yield start, rows.detach().flatten(1).to(device or rows.device, torch.float64)


def float64_device(latents: Any, device: torch.device | str | None = None) -> torch.device:
    """`device`, or else where the latents are; never Apple's MPS: it has no float64."""
    device = torch.device(device or getattr(latents, "device", "cpu"))
    return torch.device("cpu") if device.type == "mps" else device


# Hashes and checks --------------------------------------------------------------------------------


def row_hashes(latents: Any) -> Tensor:
    """A 64-bit hash of each row's float64 values: (n, ...) -> (n,) int64.

    Raises ValueError for NaN or infinities.
    """
    # A random odd number for each position; the sum wraps around: exact arithmetic modulo 2^64.
    random = generator(0, "row-hash")
    weights = torch.randint(-(2**62), 2**62, (width_of(latents),), generator=random) * 2 + 1
    hashes = []
    for start, rows in flat_chunks(latents, "cpu"):
        if not rows.isfinite().all():
            bad = int((~rows.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"latents hold NaN or infinite values, first in row {start + bad}")
        hashes.append((rows.view(torch.int64) * weights).sum(dim=1))
    return torch.cat(hashes)


def data_hash(hashes: Tensor) -> str:
    """16 hex digits that stand for all rows in their order, from `row_hashes`."""
    return hash_of([tensor_bytes(hashes)])[:DIGITS]


def check_latents(latents: Any) -> Tensor:
    """`row_hashes`, after refusing latents that no density can be fitted to.

    Raises ValueError for fewer than 10 distinct rows, and for NaN.
    """
    latents = as_rows(latents)
    width_of(latents)
    hashes = row_hashes(latents)
    distinct = len(hashes.unique())
    if distinct < 10:
        raise ValueError(
            f"too few latents: {distinct} distinct ones in {len(hashes)} rows, at least 10 are"
            " needed"
        )
    return hashes


def check_resolution(
    latents: Any, mean: Tensor, variance: Tensor, *, floor: float = 0.0, pooled: bool = False
) -> None:
    """Refuse latents whose dtype is too coarse where they lie, from their moments (D,).

    Raises ValueError where neighbouring numbers are more than half a standard deviation apart,
    unless `floor`, added to variances, hides it; if `pooled`, only where that holds in all.
    Constant dimensions are left out.
    """
    dtype = take_rows(latents, torch.zeros(1, dtype=torch.int64)).dtype
    if not dtype.is_floating_point:
        return
    # Numbers from 2^(e - 1) to 2^e are 2^(e - 1) eps apart. Rounding to steps h adds h^2 / 12 to a
    # variance (Sheppard): 2 % where h is half the standard deviation, or 0.01 nats.
    exponent = torch.frexp(mean).exponent - 1
    steps = torch.ldexp(torch.full_like(mean, torch.finfo(dtype).eps), exponent)
    squares = torch.where((variance > 0) & (mean != 0), steps.square(), 0)
    coarse = 4 * squares > variance + floor
    if pooled:
        coarse &= 4 * squares.sum() > variance.sum()
    if coarse.any():
        worst = torch.where(coarse, steps, 0).argmax()
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"rows lie at {float(mean[worst]):.3g} with a spread of"
            f" {float(variance[worst].sqrt()):.2g}, which {name} cannot hold: its numbers are"
            f" {float(steps[worst]):.2g} apart there; subtract their mean before they are made"
            f" {name}, or give numbers of more digits"
        )


def first_of_copies(latents: Any, hashes: Tensor) -> Tensor:
    """For every row (n,) the first row that is equal to it; its own where none is.

    Copies on both sides of a held-out split would make the held-out number a training number.
    """
    # equal hashes only make suspects: of fp16 values they have 22 bits, so that some are chance
    _, group, sizes = hashes.unique(return_inverse=True, return_counts=True)
    suspects = (sizes[group] > 1).nonzero()[:, 0]
    first = torch.arange(len(hashes))
    contents: dict[bytes, int] = {}
    for rows in suspects.split(SUSPECTS):
        for row, content in zip(rows.tolist(), take_rows(latents, rows)):
            key = hash_of([tensor_bytes(torch.as_tensor(content).double())]).encode()
            first[row] = contents.setdefault(key, row)
    return first


# Principal components -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reducer:
    """PCA fitted to some latents: scores = (row - mean) @ components.T / scale."""

    mean: Tensor  # (D,)
    components: Tensor  # (d, D), the axes kept, of unit length
    scale: Tensor  # (d,), by which scores are divided: their standard deviations, or 1
    spectrum: Tensor  # (r,), all variances, largest first, in squared latent units

    @property
    def dimensions(self) -> int:
        """d, how many axes are kept."""
        return len(self.components)

    @property
    def explained(self) -> float:
        """Share of the variance in the dimensions kept, in (0, 1]."""
        return float(self.spectrum[: self.dimensions].sum() / self.spectrum.sum())

    def transform(
        self, latents: Any, *, selection: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Scores of latents, or of those in `selection` (n,) bool: (n, ...) -> (m, d) float64.

        Written to `out` (m, d) if given. Raises ValueError for rows of another width.
        """
        # a chunk at a time: neither latents nor scores need to fit into memory
        latents = as_rows(latents)
        if width_of(latents) != len(self.mean):
            raise ValueError(
                f"fitted to rows of {len(self.mean)} numbers, not {width_of(latents)}; "
                "take latents of the same tokenizer"
            )
        if selection is None:
            selection = torch.ones(latents.shape[0], dtype=torch.bool)
        if out is None:
            shape = (int(selection.sum()), self.dimensions)
            out = torch.empty(shape, dtype=torch.float64, device=self.mean.device)
        projection = (self.components / self.scale[:, None]).T  # (D, d)
        end = 0
        for start, chunk in flat_chunks(latents, self.mean.device):
            chunk = chunk[selection[start : start + len(chunk)].to(chunk.device)]
            begin = end
            end += len(chunk)
            out[begin:end] = (chunk - self.mean) @ projection
        return out


def fit_reducer(
    latents: Any,
    *,
    dimensions: int | None = None,
    variance: float = 0.9,
    standardise: bool = True,
    selection: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Reducer:
    """PCA of flattened latents (n, ...), to `dimensions` or the fewest that explain `variance`.

    Scores have unit variance if `standardise`. Fitted to the rows in `selection` (n,) bool. Raises
    ValueError for a variance outside (0, 1], more dimensions than the latents have, constant
    latents, and latents that their dtype or float64 cannot hold.
    """
    latents = as_rows(latents)
    moments = _moments(latents, selection, float64_device(latents, device))
    values, vectors = torch.linalg.eigh(moments.product)
    if moments.centred is not None:
        # from the Gram matrix' eigenvectors u to the axes X'u / |X'u|, where |X'u|^2 = n * value
        count = len(moments.centred)
        vectors = moments.centred.T @ vectors / (count * values.clamp(min=1e-300)).sqrt()
    spectrum = _nonzero(values.flip(0), moments.mean, width_of(latents))
    dimensions_kept = dimensions or needed_dimensions(spectrum, variance)
    if not 1 <= dimensions_kept <= len(spectrum):
        raise ValueError(
            f"dimensions must be between 1 and {len(spectrum)}, the rank of the latents, "
            f"not {dimensions}"
        )
    axes = vectors.flip(1)[:, :dimensions_kept].T
    # The largest entry of each axis is positive, so signs do not depend on the solver.
    largest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    scale = spectrum[:dimensions_kept].sqrt()
    if not standardise:
        scale = torch.ones_like(scale)
    return Reducer(moments.mean, axes, scale, spectrum)


def needed_dimensions(spectrum: Tensor, variance: float) -> int:
    """The fewest leading dimensions that explain a share `variance` of a spectrum (r,)."""
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be in (0, 1], not {variance}")
    share = spectrum.cumsum(0) / spectrum.sum()
    # 1e-12: a share that reaches `variance` but for rounding has reached it
    return min(int((share < variance * (1 - 1e-12)).sum()) + 1, len(spectrum))


def spectrum_of(latents: Any) -> Tensor:
    """PCA variances of latents (n, ...), largest first, without zeros: (r,) float64."""
    latents = as_rows(latents)
    moments = _moments(latents, None, float64_device(latents))
    values = torch.linalg.eigvalsh(moments.product).flip(0)
    return _nonzero(values, moments.mean, width_of(latents))


def common_dimensions(list_of_latents: Sequence[Any], variance: float = 0.9) -> int:
    """The one number of dimensions to compare latents at: each explains at least `variance` there.

    As in the paper (App. B.3). Raises ValueError if some have fewer dimensions than others need.
    """
    return shared_dimensions([spectrum_of(latents) for latents in list_of_latents], variance)


def shared_dimensions(spectra: Sequence[Tensor], variance: float = 0.9) -> int:
    """`common_dimensions` of latents whose spectra (r,) are computed already; the same errors."""
    if not spectra:
        raise ValueError("a common number of dimensions needs at least one set of latents")
    needed = [needed_dimensions(spectrum, variance) for spectrum in spectra]
    ranks = [len(spectrum) for spectrum in spectra]
    if max(needed) > min(ranks):
        raise ValueError(
            f"no common number of dimensions: {variance:.0%} of the variance takes {needed} "
            f"dimensions, but the latents have {ranks}; ask for less variance"
        )
    return max(needed)


def comparable_share(spectra: Sequence[Tensor], variance: float = 0.9) -> float:
    """The largest share of variance, up to `variance`, at which `shared_dimensions` has an answer.

    A smaller one is a multiple of 5 %. Raises ValueError as `shared_dimensions` does at 5 %.
    """
    shares = [variance, *(step / 20 for step in range(19, 0, -1) if step / 20 < variance)]
    for share in shares[:-1]:
        needed = max(needed_dimensions(spectrum, share) for spectrum in spectra)
        if needed <= min(len(spectrum) for spectrum in spectra):
            return share
    shared_dimensions(spectra, shares[-1])
    return shares[-1]


# Moments ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Moments:
    """What PCA needs of n rows (n, D): their covariance, or if n < D the smaller Gram matrix.

    Both have the same eigenvalues above zero.
    """

    mean: Tensor  # (D,)
    product: Tensor  # covariance (D, D), or Gram matrix over n (n, n)
    centred: Tensor | None  # (n, D), the rows less their mean, with a Gram matrix


def _moments(latents: Any, selection: Tensor | None, device: torch.device) -> _Moments:
    """Moments of the rows in `selection` (n,) bool, in two passes: the mean, then products."""
    width = width_of(latents)
    if selection is None:
        selection = torch.ones(latents.shape[0], dtype=torch.bool)
    count = int(selection.sum())

    def chunks() -> Iterator[Tensor]:
        for start, rows in flat_chunks(latents, device):
            yield rows[selection[start : start + len(rows)].to(device)]

    mean = sum(rows.sum(dim=0) for rows in chunks()) / count
    if not mean.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    if count < width:
        centred = torch.cat(list(chunks())) - mean
        product = centred @ centred.T / count
        variance = centred.square().mean(dim=0)
    else:
        # centred before the product: E[x x'] - m m' would lose the digits that the mean takes
        centred = None
        product = torch.zeros(width, width, dtype=torch.float64, device=device)
        for rows in chunks():
            rows = rows - mean
            product.addmm_(rows.T, rows)
        product /= count
        variance = product.diagonal()
    if not product.isfinite().all():
        raise ValueError("latents are too large: float64 cannot hold their squares")
    # a dimension that varies by rounding alone is nothing beside the others
    check_resolution(latents, mean, variance, pooled=True)
    return _Moments(mean, product, centred)


def _nonzero(values: Tensor, mean: Tensor, width: int) -> Tensor:
    """The variances, largest first, that are above rounding. Raises ValueError if none is."""
    # rounding of the largest spreads over all; rounding of the mean makes constant rows vary
    rank = int((values > 1e-12 * width * values[0].clamp(min=0)).sum())
    if rank == 0 or values[0] <= 1e-24 * (1 + mean.square().sum()):
        raise ValueError("latents are constant: they have no variance")
    return values[:rank]
