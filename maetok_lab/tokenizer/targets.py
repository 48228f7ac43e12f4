"""What auxiliary decoders predict of the hidden patches: HOG, pixels, the features of a frozen network.

A caption's words, the fourth target of the paper's LAION tokenizer, are in `text`.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import torch
from einops import rearrange
from torch import nn

from maetok_lab.layers.patches import patchify
from maetok_lab.nets import FeatureNet, feature_width, load_net

REMEMBERED = (
    2 << 30
)  # bytes of features a target keeps on a CPU; the shipped training set with its mirror images takes 1.3 GB

Captions = Sequence[str] | torch.Tensor | None


def hog(images: torch.Tensor, patch_size: int = 16, cell_size: int = 8) -> torch.Tensor:
    """Histograms of oriented gradients, per colour channel, grouped by patch (MaskFeat's target; released code).

    Nine unsigned orientation bins a cell, magnitudes weighted by a tiled Gaussian window (16 px at 8-px cells, twice the
    cell otherwise), each cell's histogram of unit length. Order inside a patch: (channel, bin, cell row, cell column).

    images (B, 3, H, W) in [-1, 1] -> (B, patches, 27 * (patch_size / cell_size)^2) float32. Raises ValueError when the cell
    does not divide the patch or the patch the image.
    """
    height, width = images.shape[-2:]
    if patch_size % cell_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"need cell | patch | image sizes, not {cell_size}, {patch_size}, {height} x {width}"
        )
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=images.device)
    flat = nn.functional.pad(images.float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    with torch.autocast(
        images.device.type, enabled=False
    ):  # in bf16 the target would be off by 1 % of its variance
        gx, gy = nn.functional.conv2d(flat, torch.stack([sobel, sobel.T])[:, None]).unbind(
            1
        )  # (B * 3, H, W)
    window = gaussian_window(2 * cell_size, device=images.device)
    tiles = [math.ceil(side / len(window)) for side in (height, width)]
    magnitude = torch.hypot(gx, gy) * window.repeat(tiles)[:height, :width]
    bins = (torch.atan2(gx, gy) / math.pi * 9).floor().long() % 9
    weights = torch.zeros(len(flat), 9, height, width, device=images.device).scatter_(
        1, bins[:, None], magnitude[:, None]
    )
    cells = weights.unflatten(-1, (-1, cell_size)).sum(-1).unflatten(-2, (-1, cell_size)).sum(-2)
    cells = nn.functional.normalize(cells, dim=1)
    n = patch_size // cell_size
    return rearrange(cells, "(b c) k (h p) (w q) -> b (h w) (c k p q)", b=len(images), p=n, q=n)


def gaussian_window(size: int, *, device: torch.device | None = None) -> torch.Tensor:
    """A Gaussian of std size / 2 on a (size, size) square, summing to one."""
    x = torch.arange(size, device=device) - (size - 1) / 2
    line = torch.exp(-0.5 * (x / (size / 2)).square())
    window = line[:, None] * line
    return window / window.sum()


class Target(Protocol):
    """What one auxiliary decoder predicts. Targets are values: equal ones give the same, so a batch needs each once.

    width is the number of values a place; by_patch is False where the whole image has one target.
    """

    by_patch: ClassVar[bool]

    @property
    def width(self) -> int: ...

    def __call__(self, images: torch.Tensor, captions: Captions = None) -> torch.Tensor: ...

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor: ...


@dataclasses.dataclass(frozen=True)
class HogTarget:
    """HOG of each patch; loss is the mean squared error."""

    by_patch: ClassVar[bool] = True
    patch_size: int
    cell_size: int

    @property
    def width(self) -> int:
        return 27 * (self.patch_size // self.cell_size) ** 2

    def __call__(self, images: torch.Tensor, captions: Captions = None) -> torch.Tensor:
        """images (B, 3, H, W) -> (B, patches, width) float32"""
        return hog(images, self.patch_size, self.cell_size)

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """predicted, target (B, patches, width) -> (B, patches)"""
        return (predicted.float() - target).square().mean(-1)


@dataclasses.dataclass(frozen=True)
class PixelTarget:
    """The pixels of each patch, in [-1, 1], channel fastest; loss is the mean squared error."""

    by_patch: ClassVar[bool] = True
    patch_size: int

    @property
    def width(self) -> int:
        return 3 * self.patch_size**2

    def __call__(self, images: torch.Tensor, captions: Captions = None) -> torch.Tensor:
        """images (B, 3, H, W) -> (B, patches, width)"""
        return patchify(images.float(), self.patch_size)

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """predicted, target (B, patches, width) -> (B, patches)"""
        return (predicted.float() - target).square().mean(-1)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network for `FeatureTarget`; patch_size and scaling as `load_net` takes them."""

    net: str
    patch_size: int | None = None
    scaling: Literal["own", "imagenet"] = "own"


# The release rebuilds both transformers with patches of 16 px at the training image size, and feeds both ImageNet's mean and
# std (SigLIP was trained with 0.5). The paper says "SigCLIP-Large" for the second; the released code takes SO400M.
TEACHERS = {
    "semantic": Teacher("efficientnet_lite0"),
    "dinov2": Teacher("timm:vit_large_patch14_dinov2.lvd142m", 16, "imagenet"),
    "clip": Teacher("timm:vit_so400m_patch14_siglip_gap_224", 16, "imagenet"),
}


@dataclasses.dataclass(frozen=True)
class FeatureTarget:
    """A frozen network's last feature map, one place a patch; loss is the negative cosine (release; the paper says MSE).

    The network is loaded when it is first asked for and belongs to no module: no checkpoint, optimizer or average holds it.
    Images are resized so that the map has the tokenizer's grid. On a CPU, where the network is most of a training step, what
    it said of an image is remembered (up to REMEMBERED bytes), and images go through one by one: so an image's features are
    the same bits in any batch, before and after a restart.
    """

    by_patch: ClassVar[bool] = True
    teacher: Teacher
    grid: int
    weights: str | None = None

    @functools.cached_property
    def width(self) -> int:
        return feature_width(self.teacher.net)

    @functools.cached_property
    def net(self) -> FeatureNet:
        """The network. Raises FileNotFoundError or ValueError that names the file or the hub's repository."""
        patch = self.teacher.patch_size
        size = patch * self.grid if patch else None
        return load_net(
            self.teacher.net,
            weights=self.weights,
            input_size=size,
            patch_size=patch,
            scaling=self.teacher.scaling,
        )

    def __call__(self, images: torch.Tensor, captions: Captions = None) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> (B, patches, width), without gradient"""
        with torch.no_grad():
            if images.device.type == "cpu":
                return torch.cat([self._recall(image) for image in images.split(1)])
            return self._look(images)

    def forget(self) -> None:
        """Drop what is remembered."""
        self._known.clear()

    def _look(self, images: torch.Tensor) -> torch.Tensor:
        return self.net.to(images.device).feature_map(images, grid=self.grid).flatten(1, 2)

    @functools.cached_property
    def _known(self) -> dict[tuple[bytes, bool], torch.Tensor]:
        """Features by the image's hash, and whether they were made under autocast."""
        return {}

    def _recall(self, image: torch.Tensor) -> torch.Tensor:
        """image (1, 3, H, W) on a CPU -> (1, patches, width)"""
        digest = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()
        key = digest, torch.is_autocast_enabled("cpu")
        found = self._known.get(key)
        if found is None:
            found = self._look(image)
            if (len(self._known) + 1) * found.nbytes <= REMEMBERED:
                self._known[key] = found
        return found

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """predicted, target (B, patches, width) -> (B, patches) in [-1, 1]"""
        return -nn.functional.cosine_similarity(predicted.float(), target.float(), dim=-1)
