"""Images to features of a frozen network, and the real images they are compared with."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from maetok_lab.evaluation.metrics import Statistics
from maetok_lab.evaluation.pixels import round_to_uint8

SHORT = {"efficientnet_lite2": "efflite2", "efficientnet_lite0": "efflite0", "squeezenet1_1": "squeeze"}


class Net(Protocol):
    """What a metric needs of a feature network (nets.FeatureNet): images in [-1, 1] to features (B, D)."""

    name: str
    weight_hash: str

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""


class Images(Protocol):
    """What evaluation needs of real images (data.images.ImageSource)."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices (B,) -> images (B, 3, H, W) in [-1, 1], labels (B,)."""


def metric_name(metric: str, net: Net) -> str:
    """`kid` on a network: `kid_efflite2`; the plain names `kid`, `fid` and so on belong to Inception alone."""
    if net.name == "inception":
        return metric.replace("fd", "fid")
    slug = SHORT.get(net.name) or re.sub(r"[^a-z0-9]+", "_", net.name.lower().removeprefix("timm:")).strip("_")
    return f"{metric}_{slug}"


def image_batches(images: Tensor | Images | Iterable[Tensor], batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """(images (batch_size, 3, H, W), how many of them count): always full batches, the last one padded by repetition.

    A network's result for an image can depend on the size of its batch in the last digits; so there is one size.
    """
    waiting: list[Tensor] = []
    for part in _parts(images, batch_size):
        waiting.append(part)
        joined = torch.cat(waiting) if len(waiting) > 1 else part
        while len(joined) >= batch_size:
            yield joined[:batch_size], batch_size
            joined = joined[batch_size:]
        waiting = [joined] if len(joined) else []
    if waiting:
        rest = torch.cat(waiting)
        yield torch.cat([rest, rest[-1:].expand(batch_size - len(rest), *rest.shape[1:])]), len(rest)


def _parts(images: Tensor | Images | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
    elif hasattr(images, "batch"):
        for indices in torch.arange(len(images)).split(batch_size):
            yield images.batch(indices)[0]
    else:
        yield from images


@torch.inference_mode()
def image_features(
    images: Tensor | Images | Iterable[Tensor], net: Net, *, batch_size: int = 32, output: str = "features"
) -> Tensor:
    """Features of images in [-1, 1], clamped and rounded to uint8 first: (n, 3, H, W) -> (n, D) float32 on the CPU.

    `output="logits"` asks the network for its class logits instead.
    Takes a tensor, an ImageSource or an iterable of batches. In a `torch.distributed` group each process computes its
    share of a tensor or source, and all get all features. Raises ValueError for NaN pixels and an empty set.
    """
    rank, processes = _group()
    if processes > 1 and (isinstance(images, Tensor) or hasattr(images, "batch")):
        share = torch.arange(len(images)).tensor_split(processes)[rank]
        mine = _features(_Subset(images, share), net, batch_size, output) if len(share) else None
        gathered: list[Tensor | None] = [None] * processes
        torch.distributed.all_gather_object(gathered, mine)
        return torch.cat([part for part in gathered if part is not None])
    return _features(images, net, batch_size, output)


def _features(images: Tensor | Images | Iterable[Tensor], net: Any, batch_size: int, output: str) -> Tensor:
    device, compute = _device(net), getattr(net, output)
    found = []
    for batch, count in image_batches(images, batch_size):
        rounded = (round_to_uint8(batch) / 127.5 - 1).float()
        # channels last: convolutions on a CPU take half as long
        rounded = rounded.to(device).contiguous(memory_format=torch.channels_last)
        found.append(compute(rounded)[:count].float().cpu())
    if not found:
        raise ValueError("no images to take features of")
    return torch.cat(found)


class _Subset:
    def __init__(self, images: Any, rows: Tensor):
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows[indices]
        return (self.images[rows], rows) if isinstance(self.images, Tensor) else self.images.batch(rows)


def _group() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _device(net: Any) -> torch.device:
    parameter = next(net.parameters(), None) if isinstance(net, torch.nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images as features (n, d), or only as a published (mean, covariance); one for many evaluations."""

    name: str
    sha256: str
    count: int | None
    image_size: int | None
    features: Tensor | None = None
    statistics: Statistics | None = None


def make_reference(images: Tensor | Images, net: Net, *, name: str | None = None, batch_size: int = 32) -> Reference:
    """Features of real images, with a hash of the rounded pixels: the `reference` of many evaluations.

    `name` defaults to the source's split. Raises ValueError for NaN pixels.
    """
    digest, size = hashlib.sha256(), None
    for part in _parts(images, batch_size):
        digest.update(round_to_uint8(part).to(torch.uint8).cpu().contiguous().numpy().tobytes())
        size = part.shape[-1]
    features = image_features(images, net, batch_size=batch_size)
    name = name or (f"{len(features)} images" if isinstance(images, Tensor) else getattr(images, "split", "images"))
    return Reference(name, digest.hexdigest()[:16], len(features), size, features)
