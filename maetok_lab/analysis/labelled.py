"""Flattened latents with their labels, in memory where they fit and read in chunks where not."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import as_rows, flat_chunks, width_of

IN_MEMORY = 1 << 30  # bytes of rows up to which all are held at once
ROUNDING = 1e-12  # a standard deviation so much below the largest is none


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows (n, D) that are read again, a chunk at a time, whenever they are gone through."""

    read: Callable[[], Iterator[Tensor]]  # all chunks, in order
    width: int  # D, of the rows as they are read
    selection: Tensor | None = None  # (rows read,) bool: which of them are meant
    changes: tuple[Callable[[Tensor], Tensor], ...] = ()  # done to every chunk, in turn

    def __iter__(self) -> Iterator[Tensor]:
        start = 0
        for rows in self.read():
            end = start + len(rows)
            if self.selection is not None:
                rows = rows[self.selection[start:end]]
            start = end
            for change in self.changes:
                rows = change(rows)
            yield rows


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Rows (n, D) with their labels (n,)."""

    rows: Tensor | Stream
    labels: Tensor  # int64, on the device of the computation

    @property
    def width(self) -> int:
        """D, numbers in a row."""
        return self.rows.width if isinstance(self.rows, Stream) else self.rows.shape[1]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows (b, D), labels (b,)) in order; rows in memory are one chunk."""
        if isinstance(self.rows, Tensor):
            yield self.rows, self.labels
            return
        start = 0
        for rows in self.rows:
            yield rows, self.labels[start : start + len(rows)]
            start += len(rows)

    def part(self, selection: Tensor) -> "Labelled":
        """The rows in `selection` (n,) bool, which are chosen once at most."""
        if isinstance(self.rows, Tensor):
            rows = self.rows[selection]
        else:
            rows = dataclasses.replace(self.rows, selection=selection)
        return Labelled(rows, self.labels[selection])

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Labelled":
        """The same labels, of rows that went through `change`, chunk by chunk."""
        if isinstance(self.rows, Tensor):
            return Labelled(change(self.rows), self.labels)
        changes = (*self.rows.changes, change)
        return Labelled(dataclasses.replace(self.rows, changes=changes), self.labels)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each column (D,); a constant column's deviation is 1.

        Raises ValueError where all rows are the same.
        """
        if isinstance(self.rows, Tensor):
            mean = self.rows.mean(dim=0)
            std = self.rows.std(dim=0, correction=0)
        else:  # squares of what is centred: E[x^2] - m^2 would lose the digits the mean takes
            count = len(self.labels)
            mean = sum(rows.sum(dim=0) for rows in self.rows) / count
            std = (sum((rows - mean).square().sum(dim=0) for rows in self.rows) / count).sqrt()
        if not std.max() > 0:
            raise ValueError(
                f"latents are constant: all {len(self.labels)} training rows are the same"
            )
        return mean, torch.where(std > ROUNDING * std.max(), std, 1.0)


def labelled_latents(
    latents: Any, labels: Tensor, *, pool: bool, device: torch.device, dtype: torch.dtype
) -> Labelled:
    """Latents (n, ...) as rows on `device`, flattened or averaged over tokens, and their labels.

    Of more than `IN_MEMORY` bytes and more rows than columns they are streamed. Raises ValueError
    for NaN (of a stream: when it is read) and for labels that do not match.
    """
    latents = as_rows(latents)
    labels = torch.as_tensor(labels)
    width = width_of(latents)
    count = latents.shape[0]
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be ({count},) whole numbers, not {labels.dtype} {tuple(labels.shape)}"
        )
    if pool:
        if len(latents.shape) != 3:
            raise ValueError(f"only latents (n, N, C) can be pooled, not {tuple(latents.shape)}")
        width = latents.shape[-1]

    def read() -> Iterator[Tensor]:
        """All rows, a chunk at a time."""
        for _, rows in flat_chunks(latents, device):
            if pool:
                rows = rows.unflatten(1, tuple(latents.shape[1:])).mean(dim=1)
            if not rows.isfinite().all():
                raise ValueError("latents hold NaN or infinite values")
            yield rows.to(dtype)

    labels = labels.to(device, torch.int64)
    # With fewer rows than columns the principal axes alone are as large as the rows.
    if count * width * dtype.itemsize > IN_MEMORY and count > width:
        return Labelled(Stream(read, width), labels)
    held = torch.empty(count, width, dtype=dtype, device=device)
    start = 0
    for rows in read():
        held[start : start + len(rows)] = rows
        start += len(rows)
    return Labelled(held, labels)
