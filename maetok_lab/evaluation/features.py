"""Images to what a frozen network says of them, and the real images they are compared with."""

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from maetok_lab.evaluation.metrics import Statistics
from maetok_lab.evaluation.pixels import round_to_uint8
from maetok_lab.identity import DIGITS, hash_of, tensor_bytes
from maetok_lab.inference import device_of
from maetok_lab.processes import process_group, share_rows
from maetok_lab.protocols import Images, Net

SHORT = {
    "efficientnet_lite2": "efflite2",
    "efficientnet_lite0": "efflite0",
    "squeezenet1_1": "squeeze",
}
SPATIAL_CHANNELS, SPATIAL_STRIDE = (
    7,
    16,
)  # sFID's (Nash et al. 2021) as ADM computes it: 7 channels of a 17 x 17 map


def metric_name(metric: str, net: Net) -> str:
    """`kid` on a network: `kid_efflite2`; the plain names `kid`, `fid`, `sfid` and so on belong to Inception alone."""
    if net.name == "inception":
        return metric.replace("fd", "fid")
    slug = SHORT.get(net.name) or re.sub(
        r"[^a-z0-9]+", "_", net.name.lower().removeprefix("timm:")
    ).strip("_")
    return f"{metric}_{slug}"


def about_net(net: Net) -> dict[str, Any]:
    """What a protocol records of a network: name, the package that builds it and its version, hash of weights, input."""
    package = type(getattr(net, "model", net)).__module__.partition(".")[0]
    try:
        version = f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        version = None
    known = {"net": net.name, "net_version": version, "net_weights": net.weight_hash}
    return known | {"net_input_size": getattr(net, "input_size", None)}


def spatial_features(net: Any, images: Tensor) -> Tensor:
    """What sFID looks at, where things are: the first 7 channels of the network's last map at stride 16 or less.

    (B, 3, H, W) -> (B, 7 h w). Of Inception these are ADM's own (`Inception.spatial`). Raises ValueError for networks
    that do not give their maps (all of timm do).
    """
    if hasattr(net, "spatial"):
        return net.spatial(images)
    if not hasattr(getattr(net, "model", None), "forward_intermediates"):
        raise ValueError(f"{net.name} gives no maps, so there are no spatial features for 'sfd'")
    last = max(
        i for i, info in enumerate(net.model.feature_info) if info["reduction"] <= SPATIAL_STRIDE
    )
    prepared = net.prepare(images, net.input_size)
    found = net.model.forward_intermediates(
        prepared, indices=[last], intermediates_only=True, output_fmt="NCHW"
    )
    return found[0][:, :SPATIAL_CHANNELS].flatten(1)


def image_batches(
    images: Tensor | Images | Iterable[Tensor], batch_size: int
) -> Iterator[tuple[Tensor, int]]:
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
        yield (
            torch.cat([rest, rest[-1:].expand(batch_size - len(rest), *rest.shape[1:])]),
            len(rest),
        )


