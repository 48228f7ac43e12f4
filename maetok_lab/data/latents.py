"""Cached latent tokens with labels and statistics, bound to the tokenizer that made them.

A cache is a run. Its shards are .npy files of (views, n, N, C), written one by one under a temporary name: a stopped
caching goes on with the first shard that is missing. View 0 is the image, view 1 its mirror image.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from maetok_lab.config import not_in_fingerprint
from maetok_lab.data.images import ImageSource
from maetok_lab.device import DTYPES, Precision, autocast
from maetok_lab.files import atomic_path, read_json, sha256, write_json
from maetok_lab.runs import Run, find_run
from maetok_lab.weights import read_weights, tensors_fingerprint

Statistics = Literal["scalar", "channel", "element"]


class Encoder(Protocol):
    """The part of a tokenizer that caching needs."""

    def encode(self, images: torch.Tensor) -> torch.Tensor: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentCaching:
    """What a cache depends on: `tokenizer` is the fingerprint of the weights, `images` of the source."""

    tokenizer: str
    images: str
    flips: bool = True
    statistics: Statistics = "channel"
    dtype: Literal["fp16", "fp32"] = "fp16"
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

    def check(self, latents: torch.Tensor, *, tokenizer: str | None = None) -> str:
        """One line with mean and std of a normalised batch. ValueError when its std leaves [0.5, 2] or the tokenizer differs."""
        if tokenizer is not None and tokenizer != self.tokenizer:
            raise ValueError(f"these latents belong to tokenizer {self.tokenizer}, not to {tokenizer}")
        mean, std = latents.float().mean().item(), latents.float().std().item()
        if not 0.5 <= std <= 2:
            raise ValueError(f"normalised latents should have a std near 1, but this batch has mean {mean:.3f}, std {std:.3f}")
        return f"normalised latents: mean {mean:+.3f}, std {std:.3f}"

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            save_file({"mean": self.mean.contiguous(), "std": self.std.contiguous()}, temporary, {"tokenizer": self.tokenizer})


def load_latent_space(source: str | Path, *, root: str | Path | None = None) -> LatentSpace:
    """The latent space of a cache (a run's name or folder), of an exported diffusion model, or of the authors' released
    tokenizer (a folder, or a hub name).

    The release keeps two scalars, `vq_mean` and `vq_std`, in the tokenizer's config (0 and 1 where they are absent).
    """
    run = find_run(source, root)
    if run is None:
        tensors, config = read_weights(source)
        if "latent_space" in config:
            known = config["latent_space"]
            return LatentSpace(known["tokenizer"], torch.tensor(known["mean"]), torch.tensor(known["std"]))
        if "class" in config:
            raise ValueError(f"{source} holds weights without latent statistics; they are in the cache of the latents")
        mean, std = (torch.tensor(float(config.get(key, value))) for key, value in (("vq_mean", 0.0), ("vq_std", 1.0)))
        return LatentSpace(tensors_fingerprint(tensors), mean, std)
    path = run.folder / "latent_space.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{run.folder} holds no latent space: it needs {path.name}, written at the end of caching")
    tensors = load_file(path)
    return LatentSpace(run.config["tokenizer"], tensors["mean"], tensors["std"])


def write_latents(
    tokenizer: Encoder, images: ImageSource, config: LatentCaching, run: Run, *, device: torch.device
) -> Iterator[tuple[int, int]]:
    """Encode every image (and its mirror image) once into `run`; yields (images done, images in all) after each shard.

    Finished shards are kept, so a stopped caching goes on. Raises ValueError for other images or another tokenizer than the
    config's, and when latents are not finite.
    """
    if run.finished:
        return
    if images.fingerprint != config.images:
        raise ValueError(f"the cache was configured for images {config.images}, but these are {images.fingerprint}")
    if getattr(tokenizer, "fingerprint", config.tokenizer) != config.tokenizer:
        raise ValueError(f"the cache was configured for tokenizer {config.tokenizer}, but this is {tokenizer.fingerprint}")
    total = len(images)
    (run.folder / "latents").mkdir(exist_ok=True)
    np.save(run.folder / "labels.npy", images.labels.numpy())
    was_training = tokenizer.training
    tokenizer.eval()
    hashes = {}
    try:
        for start in range(0, total, config.shard_size):
            stop = min(start + config.shard_size, total)
            path = run.folder / "latents" / f"shard-{start // config.shard_size:05d}.npy"
            if not path.exists():
                shard = _encode_range(tokenizer.encode, images, start, stop, config, device)
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, shard)
            hashes[path.name] = sha256(path)
            yield stop, total
    finally:
        tokenizer.train(was_training)
    write_json(run.folder / "latents" / "sha256.json", hashes)
    statistics(_open_shards(run.folder), config).save(run.folder / "latent_space.safetensors")
    run.finish({"images": total, "views": 1 + config.flips, "shards": len(hashes)})


@torch.inference_mode()
def _encode_range(
    encode: Callable, images: ImageSource, start: int, stop: int, config: LatentCaching, device: torch.device
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
                raise ValueError(f"latents of images {first} to {int(indices[-1])} are not finite in {config.dtype}")
            chunks.append(latents.numpy())
        views.append(np.concatenate(chunks))
    return np.stack(views)


def statistics(shards: list[np.ndarray], config: LatentCaching) -> LatentSpace:
    """Mean and std over all images, view 0, as one scalar, per channel or per element; float64 sums."""
    axes = {"scalar": (0, 1, 2), "channel": (0, 1), "element": (0,)}[config.statistics]
    count = sum(shard[0].size for shard in shards) / np.prod([n for a, n in enumerate(shards[0][0].shape) if a not in axes])
    mean = sum(shard[0].sum(axes, dtype=np.float64) for shard in shards) / count
    variance = sum(np.square(shard[0] - mean).sum(axes) for shard in shards) / count
    if not (variance > 0).all():
        raise ValueError("the latents are constant in some channel: there is nothing to normalise")
    return LatentSpace(config.tokenizer, torch.tensor(mean).float(), torch.tensor(variance).sqrt().float())


def _open_shards(folder: Path) -> list[np.ndarray]:
    paths = sorted((folder / "latents").glob("shard-*.npy"))
    return [np.load(path, mmap_mode="r") for path in paths]


class LatentDataset:
    """A finished cache as normalised latents: `batch(indices)`. Small caches are held in memory on `device`, large ones mapped.

    `space` is its LatentSpace, `labels` (n,) the source's, `fingerprint` the cache run's.
    """

    def __init__(self, run: Run, *, device: torch.device | str = "cpu", memory_limit: float = 8e9):
        if not run.finished:
            raise ValueError(f"latent cache {run.name} is not finished; write_latents continues it")
        self.run, self.device = run, torch.device(device)
        self.space = load_latent_space(run.folder)
        self.fingerprint = run.fingerprint
        self.labels = torch.from_numpy(np.load(run.folder / "labels.npy"))
        self._shards = _open_shards(run.folder)
        self._starts = np.cumsum([0] + [shard.shape[1] for shard in self._shards])
        expected = read_json(run.folder / "latents" / "sha256.json")
        if len(self._shards) != len(expected) or self._starts[-1] != len(self.labels):
            raise ValueError(f"latent cache {run.name} is incomplete: {len(self._shards)} of {len(expected)} shards")
        self.views, _, self.num_tokens, self.latent_dim = self._shards[0].shape
        self._all = None
        if sum(shard.nbytes for shard in self._shards) <= memory_limit:
            self._all = torch.cat([torch.from_numpy(np.array(shard)) for shard in self._shards], dim=1).to(self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def latents(self, indices: torch.Tensor, *, view: torch.Tensor | int = 0) -> torch.Tensor:
        """Raw latents, float32 on the device. indices (B,), view () or (B,) -> (B, N, C)"""
        views = torch.as_tensor(view).expand(len(indices))
        if self._all is not None:
            return self._all[views.to(self.device), indices.to(self.device)].float()
        rows = [self._row(int(v), int(i)) for v, i in zip(views, indices)]
        return torch.from_numpy(np.stack(rows)).float().to(self.device)

    def batch(self, indices: torch.Tensor, *, view: torch.Tensor | int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised latents (B, N, C) and labels (B,), on the device."""
        return self.space.normalise(self.latents(indices, view=view)), self.labels[indices].to(self.device)

    def all_latents(self) -> torch.Tensor:
        """Every image's raw latent, unmirrored, float32 on the CPU: what the analysis takes. -> (n, N, C)"""
        return torch.cat([torch.from_numpy(np.array(shard[0])) for shard in self._shards]).float()

    def _row(self, view: int, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[shard][view, index - self._starts[shard]]
