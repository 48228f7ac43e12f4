"""Cached latent tokens with labels and statistics, bound to the tokenizer that made them.

Whether a tokenizer is that one, `identity.same_weights` says and `identity.check_owner` checks.
A cache is a run. Its shards (see data.shards) are written one by one, by all processes: a stopped
caching goes on with those that are missing. View 0 is the image, view 1 its mirror image.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maetok_lab.config import not_in_fingerprint
from maetok_lab.cores import each_part
from maetok_lab.data.batches import Pictures
from maetok_lab.data.images import ImageSource
from maetok_lab.data.loading import Request, read_ahead
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
from maetok_lab.files import atomic_path, make_folder
from maetok_lab.identity import same_weights, tensors_fingerprint
from maetok_lab.inference import eval_mode
from maetok_lab.pictures import from_uint8
from maetok_lab.processes import join_group, own_share, process_group, wait_for_all
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.runs import Run, find_run
from maetok_lab.runs.building import reading
from maetok_lab.runs.weights import read_weights

SHARED_BYTES = 256 << 20  # a larger cache is mapped where several processes read it on CPUs


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentCaching:
    """What a cache depends on, and how it is written."""

    tokenizer: str  # fingerprint of the weights
    images: str  # fingerprint of the source
    flips: bool = True  # mirror images too, as view 1
    # one mean and std for all values, for each of C channels, or for each of N x C elements
    statistics: Literal["scalar", "channel", "element"] = "channel"
    dtype: Literal["bf16", "fp16", "fp32"] = "fp16"  # of the latents as they are stored
    precision: Precision = "fp32"  # of the encoder's arithmetic
    shard_size: int = 4096  # images a file; a stopped caching loses at most one
    batch_size: int = not_in_fingerprint(64)  # images the encoder sees at a time


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """The mean and std of a tokenizer's latents; all normalisation happens here.

    They broadcast against (B, N, C): scalars, (C,) or (N, C).
    """

    tokenizer: str  # its fingerprint
    mean: Tensor
    std: Tensor

    def normalise(self, latents: Tensor) -> Tensor:
        """(z - mean) / std: what the diffusion model sees."""
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def denormalise(self, latents: Tensor) -> Tensor:
        """z * std + mean: what the decoder takes."""
        return latents * self.std.to(latents) + self.mean.to(latents)

    def to(self, device: torch.device) -> "LatentSpace":
        """The same with its statistics on `device`, so that normalising there copies nothing."""
        return LatentSpace(self.tokenizer, self.mean.to(device), self.std.to(device))

    def check(self, latents: Tensor, *, tokenizer: str | None = None) -> str:
        """One line with mean and std of a normalised batch.

        Raises ValueError when its std is outside of [0.5, 2] or the tokenizer is another.
        """
        if tokenizer is not None and tokenizer != self.tokenizer:
            raise ValueError(
                f"these latents belong to tokenizer {self.tokenizer}, not to {tokenizer}"
            )
        mean = latents.float().mean().item()
        std = latents.float().std().item()
        if not 0.5 <= std <= 2:  # true of NaN as well
            raise ValueError(
                "normalised latents should have a std near 1,"
                f" but this batch has mean {mean:.3f}, std {std:.3f}"
            )
        return f"normalised latents: mean {mean:+.3f}, std {std:.3f}"

    def save(self, path: Path) -> None:
        """Write a safetensors file, with the tokenizer in its header."""
        tensors = {"mean": self.mean.contiguous(), "std": self.std.contiguous()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"tokenizer": self.tokenizer})


def load_latent_space(source: str | Path, *, root: str | Path | None = None) -> LatentSpace:
    """The latent space of a cache, of an exported diffusion model, or of released weights.

    Raises FileNotFoundError or ValueError where there is none.
    """
    # a cache: a run's name or folder
    run = find_run(source, root)
    if run is not None:
        path = run.folder / "latent_space.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"{run.folder} holds no latent space: it needs {path.name},"
                " written at the end of caching"
            )
        tensors = load_file(path)
        return LatentSpace(run.config["tokenizer"], tensors["mean"], tensors["std"])

    # an exported diffusion model, such as "shipped/diffusion"
    tensors, config = read_weights(source)
    with reading(source):
        if "latent_space" in config:
            space = config["latent_space"]
            mean = torch.tensor(space["mean"], dtype=torch.float32)
            std = torch.tensor(space["std"], dtype=torch.float32)
            return _checked_space(str(space["tokenizer"]), mean, std)
        if "class" in config:
            raise ValueError(
                f"{source} holds weights without latent statistics;"
                " they are in the cache of the latents"
            )
        # the authors' released tokenizer: two scalars in its config
        mean = torch.tensor(float(config.get("vq_mean", 0)))
        std = torch.tensor(float(config.get("vq_std", 1)))
        return _checked_space(tensors_fingerprint(tensors), mean, std)


def _checked_space(tokenizer: str, mean: Tensor, std: Tensor) -> LatentSpace:
    """The latent space, unless nothing can be normalised by it."""
    if mean.shape != std.shape or mean.ndim > 2:
        raise ValueError(
            "mean and std of latents must be numbers, (C,) or (N, C) alike, not "
            f"{tuple(mean.shape)} and {tuple(std.shape)}"
        )
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError("mean and std of latents must be finite, and std over 0")
    return LatentSpace(tokenizer, mean, std)


def write_latents(
    tokenizer: AnyTokenizer,
    images: ImageSource,
    config: LatentCaching,
    run: Run,
    *,
    device: torch.device,
    workers: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Encode every image (and its mirror image) once into `run`.

    Yields (images so far, images in all) after each shard; finished shards are kept. `workers`: see
    `read_ahead`. Raises ValueError for other images or another tokenizer than the config's, and
    when latents are not finite, OSError when the disk is full.
    """
    run.reopen_if_damaged()
    if run.finished:
        return
    _check_origin(tokenizer, images, config)

    # Each process encodes its own shards. Only the first may write to the run itself: the others
    # have a `Run` that only reads.
    rank, _ = join_group(cpu=device.type == "cpu")
    total = len(images)
    num_shards = math.ceil(total / config.shard_size)
    make_folder(run.folder / "latents")
    batches = {}  # by shard: the rows of each batch, none where the shard is there
    for number in own_share(num_shards):
        rows = torch.arange(total)[number * config.shard_size :][: config.shard_size]
        is_there = is_sound(shard_path(run.folder, number))
        batches[number] = () if is_there else rows.split(config.batch_size)

    # one stream of pictures for all shards, each of which is encoded as it comes
    requests = (Request(rows) for shard in batches.values() for rows in shard)
    pictures = read_ahead(images, requests, workers=workers)
    with eval_mode(tokenizer):
        for number, shard_rows in batches.items():
            stop = min((number + 1) * config.shard_size, total)
            if shard_rows:
                together = itertools.islice(pictures, len(shard_rows))
                shard = _encode(tokenizer.encode, images, together, config, device)
                path = shard_path(run.folder, number)
                write_shard(path, shard)
                # the first shard tells how much the others need
                check_room(path.parent, shard.nbytes * (total - stop) // shard.shape[1])
            yield stop, total

    # what belongs to all shards, once all of them are there
    wait_for_all()
    if rank == 0:
        with atomic_path(run.folder / "labels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, images.labels.numpy())
        complete(run.folder, num_shards)
        space = statistics(open_shards(run.folder, verify=False), config)
        space.save(run.folder / "latent_space.safetensors")
        shards = [shard_path(run.folder, number) for number in range(num_shards)]
        rests_on = [*shards, run.folder / "labels.npy", run.folder / "latent_space.safetensors"]
        facts = {"images": total, "views": 1 + config.flips, "shards": num_shards}
        run.finish(facts, files=rests_on)
    wait_for_all()


def _check_origin(tokenizer: AnyTokenizer, images: ImageSource, config: LatentCaching) -> None:
    """ValueError unless these are the images and the tokenizer that the config names."""
    if images.fingerprint != config.images:
        raise ValueError(
            f"the cache was configured for images {config.images},"
            f" but these are {images.fingerprint}; other images need another run"
        )
    if not same_weights(tokenizer, config.tokenizer):
        raise ValueError(
            f"the cache was configured for tokenizer {config.tokenizer},"
            f" but this is {tokenizer.fingerprint}; another one needs another run"
        )


@torch.inference_mode()
def _encode(
    encode: Callable,
    images: ImageSource,
    batches: Iterable[Pictures],
    config: LatentCaching,
    device: torch.device,
) -> np.ndarray:
    """Latents of batches of pictures, one behind the other. -> (views, n, N, C)"""

    def encoded(pictures: Pictures) -> np.ndarray:
        """Latents of each view of a batch. -> (views, b, N, C)"""
        batch = from_uint8(pictures.pixels, device=device)
        views = [batch]
        # a picture that must not be mirrored (letters, flags) is its own second view
        if config.flips:
            mirrored = batch.flip(-1)
            fixed = ~images.flippable[pictures.indices].to(device)
            mirrored[fixed] = batch[fixed]
            views.append(mirrored)
        latents = []
        for view in views:
            with autocast(device, config.precision):
                latents.append(encode(view).float().to(DTYPES[config.dtype]).cpu())
        latents = torch.stack(latents)
        if not latents.isfinite().all():  # in fp16 also when they are larger than 65504
            first, last = pictures.indices[0], pictures.indices[-1]
            raise ValueError(
                f"latents of images {first} to {last} are not finite in {config.dtype}"
            )
        return to_array(latents, config.dtype)

    return np.concatenate(list(each_part(encoded, batches, device=device)), axis=1)


def statistics(shards: list[np.ndarray], config: LatentCaching) -> LatentSpace:
    """Mean and std over all images, unmirrored: a scalar, per channel or per element.

    shards (views, n, N, C) each; sums are float64.
    """
    axes = {"scalar": (0, 1, 2), "channel": (0, 1), "element": (0,)}[config.statistics]
    if config.dtype == "bf16":  # stored as int16, which numpy would add up as such
        shards = [from_array(np.array(shard[:1]), "bf16").float().numpy() for shard in shards]

    count = total = squares = 0
    for shard in shards:
        count += shard[0].size
        total = total + shard[0].sum(axes, dtype=np.float64)
    count = count / np.size(total)  # how many values each mean is taken over
    mean = total / count
    # a second pass, because the mean of squares less the square of the mean would cancel
    for shard in shards:
        squares = squares + np.square(shard[0] - mean).sum(axes)
    variance = squares / count
    if not (variance > 0).all():
        raise ValueError("the latents are constant in some channel: there is nothing to normalise")
    std = torch.tensor(variance).sqrt().float()
    return LatentSpace(config.tokenizer, torch.tensor(mean).float(), std)


def spread_rows(count: int, most: int = 512) -> Tensor:
    """Up to `most` of `count` rows, evenly from all: the first ones may be of one class."""
    return torch.linspace(0, count - 1, min(most, count)).round().long()


class LatentDataset:
    """A finished cache as normalised latents: `batch(indices)`.

    It is held in memory on `device` when it needs at most `memory_limit` bytes (None: half of what
    is free there, less for several processes on a CPU), else mapped. Opening reads all of it once.
    Raises ValueError for a cache that is unfinished, incomplete or damaged.
    """

    def __init__(
        self, run: Run, *, device: torch.device | str = "cpu", memory_limit: float | None = None
    ):
        if not run.finished:
            raise ValueError(
                f"latent cache {run.name} is not finished ({run.problem}); the cell that caches,"
                " run once more, goes on with it"
            )
        self.run = run
        self.device = torch.device(device)
        self.fingerprint = run.fingerprint
        self.space = load_latent_space(run.folder)
        self.labels = torch.from_numpy(np.load(run.folder / "labels.npy"))  # (n,), on the CPU
        self._dtype = run.config["dtype"]
        self._shards = open_shards(run.folder, verify=True)
        self.views, _, self.num_tokens, self.latent_dim = self._shards[0].shape
        # the first image of every shard, and the number of all
        self._starts = np.cumsum([0] + [shard.shape[1] for shard in self._shards])
        if self._starts[-1] != len(self.labels):
            raise ValueError(
                f"latent cache {run.name} has {self._starts[-1]} latents"
                f" for {len(self.labels)} labels"
            )

        # `place` is where indices are best: the device of a cache that is held, so that picking a
        # batch there waits for nothing, else the CPU
        self._all = None
        self.place = torch.device("cpu")
        if memory_limit is None:
            memory_limit = free_memory(self.device) / 2
            # processes of one machine share what is mapped, and not what each of them holds
            if self.device.type == "cpu" and process_group()[1] > 1:
                memory_limit = min(memory_limit, SHARED_BYTES)
        if sum(shard.nbytes for shard in self._shards) <= memory_limit:
            self._all = self._held()
            self.place = self.device
        self._space = self.space.to(self.device)
        self._labels = self.labels.to(self.place)

    def __reduce__(self) -> tuple:
        # in another process it is opened anew, and held or mapped as that has room
        return _opened, (self.run, self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def _held(self) -> Tensor:
        """All latents as they are stored, on the device: (views, n, N, C)."""
        shape = (self.views, len(self), self.num_tokens, self.latent_dim)
        held = torch.empty(shape, dtype=DTYPES[self._dtype], device=self.device)
        for start, shard in zip(self._starts, self._shards):
            # shard by shard, so that no second copy of all is ever there
            held[:, start : start + shard.shape[1]] = from_array(np.array(shard), self._dtype)
        return held

    def latents(self, indices: Tensor, *, view: Tensor | int = 0) -> Tensor:
        """Raw latents, float32 on the device. indices (B,), view () or (B,) -> (B, N, C)"""
        indices = indices.to(self.place)
        views = torch.as_tensor(view, device=self.place).expand(len(indices))
        # without the whole cache in memory only these rows are read
        if self._all is not None:
            return self._all[views, indices].float()
        rows = []
        for v, i in zip(views.tolist(), indices.tolist()):
            number = int(np.searchsorted(self._starts, i, side="right")) - 1
            rows.append(self._shards[number][v, i - self._starts[number]])
        return from_array(np.stack(rows), self._dtype).to(self.device).float()

    def batch(self, indices: Tensor, *, view: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        """Normalised latents (B, N, C) and labels (B,), on the device."""
        labels = self._labels[indices.to(self.place)].to(self.device)
        return self._space.normalise(self.latents(indices, view=view)), labels

    def check(self) -> str:
        """`LatentSpace.check` of some of the latents, evenly from all."""
        return self.space.check(self.batch(spread_rows(len(self)))[0])

    def all_latents(self) -> Tensor:
        """Every image's raw latent, unmirrored, float32 on the CPU. -> (n, N, C)"""
        shards = [from_array(np.array(shard[0]), self._dtype) for shard in self._shards]
        return torch.cat(shards).float()


def _opened(run: Run, device: torch.device) -> LatentDataset:
    """The cache of a run, on the process's own GPU if it is to be on one."""
    return LatentDataset(run, device=device.type)
