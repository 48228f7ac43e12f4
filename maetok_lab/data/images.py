"""Labelled images as float (3, H, W) in [-1, 1]: the shipped emoji, folders, Parquet or tars."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from maetok_lab.data.batches import Blocks, Pictures
from maetok_lab.data.digests import picture_digests
from maetok_lab.data.listing import Listing, label_values, labelled_rows
from maetok_lab.data.readers import CROPS, RESIZES, BrokenImageError, read_rgb, scale_crop
from maetok_lab.data.sources import list_source
from maetok_lab.data.splits import SPLITS
from maetok_lab.hints import check_choice
from maetok_lab.identity import DIGITS, hash_of, text_hash
from maetok_lab.processes import Subset

_IN_MEMORY = 1 << 30  # a split of fewer decoded bytes is kept in memory


def open_images(
    source: str | Path,
    *,
    split: str = "train",
    image_size: int,
    labels: str = "category",
    crop: str = "center",
    max_broken: int | None = None,
    split_names: Mapping[str, str | Sequence[str]] | None = None,
) -> "ImageSource":
    """Open one split of "emoji", of an image folder, or of Parquet or tar shards.

    `labels` is a column of the records or "category-style", `crop` "center" (ADM's), "pad" (on
    white) or "center-fast". `max_broken` pictures (10 or 1%, whichever is more) may be unreadable;
    `split_names`, {"val": "dev*"}, names splits by hand. Raises ValueError for what is not there.
    """
    reading = {"crop": crop, "max_broken": max_broken, "split_names": split_names}
    opened = open_splits(source, image_size=image_size, labels=labels, splits=(split,), **reading)
    return opened[split]


def open_splits(
    source: str | Path,
    *,
    image_size: int,
    labels: str = "category",
    splits: Sequence[str] = SPLITS,
    crop: str = "center",
    max_broken: int | None = None,
    split_names: Mapping[str, str | Sequence[str]] | None = None,
) -> "dict[str, ImageSource]":
    """Several splits of one source by name, each as `open_images` opens it.

    The source is listed once, and what was left out of it is said once.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be a whole number of pixels >= 1, got {image_size!r}")
    if max_broken is not None and (type(max_broken) is not int or max_broken < 0):
        raise ValueError(
            f"max_broken must be None or a number of pictures >= 0, got {max_broken!r}"
        )
    for split in splits:
        check_choice(split, SPLITS, "split")
    check_choice(crop, CROPS, "crop")
    # the shipped artwork was drawn at one size
    listing = list_source(source, split_names)
    if listing.max_size and image_size > listing.max_size:
        raise ValueError(
            f"{listing.name} has images of {listing.max_size} px,"
            f" so image_size={image_size} is too large"
        )
    _tell(listing.name, listing.notices)
    options = {"image_size": image_size, "labels": labels, "crop": crop, "max_broken": max_broken}
    return {split: ImageSource(listing, split=split, **options) for split in splits}


