"""Cached latent tokens with labels and statistics, bound to the tokenizer that made them.

A cache is a run. Its shards (see data.shards) are written one by one, by all processes: a stopped caching goes on with those
that are missing. View 0 is the image, view 1 its mirror image.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from maetok_lab.config import not_in_fingerprint
from maetok_lab.data.images import ImageSource
from maetok_lab.data.shards import (
    check_room,
    complete,
    from_array,
    is_sound,
    open_shards,
    shard_path,
    to_array,
    write_shard,
)
from maetok_lab.device import DTYPES, Precision, autocast, free_memory
from maetok_lab.files import atomic_path
from maetok_lab.identity import same_weights, tensors_fingerprint
from maetok_lab.inference import eval_mode
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.runs import Run, find_run
from maetok_lab.runs.weights import read_weights

Statistics = Literal["scalar", "channel", "element"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentCaching:
    """What a cache depends on: `tokenizer` is the fingerprint of the weights, `images` of the source."""

    tokenizer: str
    images: str
    flips: bool = True
    statistics: Statistics = "channel"
    dtype: Literal["bf16", "fp16", "fp32"] = "fp16"
    precision: Precision = "fp32"
    shard_size: int = 4096
    batch_size: int = not_in_fingerprint(64)


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """A tokenizer's fingerprint with the mean and std of its latents; all normalisation happens here.

    `mean` and `std` broadcast against (B, N, C): scalars, (C,) or (N, C).
    """

    tokenizer: str
    mean: torch.Tensor
    std: torch.Tensor

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """(z - mean) / std: what the diffusion model sees."""
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """z * std + mean: what the decoder takes."""
        return latents * self.std.to(latents) + self.mean.to(latents)

    def to(self, device: torch.device) -> "LatentSpace":
        """The same with its statistics on `device`, so that normalising there copies nothing."""
        return LatentSpace(self.tokenizer, self.mean.to(device), self.std.to(device))

    def check(self, latents: torch.Tensor, *, tokenizer: str | None = None) -> str:
        """One line with mean and std of a normalised batch. ValueError when its std leaves [0.5, 2] or the tokenizer differs."""
        if tokenizer is not None and tokenizer != self.tokenizer:
            raise ValueError(
                f"these latents belong to tokenizer {self.tokenizer}, not to {tokenizer}"
            )
        mean, std = latents.float().mean().item(), latents.float().std().item()
        if not 0.5 <= std <= 2:
            raise ValueError(
                f"normalised latents should have a std near 1, but this batch has mean {mean:.3f}, std {std:.3f}"
            )
        return f"normalised latents: mean {mean:+.3f}, std {std:.3f}"

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            save_file(
                {"mean": self.mean.contiguous(), "std": self.std.contiguous()},
                temporary,
                {"tokenizer": self.tokenizer},
            )


def load_latent_space(source: str | Path, *, root: str | Path | None = None) -> LatentSpace:
    """The latent space of a cache (a run's name or folder), of an exported diffusion model ("shipped/diffusion" is one), or of
    the authors' released tokenizer (a folder, or a hub name).

    The release keeps two scalars, `vq_mean` and `vq_std`, in the tokenizer's config (0 and 1 where they are absent).
    """
    run = find_run(source, root)
    if run is None:
        tensors, config = read_weights(source)
        if "latent_space" in config:
            known = config["latent_space"]
            return LatentSpace(
                known["tokenizer"], torch.tensor(known["mean"]), torch.tensor(known["std"])
            )
        if "class" in config:
            raise ValueError(
                f"{source} holds weights without latent statistics; they are in the cache of the latents"
            )
        mean, std = (
            torch.tensor(float(config.get(key, value)))
            for key, value in (("vq_mean", 0.0), ("vq_std", 1.0))
        )
        return LatentSpace(tensors_fingerprint(tensors), mean, std)
    path = run.folder / "latent_space.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"{run.folder} holds no latent space: it needs {path.name}, written at the end of caching"
        )
    tensors = load_file(path)
    return LatentSpace(run.config["tokenizer"], tensors["mean"], tensors["std"])


def write_latents(
    tokenizer: AnyTokenizer,
    images: ImageSource,
    config: LatentCaching,
    run: Run,
    *,
    device: torch.device,
) -> Iterator[tuple[int, int]]:
    """Encode every image (and its mirror image) once into `run`; yields (images done, images in all) after each shard.

    Finished shards are kept, so a stopped caching goes on. Of several processes each encodes every n-th shard; the first
    holds the run, the others a `Run` that only reads. Raises ValueError for other images or another tokenizer than the
    config's, and when latents are not finite, OSError when the disk is full.
    """
    if run.finished:
        return
    if images.fingerprint != config.images:
        raise ValueError(
            f"the cache was configured for images {config.images}, but these are {images.fingerprint}"
        )
    if not same_weights(tokenizer, config.tokenizer):
        raise ValueError(
            f"the cache was configured for tokenizer {config.tokenizer}, but this is {tokenizer.fingerprint}"
        )
    processes = PartialState(cpu=device.type == "cpu")
    total, count = len(images), math.ceil(len(images) / config.shard_size)
    (run.folder / "latents").mkdir(exist_ok=True)
    with eval_mode(tokenizer):
        for number in range(processes.process_index, count, processes.num_processes):
            start, stop = number * config.shard_size, min((number + 1) * config.shard_size, total)
            path = shard_path(run.folder, number)
            if not is_sound(path):
                shard = _encode_range(tokenizer.encode, images, start, stop, config, device)
                write_shard(path, shard)
                check_room(path.parent, shard.nbytes * (total - stop) // (stop - start))
            yield stop, total
    processes.wait_for_everyone()
    if processes.is_main_process:
        with atomic_path(run.folder / "labels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, images.labels.numpy())
        complete(run.folder, count)
        statistics(open_shards(run.folder, verify=False), config).save(
            run.folder / "latent_space.safetensors"
        )
        run.finish({"images": total, "views": 1 + config.flips, "shards": count})
    processes.wait_for_everyone()


@torch.inference_mode()
def _encode_range(
    encode: Callable,
    images: ImageSource,
    start: int,
    stop: int,
    config: LatentCaching,
    device: torch.device,
) -> np.ndarray:
    """Latents of images start .. stop - 1. -> (views, n, N, C)"""
    views = []
    for flip in (False, True)[: 1 + config.flips]:
        chunks = []
        for first in range(start, stop, config.batch_size):
            indices = torch.arange(first, min(first + config.batch_size, stop))
            # A picture that must not be mirrored (letters, flags) gets its own latent as its second view.
            batch, _ = images.batch(indices, flip=torch.full((len(indices),), flip))
            with autocast(device, config.precision):
                latents = encode(batch.to(device)).float().to(DTYPES[config.dtype]).cpu()
            if not latents.isfinite().all():  # in fp16 also when they are larger than 65504
                raise ValueError(
                    f"latents of images {first} to {int(indices[-1])} are not finite in {config.dtype}"
                )
            chunks.append(to_array(latents, config.dtype))
        views.append(np.concatenate(chunks))
    return np.stack(views)


def statistics(shards: list[np.ndarray], config: LatentCaching) -> LatentSpace:
    """Mean and std over all images, view 0, as one scalar, per channel or per element; float64 sums."""
    axes = {"scalar": (0, 1, 2), "channel": (0, 1), "element": (0,)}[config.statistics]
    if config.dtype == "bf16":
        shards = [from_array(np.array(shard[:1]), "bf16").float().numpy() for shard in shards]
    count = sum(shard[0].size for shard in shards) / np.prod(
        [n for a, n in enumerate(shards[0][0].shape) if a not in axes]
    )
    mean = sum(shard[0].sum(axes, dtype=np.float64) for shard in shards) / count
    variance = sum(np.square(shard[0] - mean).sum(axes) for shard in shards) / count
    if not (variance > 0).all():
        raise ValueError("the latents are constant in some channel: there is nothing to normalise")
    return LatentSpace(
        config.tokenizer, torch.tensor(mean).float(), torch.tensor(variance).sqrt().float()
    )


class LatentDataset:
    """A finished cache as normalised latents: `batch(indices)`. It is held in memory on `device` when it fits, else mapped.

    `space` is its LatentSpace, `labels` (n,) the source's (on the CPU), `fingerprint` the cache run's. It fits when it needs
    at most `memory_limit` bytes, by default half of what is free there. `place` is where indices are best: the device of a
    cache that is held, so that picking a batch there waits for nothing, else the CPU. `verify` reads all of it once.
    """

    def __init__(
        self,
        run: Run,
        *,
        device: torch.device | str = "cpu",
        memory_limit: float | None = None,
        verify: bool = True,
    ):
        if not run.finished:
            raise ValueError(f"latent cache {run.name} is not finished; write_latents continues it")
        self.run, self.device = run, torch.device(device)
        self.space = load_latent_space(run.folder)
        self.fingerprint, self._dtype = run.fingerprint, run.config["dtype"]
        self.labels = torch.from_numpy(np.load(run.folder / "labels.npy"))
        self._shards = open_shards(run.folder, verify=verify)
        self._starts = np.cumsum([0] + [shard.shape[1] for shard in self._shards])
        if self._starts[-1] != len(self.labels):
            raise ValueError(
                f"latent cache {run.name} has {self._starts[-1]} latents for {len(self.labels)} labels"
            )
        self.views, _, self.num_tokens, self.latent_dim = self._shards[0].shape
        self._all = None
        limit = free_memory(self.device) / 2 if memory_limit is None else memory_limit
        if sum(shard.nbytes for shard in self._shards) <= limit:
            held = [from_array(np.array(shard), self._dtype) for shard in self._shards]
            self._all = torch.cat(held, dim=1).to(self.device)
        self.place = torch.device("cpu") if self._all is None else self.device
        self._space, self._labels = self.space.to(self.device), self.labels.to(self.place)

    def __len__(self) -> int:
        return len(self.labels)

    def latents(self, indices: torch.Tensor, *, view: torch.Tensor | int = 0) -> torch.Tensor:
        """Raw latents, float32 on the device. indices (B,), view () or (B,) -> (B, N, C)"""
        indices, views = (
            indices.to(self.place),
            torch.as_tensor(view, device=self.place).expand(len(indices)),
        )
        if self._all is not None:
            return self._all[views, indices].float()
        rows = [self._row(int(v), int(i)) for v, i in zip(views, indices)]
        return from_array(np.stack(rows), self._dtype).to(self.device).float()

    def batch(
        self, indices: torch.Tensor, *, view: torch.Tensor | int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised latents (B, N, C) and labels (B,), on the device."""
        labels = self._labels[indices.to(self.place)].to(self.device)
        return self._space.normalise(self.latents(indices, view=view)), labels

    def all_latents(self) -> torch.Tensor:
        """Every image's raw latent, unmirrored, float32 on the CPU: what the analysis takes. -> (n, N, C)"""
        return torch.cat(
            [from_array(np.array(shard[0]), self._dtype) for shard in self._shards]
        ).float()

    def _row(self, view: int, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[shard][view, index - self._starts[shard]]
