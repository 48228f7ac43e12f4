"""Images to features of a frozen network, and sets of real images to compare with."""

import dataclasses
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from maetok_lab.cores import each_part
from maetok_lab.data.loading import batches_in_order
from maetok_lab.evaluation.metrics import Statistics
from maetok_lab.evaluation.pixels import round_to_uint8
from maetok_lab.identity import DIGITS, hash_of, tensor_bytes
from maetok_lab.inference import device_of
from maetok_lab.pictures import Rounding
from maetok_lab.processes import join_rows, share_images
from maetok_lab.protocols import Images, Net

SHORT_NAMES = {
    "efficientnet_lite2": "efflite2",
    "efficientnet_lite0": "efflite0",
    "squeezenet1_1": "squeeze",
}
# sFID (Nash et al. 2021) as ADM computes it: 7 channels of a 17 x 17 map of 299 pixels
SPATIAL_CHANNELS = 7
SPATIAL_STRIDE = 16
# images (n, 3, H, W) in [-1, 1] at once, by their index, or batch after batch
AnyImages = Tensor | Images | Iterable[Tensor]


# Networks ---------------------------------------------------------------------------------------


def metric_name(metric: str, net: Net) -> str:
    """`kid` on a network: `kid_efflite2`. Plain names (`kid`, `fid`, `sfid`) are Inception's."""
    if net.name == "inception":
        return metric.replace("fd", "fid")
    words = net.name.lower().removeprefix("timm:")
    slug = re.sub(r"[^a-z0-9]+", "_", words).strip("_")
    return f"{metric}_{SHORT_NAMES.get(net.name, slug)}"


def about_net(net: Net) -> dict[str, Any]:
    """What a protocol records of a network, by the names of its fields."""
    # the package that builds it: features may differ in the last digits between its versions
    package = type(getattr(net, "model", net)).__module__.partition(".")[0]
    try:
        version = f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "net": net.name,
        "net_version": version,
        "net_weights": net.weight_hash,
        "net_input_size": getattr(net, "input_size", None),
    }


def spatial_features(net: Any, images: Tensor) -> Tensor:
    """Features by place, for sFID: 7 channels of the network's last map at stride 16 or less.

    (B, 3, H, W) -> (B, 7 h w). Of Inception these are ADM's own (`Inception.spatial`). Raises
    ValueError for networks that do not give their maps (all of timm do).
    """
    if hasattr(net, "spatial"):
        return net.spatial(images)
    if not hasattr(getattr(net, "model", None), "forward_intermediates"):
        raise ValueError(f"{net.name} gives no maps, so there are no spatial features for 'sfd'")
    # maps go from fine to coarse
    strides = [stage["reduction"] for stage in net.model.feature_info]
    last = max(i for i, stride in enumerate(strides) if stride <= SPATIAL_STRIDE)
    prepared = net.prepare(images, net.input_size)
    (maps,) = net.model.forward_intermediates(
        prepared, indices=[last], intermediates_only=True, output_fmt="NCHW"
    )
    return maps[:, :SPATIAL_CHANNELS].flatten(1)