class ImageSource(Dataset):
    """A map-style dataset: [i] -> (image float32 (3, H, W) in [-1, 1], label int).

    `batch` is the fast way. A split under 1 GB decoded is kept in memory, without its unreadable
    pictures. Of a larger one an unreadable picture's place is taken by the next readable one.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        split: str,
        image_size: int,
        labels: str,
        crop: str,
        max_broken: int | None,
    ):
        # classes are numbered over all splits, so that each has the same numbers
        values, self.class_names = label_values(listing, labels)
        split, rows, notices = labelled_rows(listing, split, values, labels)
        _tell(listing.name, notices)

        self.split = split
        self.image_size = image_size
        # artwork has hard edges and is square already: Lanczos, as when the set was made
        self.crop = "pad" if listing.max_size else crop
        self.max_broken = max(10, len(rows) // 100) if max_broken is None else max_broken
        self.broken: list[str] = []  # a message for each unreadable picture, once

        self._listing = listing
        self._rows = rows  # of the listing: those of this split
        self._all_rows = rows  # broken ones included: what is broken is so in every process
        self._values = values  # class numbers of all rows of the listing, -1 for none
        self._label_by = labels

        # uint8 pixels of the split, and which of them were decoded already
        self._pixels = self._ready = None
        if len(rows) * 3 * image_size**2 < _IN_MEMORY:
            self._pixels = torch.empty((len(rows), 3, image_size, image_size), dtype=torch.uint8)
            self._ready = torch.zeros(len(rows), dtype=torch.bool)
            # the shipped set has no broken pictures: it is decoded when it is read
            if listing.name != "emoji":
                self._leave_out_broken()

    def __getstate__(self) -> dict[str, Any]:
        # another process decodes what it needs: pixels are larger than the pictures' files
        state = self.__dict__.copy()
        if self._pixels is not None:
            state["_pixels"] = tuple(self._pixels.shape)
            state["_ready"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._pixels is not None:
            self._pixels = torch.empty(state["_pixels"], dtype=torch.uint8)
            self._ready = torch.zeros(len(self._pixels), dtype=torch.bool)

    # ---- decoding ----
    def _leave_out_broken(self) -> None:
        """Decode the whole split and drop the rows that cannot be read."""
        self._fill(torch.arange(len(self)))
        if not self._ready.any():
            raise ValueError(
                f"{self._listing.name}: not one image of split {self.split!r} can be read"
            )
        self._rows = self._rows[self._ready.numpy()]
        self._pixels = self._pixels[self._ready]
        self._ready = self._ready[self._ready]

    def _fill(self, indices: Tensor) -> None:
        """Decode those of the images that are not in memory yet, and count the broken ones."""
        missing = indices[~self._ready[indices]].unique().tolist()
        # Pillow's decoders run outside of Python's lock, so threads are enough
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for i, pixels in zip(missing, pool.map(self._decode, self._rows[missing])):
                if isinstance(pixels, BrokenImageError):
                    self.count_broken([str(pixels)])
                else:
                    self._pixels[i] = pixels
                    self._ready[i] = True

    def _decode(self, row: int, crop: tuple[float, ...] | None = None) -> Tensor | BrokenImageError:
        """Read one row of the listing -> uint8 (3, H, W), or the error that says why not.

        It is cut by `crop` (scale, down, across), or by the source's own crop without one.
        """
        # scale crops are ADM's, of the whole picture
        at_least = self.image_size if crop is None and self.crop == "center-fast" else None

        def cut(image: Image.Image) -> Image.Image:
            if crop is None:
                return CROPS[self.crop](image, self.image_size)
            scale, down, across = crop
            return scale_crop(image, self.image_size, scale=scale, down=down, across=across)

        try:
            image = read_rgb(self._listing.files[row], at_least=at_least, crop=cut)
        except (BrokenImageError, OSError, MemoryError) as error:  # of the picture or its shard
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return BrokenImageError(f"{self._listing.records['path'].iloc[row]}: {reason}")
        # Pillow's (H, W, 3) to torch's (3, H, W)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def count_broken(self, messages: Sequence[str]) -> None:
        """Warn of each picture once; more than `max_broken` raise ValueError.

        For whoever calls `read`, in the process that owns the source.
        """
        for message in messages:
            if message in self.broken:
                continue
            self.broken.append(message)
            warnings.warn(f"skipped a broken image: {message}", stacklevel=2)
            if len(self.broken) > self.max_broken:
                raise ValueError(
                    f"{self._listing.name}: more than max_broken={self.max_broken} broken images;"
                    f" the last one: {message}"
                )

    def _decode_next(
        self, index: int, crop: tuple[float, ...] | None
    ) -> tuple[Tensor, int, list[str]]:
        """Decode image `index`, or the next one that can be read.

        -> uint8 (3, H, W), its index, messages of those that were passed over
        """
        passed = []
        for step in range(len(self)):
            actual = (index + step) % len(self)
            pixels = self._decode(self._rows[actual], crop)
            if isinstance(pixels, Tensor):
                return pixels, actual, passed
            passed.append(str(pixels))
            # a folder full of broken files is not searched to its end
            if len(passed) > self.max_broken:
                self.count_broken(passed)
        raise ValueError(f"{self._listing.name}: not one image of split {self.split!r} can be read")

    # ---- reading ----
    def __len__(self) -> int:
        """Count the images of this split."""
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Give one image and its label."""
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def select(self, rows: Tensor) -> Subset:
        """Some of the images, rows (n,), for what takes `Images`: they are read when asked for."""
        return Subset(self, rows)

    def batch(
        self,
        indices: Sequence[int] | Tensor | slice,
        *,
        flip: Tensor | None = None,
        scale_crops: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read many images as `read` does, scale them for a model and count the broken ones.

        indices (B,) -> images (B, 3, H, W) float32 in [-1, 1], labels (B,)
        """
        pictures = self.read(indices, flip=flip, scale_crops=scale_crops)
        self.count_broken(pictures.broken)
        return pictures.images, self.labels[pictures.indices]

    def read(
        self,
        indices: Sequence[int] | Tensor | slice,
        *,
        flip: Tensor | None = None,
        scale_crops: Tensor | None = None,
    ) -> Pictures:
        """Read many images, as 8-bit pixels; broken ones are not counted (see `count_broken`).

        `flip` (B,) bool mirrors those that are flippable left to right. `scale_crops` (B, 3), rows
        of (scale, down, across) for `readers.scale_crop`, cuts each anew from its file. Raises
        IndexError, TypeError and ValueError for what does not fit.
        """
        indices = self._check_indices(indices)
        if flip is not None and (flip.dtype != torch.bool or flip.shape != indices.shape):
            raise ValueError(
                f"flip must be bool ({len(indices)},), got {flip.dtype} {tuple(flip.shape)}"
            )
        if scale_crops is not None and scale_crops.shape != (len(indices), 3):
            raise ValueError(
                f"scale_crops must be ({len(indices)}, 3), got {tuple(scale_crops.shape)}"
            )

        # in memory every picture is cut already, and none is broken
        broken: list[str] = []
        if self._pixels is not None and scale_crops is None:
            if not self._ready[indices].all():
                self._fill(indices)
            pixels = self._pixels[indices]
        else:
            crops = [None] * len(indices)
            if scale_crops is not None:
                crops = scale_crops.tolist()
            decoded = []
            actual = []
            for index, crop in zip(indices.tolist(), crops):
                picture, nearest, passed = self._decode_next(index, crop)
                decoded.append(picture)
                actual.append(nearest)
                broken += passed
            pixels = torch.stack(decoded)
            indices = torch.tensor(actual)

        # letters and flags stay as they are
        if flip is not None:
            mirrored = flip.cpu() & self.flippable[indices]
            pixels[mirrored] = pixels[mirrored].flip(-1)
        return Pictures(pixels, indices, tuple(broken))

    def _check_indices(self, indices: Sequence[int] | Tensor | slice) -> Tensor:
        """Turn any way of choosing rows into a LongTensor without negatives."""
        if isinstance(indices, slice):
            return torch.arange(len(self))[indices]
        indices = torch.as_tensor(indices).cpu()
        if indices.dtype == torch.bool:
            raise TypeError(
                "indices must be whole numbers, got a bool mask; use mask.nonzero()[:, 0]"
            )
        indices = indices.long().reshape(-1)
        if len(indices):
            low = int(indices.min())
            high = int(indices.max())
            if low < -len(self) or high >= len(self):
                raise IndexError(f"indices {low}..{high} are not inside 0..{len(self) - 1}")
        return torch.where(indices < 0, indices + len(self), indices)

    # ---- facts about the images ----
    @property
    def records(self) -> pd.DataFrame:
        """What the source says of each image of the split, in order."""
        return self._listing.records.iloc[self._rows].reset_index(drop=True)

    @property
    def in_memory(self) -> bool:
        """Whether the split is small enough to be kept decoded."""
        return self._pixels is not None

    @cached_property
    def blocks(self) -> Blocks | None:
        """How a random order should go through the images; None where any order is as good."""
        files = self._listing.files
        if self.in_memory or getattr(files, "at_once", None) is None:
            return None
        return Blocks(torch.from_numpy(files.groups_of(self._rows)), files.at_once)

    @property
    def resize(self) -> str:
        """How pictures are brought to image_size, in words, for protocols."""
        return RESIZES[self.crop]

    @cached_property
    def captions(self) -> list[str]:
        """A short text for each image."""
        return [str(caption) for caption in self._listing.records["caption"].iloc[self._rows]]

    @cached_property
    def labels(self) -> Tensor:
        """Class numbers (n,), into class_names."""
        return torch.from_numpy(self._values[self._rows])

    @property
    def num_classes(self) -> int:
        """Count the classes of the whole source, all splits together."""
        return len(self.class_names)

    @cached_property
    def flippable(self) -> Tensor:
        """Which images (n,) may be mirrored: all but those whose meaning has a direction."""
        category = self._listing.records["category"].iloc[self._rows]
        directed = category.isin(self._listing.keep_direction)  # emoji symbols and flags
        return torch.from_numpy(~directed.to_numpy(dtype=bool))

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the pictures' bytes and classes in their order, of size and crop."""
        listing = self._listing
        if listing.identity:
            parts = [listing.identity, self.split, self.image_size, self.crop, self._label_by]
            return text_hash([*parts, *self.class_names])[:DIGITS]
        parts = [text_hash([self.image_size, self.crop, *self.class_names]).encode()]
        return hash_of([*parts, self.digests, self._values[self._all_rows]])[:DIGITS]

    @cached_property
    def digests(self) -> np.ndarray:
        """A hash of the bytes of each picture, broken ones included: uint8 (n, 16)."""
        return picture_digests(self._listing.contents, self._all_rows)

    @cached_property
    def content(self) -> str:
        """Short hash of the pictures' bytes and classes, whatever their order and container."""
        pairs = [
            digest.tobytes() + self.class_names[label].encode()
            for digest, label in zip(self.digests, self._values[self._all_rows])
        ]
        return hash_of(sorted(pairs))[:DIGITS]


def _tell(name: str, notices: Sequence[str]) -> None:
    """Say in one warning what was left out or guessed."""
    if notices:
        warnings.warn(f"{name}: {'; '.join(notices)}", stacklevel=4)