def _parts(images: Tensor | Images | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
    elif hasattr(images, "batch"):
        for indices in torch.arange(len(images)).split(batch_size):
            yield images.batch(indices)[0]
    else:
        yield from images


def image_features(
    images: Tensor | Images | Iterable[Tensor],
    net: Net,
    *,
    batch_size: int = 32,
    output: str = "features",
) -> Tensor:
    """Features of images in [-1, 1], clamped and rounded to uint8 first: (n, 3, H, W) -> (n, D) float32 on the CPU.

    `output` "logits" or "spatial" asks for class logits or spatial features instead.
    Takes a tensor, an ImageSource or an iterable of batches. In a `torch.distributed` group each process computes its
    share of a tensor or source, and all get all features. Raises ValueError for NaN pixels and an empty set.
    """
    return share_work(images, lambda part: _outputs(part, net, batch_size, (output,)))[output]


def share_work(images: Any, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """`work(images) -> {name: tensor (n, ...) or a fact}`, shared by processes as `share_rows` does; batches that only
    come one after another are not shared."""
    if not (isinstance(images, Tensor) or hasattr(images, "batch")) or process_group()[1] == 1:
        return work(images)
    return share_rows(len(images), lambda rows: work(_Subset(images, rows)))


@torch.inference_mode()
def batch_features(images: Tensor, net: Net) -> Tensor:
    """Features of one batch, rounded first, in this process: (B, 3, H, W) -> (B, D) float32 on the CPU."""
    return _outputs(images, net, len(images), ("features",))["features"]


@torch.inference_mode()
def _outputs(
    images: Tensor | Images | Iterable[Tensor], net: Any, batch_size: int, outputs: Sequence[str]
) -> dict[str, Any]:
    """The outputs (n, D) of each image, the SHA-256 of its rounded pixels ("digests", n x 32 bytes), the image size."""
    device = device_of(net)
    found: dict[str, list[Tensor]] = {name: [] for name in (*outputs, "digests")}
    size = None
    for batch, count in image_batches(images, batch_size):
        rounded, size = round_to_uint8(batch), batch.shape[-1]
        found["digests"].append(_digests(rounded[:count]))
        # channels last: convolutions on a CPU take half as long
        scaled = (
            (rounded / 127.5 - 1).float().to(device).contiguous(memory_format=torch.channels_last)
        )
        for name, value in _ask(net, scaled, outputs).items():
            found[name].append(value[:count].float().cpu())
    if size is None:
        raise ValueError("no images to take features of")
    return {name: torch.cat(parts) for name, parts in found.items()} | {"size": size}


def _ask(net: Any, images: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
    if hasattr(net, "outputs"):  # all in one pass
        return net.outputs(images, outputs)
    compute = {
        "features": lambda: net.features(images),
        "spatial": lambda: spatial_features(net, images),
    }
    return {
        name: compute[name]() if name in compute else getattr(net, name)(images) for name in outputs
    }


def _digests(pixels: Tensor) -> Tensor:
    rows = pixels.to(torch.uint8).cpu().contiguous().numpy()
    return torch.stack(
        [torch.frombuffer(bytearray.fromhex(hash_of([row])), dtype=torch.uint8) for row in rows]
    )


class _Subset:
    def __init__(self, images: Any, rows: Tensor):
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows[indices]
        return (
            (self.images[rows], rows)
            if isinstance(self.images, Tensor)
            else self.images.batch(rows)
        )


@dataclasses.dataclass(frozen=True)
class Reference:
    """Images as features (n, d), or only as a published (mean, covariance); made once for many evaluations.

    Published statistics are preferred to those of the features. `spatial` and `logits` are there where they were asked for.
    """

    name: str
    sha256: str
    count: int | None
    image_size: int | None
    features: Tensor | None = None
    statistics: Statistics | None = None
    spatial: Tensor | None = None
    spatial_statistics: Statistics | None = None
    logits: Tensor | None = None
    crop: str | None = None
    resize: str | None = None


def make_reference(
    images: Tensor | Images | Iterable[Tensor],
    net: Net,
    *,
    name: str | None = None,
    batch_size: int = 32,
    outputs: Sequence[str] = ("features",),
) -> Reference:
    """Features of images, with a hash of the rounded pixels, in one pass: the `reference` of many evaluations.

    `outputs` may add "spatial" (for sFID) and "logits" (for the inception score). `name` defaults to the source's split.
    Processes share the work as in `image_features`. Raises ValueError for NaN pixels and an empty set.
    """
    found = share_work(images, lambda part: _outputs(part, net, batch_size, outputs))
    digest = hash_of([tensor_bytes(found["digests"])])[:DIGITS]
    count = len(found["digests"])
    source = (
        None if isinstance(images, Tensor) else images
    )  # a tensor has methods `split` and `resize`
    name = name or getattr(source, "split", None) or f"{count} images"
    made = {key: getattr(source, key, None) for key in ("crop", "resize")} | {
        key: found[key] for key in outputs
    }
    return Reference(name, digest, count, found["size"], **made)