def _net_outputs(net: Any, images: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
    """Some of "features", "spatial" and "logits", by name: (B, 3, H, W) -> (B, D) each."""
    if hasattr(net, "outputs"):  # Inception gives all in one pass
        return net.outputs(images, outputs)
    values = {}
    for name in outputs:
        if name == "spatial":
            values[name] = spatial_features(net, images)
        else:
            values[name] = getattr(net, name)(images)
    return values


# Images -----------------------------------------------------------------------------------------


def image_batches(images: AnyImages, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (images (batch_size, 3, H, W), how many of them are no padding), in order.

    Batches are always full, the last one padded with its last image: a network's result for an
    image can depend on the size of its batch in the last digits.
    """
    joined = None
    for part in _parts(images, batch_size):
        joined = part if joined is None else torch.cat([joined, part])
        while len(joined) >= batch_size:
            yield joined[:batch_size], batch_size
            joined = joined[batch_size:]
    if joined is not None and len(joined):
        padding = joined[-1:].expand(batch_size - len(joined), *joined.shape[1:])
        yield torch.cat([joined, padding]), len(joined)


def _parts(images: AnyImages, batch_size: int) -> Iterator[Tensor]:
    """Images as they come, a few at a time."""
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
    elif hasattr(images, "batch"):
        for part, _ in batches_in_order(images, batch_size):
            yield part
    else:
        yield from images


def image_features(
    images: AnyImages, net: Net, *, batch_size: int = 32, output: str = "features"
) -> Tensor:
    """Features of images in [-1, 1], rounded to uint8 first: (n, 3, H, W) -> (n, D) on the CPU.

    `output` "logits" or "spatial" asks for those instead. In a `torch.distributed` group each
    process computes its share of a tensor or source, and all get all features. Raises ValueError
    for NaN pixels and an empty set.
    """
    return share_images(images, lambda part: _outputs(part, net, batch_size, (output,)))[output]


@torch.inference_mode()
def batch_features(images: Tensor, net: Net) -> Tensor:
    """Features of one batch, rounded first, in this process: (B, 3, H, W) -> (B, D) on the CPU."""
    return _outputs(images, net, len(images), ("features",))["features"]


@torch.inference_mode()
def _outputs(
    images: AnyImages,
    net: Any,
    batch_size: int,
    outputs: Sequence[str],
    rounding: Rounding = "uint8",
) -> dict[str, Any]:
    """The outputs (n, D) of each image in float32, its digest (n, 32), and the image size."""
    device = device_of(net)

    def measured(batch_and_count: tuple[Tensor, int]) -> dict[str, Any]:
        """The same of one batch, whose first `count` images are no padding."""
        batch, count = batch_and_count
        levels = round_to_uint8(batch, rounding)
        values = {"digests": _digests(levels[:count]), "image_size": batch.shape[-1]}
        # channels last: convolutions on a CPU take half as long
        pixels = (levels / 127.5 - 1).float().to(device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        for name, output in _net_outputs(net, pixels, outputs).items():
            values[name] = output[:count].float().cpu()
        return values

    parts = list(each_part(measured, image_batches(images, batch_size), device=device))
    if not parts:
        raise ValueError("no images to take features of")
    return join_rows(parts)


def _digests(levels: Tensor) -> Tensor:
    """SHA-256 of each image's pixels: (B, 3, H, W) in 0..255 -> (B, 32) uint8."""
    # as a tensor, so that the processes' shares are joined as those of features are
    rows = levels.to(torch.uint8).cpu().contiguous().numpy()
    digests = [bytearray.fromhex(hash_of([row])) for row in rows]
    return torch.tensor(digests, dtype=torch.uint8)


# Sets of images ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reference:
    """A set of images as features, or only as published statistics; made once, used many times.

    Published statistics are preferred to those of the features.
    """

    name: str
    sha256: str  # of the rounded pixels, or of a published file
    count: int | None  # None where only statistics are there
    image_size: int | None  # pixels a side
    features: Tensor | None = None  # (n, D)
    statistics: Statistics | None = None
    spatial: Tensor | None = None  # (n, 7 h w), of sFID
    spatial_statistics: Statistics | None = None
    logits: Tensor | None = None  # (n, classes), of the inception score
    crop: str | None = None  # how files became square
    resize: str | None = None  # the filter that brought them to `image_size`
    rounding: Rounding | None = None  # of their pixels; None where they were bytes before


def make_reference(
    images: AnyImages,
    net: Net,
    *,
    name: str | None = None,
    batch_size: int = 32,
    outputs: Sequence[str] = ("features",),
    rounding: Rounding = "uint8",
) -> Reference:
    """Features of images, with a hash of their rounded pixels, in one pass.

    `outputs` may add "spatial" (for sFID) and "logits" (for the inception score). `name` defaults
    to the source's split, `rounding` is that of a tensor or of batches. Processes share the work
    and errors are raised as in `image_features`.
    """
    values = share_images(images, lambda part: _outputs(part, net, batch_size, outputs, rounding))
    digests = values["digests"]
    # a source says how its files became pixels; a tensor's own `split` and `resize` are methods
    source = None if isinstance(images, Tensor) else images
    return Reference(
        name or getattr(source, "split", None) or f"{len(digests)} images",
        sha256=hash_of([tensor_bytes(digests)])[:DIGITS],
        count=len(digests),
        image_size=values["image_size"],
        crop=getattr(source, "crop", None),
        resize=getattr(source, "resize", None),
        rounding=None if hasattr(images, "batch") else rounding,
        **{output: values[output] for output in outputs},
    )
