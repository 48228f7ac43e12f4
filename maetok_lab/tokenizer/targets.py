"""What auxiliary decoders predict of the hidden patches: HOG, pixels, a frozen network's features.

A caption's words, the fourth target of the paper's LAION tokenizer, are in `text`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from maetok_lab.identity import hash_of, tensor_bytes
from maetok_lab.inference import device_of
from maetok_lab.layers.grid import patchify
from maetok_lab.nets import FeatureNet, feature_width, load_net

# Bytes of features that a target remembers on a CPU. The shipped training set takes 1.3 GB with its
# mirror images.
MEMORY_LIMIT = 2 << 30
MOST_VOTES = 1 << 25  # of HOG that are held at once: 128 MB

Captions = Sequence[str] | Tensor | None  # as text, as `text.caption_tokens` gives them, or none


# ---- HOG ----


def hog(images: Tensor, patch_size: int = 16, cell_size: int = 8) -> Tensor:
    """Histograms of oriented gradients by patch (MaskFeat's target, as the release computes it).

    images (B, 3, H, W) in [-1, 1] -> (B, patches, 27 * (patch_size / cell_size)^2) float32. Inside
    a patch the order is (channel, bin, cell row, cell column). Raises ValueError where the cell
    does not divide the patch, or the patch the image.
    """
    height, width = images.shape[-2:]
    if patch_size % cell_size or height % patch_size or width % patch_size:
        raise ValueError(
            "HOG needs cells that divide the patch, and patches that divide the image, "
            f"not {cell_size}, {patch_size} and {height} x {width} px"
        )

    # Gradients of each colour channel by Sobel filters; in bf16 the target would be off by 1 % of
    # its variance.
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=images.device)
    filters = torch.stack([sobel, sobel.T])[:, None]
    channels = images.float().flatten(0, 1)[:, None]  # (B * 3, 1, H, W)
    channels = nn.functional.pad(channels, (1, 1, 1, 1), mode="reflect")
    with torch.autocast(images.device.type, enabled=False):
        gx, gy = nn.functional.conv2d(channels, filters).unbind(1)  # each (B * 3, H, W)

    # Magnitudes are weighted by a Gaussian over 2 x 2 cells (16 px in the release), tiled.
    window = gaussian_window(2 * cell_size, device=images.device)
    tiles = math.ceil(height / len(window)), math.ceil(width / len(window))
    magnitude = torch.hypot(gx, gy) * window.repeat(tiles)[:height, :width]

    # Nine bins of orientation without sign; a pixel votes for one bin only. Votes are summed over
    # cells, some images after the others: of all at once they would be nine float32 images each.
    bins = (torch.atan2(gx, gy) / math.pi * 9).floor().long() % 9
    some = max(1, MOST_VOTES // (9 * height * width))
    histograms = []
    for part, part_magnitude in zip(bins.split(some), magnitude.split(some)):
        votes = torch.zeros(len(part), 9, height, width, device=images.device)
        votes.scatter_(1, part[:, None], part_magnitude[:, None])
        rows = votes.unflatten(-1, (-1, cell_size)).sum(-1)
        histograms.append(rows.unflatten(-2, (-1, cell_size)).sum(-2))
    # Each cell's histogram gets unit length, and each patch its cells.
    cells = torch.cat(histograms)  # (B * 3, 9, H / cell_size, W / cell_size)
    cells = nn.functional.normalize(cells, dim=1)
    n = patch_size // cell_size
    return rearrange(cells, "(b c) k (h p) (w q) -> b (h w) (c k p q)", b=len(images), p=n, q=n)


def gaussian_window(size: int, *, device: torch.device | None = None) -> Tensor:
    """A Gaussian of std size / 2 on a (size, size) square, summing to one."""
    x = torch.arange(size, device=device) - (size - 1) / 2
    line = torch.exp(-0.5 * (x / (size / 2)).square())
    window = line[:, None] * line
    return window / window.sum()


# ---- Targets ----


class Target(Protocol):
    """What one auxiliary decoder predicts. Equal targets give the same: a batch needs each once."""

    # whether there is one target a patch; else one an image
    by_patch: ClassVar[bool]

    @property
    def width(self) -> int:
        """Values of one target."""

    def __call__(self, images: Tensor, captions: Captions = None) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> (B, patches, width), or (B, width)"""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two as `__call__` gives them -> (B, patches), or (B,)"""


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over a patch's values. (B, patches, width) twice -> (B, patches)"""
    return (prediction.float() - target).square().mean(-1)


@dataclasses.dataclass(frozen=True)
class HogTarget:
    """HOG of each patch; loss is the mean squared error."""

    by_patch: ClassVar[bool] = True
    loss = staticmethod(squared_error)
    patch_size: int
    cell_size: int

    @property
    def width(self) -> int:
        """9 bins of 3 channels for every cell."""
        return 27 * (self.patch_size // self.cell_size) ** 2

    def __call__(self, images: Tensor, captions: Captions = None) -> Tensor:
        """images (B, 3, H, W) -> (B, patches, width) float32"""
        return hog(images, self.patch_size, self.cell_size)


@dataclasses.dataclass(frozen=True)
class PixelTarget:
    """The pixels of each patch, in [-1, 1], channel fastest; loss is the mean squared error."""

    by_patch: ClassVar[bool] = True
    loss = staticmethod(squared_error)
    patch_size: int

    @property
    def width(self) -> int:
        """Colour values of a patch."""
        return 3 * self.patch_size**2

    def __call__(self, images: Tensor, captions: Captions = None) -> Tensor:
        """images (B, 3, H, W) -> (B, patches, width)"""
        return patchify(images.float(), self.patch_size)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network for `FeatureTarget`, as `nets.load_net` takes it."""

    # "timm:NAME", or one of the shipped ones
    net: str
    # for which timm rebuilds a transformer; None leaves it as it is
    patch_size: int | None = None
    # of its input: as it was trained, or with ImageNet's mean and std
    scaling: Literal["own", "imagenet"] = "own"


# The release rebuilds both transformers with patches of 16 px at the training image size, and feeds
# both ImageNet's mean and std (SigLIP was trained with 0.5). The paper says "SigCLIP-Large" for the
# second; the released code takes SO400M.
TEACHERS = {
    "semantic": Teacher("efficientnet_lite0"),  # shipped: needs no download
    "dinov2": Teacher("timm:vit_large_patch14_dinov2.lvd142m", 16, "imagenet"),
    "clip": Teacher("timm:vit_so400m_patch14_siglip_gap_224", 16, "imagenet"),
}


@dataclasses.dataclass(frozen=True)
class FeatureTarget:
    """A frozen network's last feature map at the tokenizer's grid; loss is the negative cosine.

    The paper says MSE (eq. 8), the release takes the cosine. The network is loaded at first use and
    belongs to no module: no checkpoint, optimizer or average holds it.
    """

    by_patch: ClassVar[bool] = True
    teacher: Teacher
    # places a side; images are resized so that the map has as many
    grid: int
    # a local file instead of the shipped one or the hub's
    weights: str | None = None

    @functools.cached_property
    def width(self) -> int:
        """Channels of the network, without loading it."""
        return feature_width(self.teacher.net)

    @functools.cached_property
    def net(self) -> FeatureNet:
        """The network. Raises FileNotFoundError or ValueError naming the file or the repository."""
        patch_size = self.teacher.patch_size
        input_size = None
        if patch_size is not None:
            input_size = patch_size * self.grid
        return load_net(
            self.teacher.net,
            weights=self.weights,
            input_size=input_size,
            patch_size=patch_size,
            scaling=self.teacher.scaling,
        )

    def __call__(self, images: Tensor, captions: Captions = None) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> (B, patches, width), without gradient"""
        with torch.no_grad():
            if images.device.type != "cpu":
                return self._features(images)
            # One by one: then an image's features are the same bits in any batch, before and after
            # a restart. On a CPU the network is most of a step, so it is asked once an image.
            return torch.cat([self._remembered(image) for image in images.split(1)])

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """prediction, target (B, patches, width) -> (B, patches) in [-1, 1]"""
        return -nn.functional.cosine_similarity(prediction.float(), target.float(), dim=-1)

    def forget(self) -> None:
        """Drop what is remembered."""
        self._memory.clear()

    @functools.cached_property
    def _memory(self) -> dict[tuple[str, bool], Tensor]:
        """Features by the image's hash, and whether they were computed under autocast."""
        return {}

    def _remembered(self, image: Tensor) -> Tensor:
        """image (1, 3, H, W) on a CPU -> (1, patches, width)"""
        key = hash_of([tensor_bytes(image)]), torch.is_autocast_enabled("cpu")
        features = self._memory.get(key)
        if features is None:
            features = self._features(image)
            if (len(self._memory) + 1) * features.nbytes <= MEMORY_LIMIT:
                self._memory[key] = features
        return features

    def _features(self, images: Tensor) -> Tensor:
        if device_of(self.net) != images.device:
            self.net.to(images.device)
        return self.net.feature_map(images, grid=self.grid).flatten(1, 2)
