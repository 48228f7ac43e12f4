"""Adversarial training: two discriminators, their losses, and the augmentation that keeps them from overfitting."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from maetok_lab.nets import FeatureNet, load_net

DIFFAUG = "color,translation,cutout_0.2"  # the release's, each with probability 0.5, wherever the discriminator looks
STRONG = "color,translation,cutout_0.5"  # the release's for the consistency term, each with probability 1
DINO_BLOCKS = (2, 5, 8, 11)  # of ViT-S's twelve, counted from 0 (the release)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The adversarial term with the release's settings (paper Table 7: weight 0.4, adaptive, from step 30,000 on).

    Before step `trains_from` nothing of it is computed; from there on the discriminator trains, and from `counts_from` on its
    verdict counts for the tokenizer. Both count from 0; the release has both at 30,000. The discriminator's learning rate
    follows the tokenizer's schedule. `adaptive`: see `adaptive_weight`; `lecam_decay`: see `LecamEma`; `diffaug` augments all
    that the discriminator sees; `consistency_weight` is for stronger augmentation not to change its logits. `weights` is a
    local file with DINO's, instead of the hub's; `norm`, `width` and `layers` are PatchGAN's only.
    """

    discriminator: Literal["patchgan", "dino"] = "dino"
    weight: float = 0.4
    adaptive: bool = True
    trains_from: int = 30_000
    counts_from: int = 30_000
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999
    diffaug: bool = True
    consistency_weight: float = 4.0
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weights: str | None = None
    norm: Literal["spectral", "group"] = "spectral"
    width: int = 64
    layers: int = 3

    def __post_init__(self):
        if not 0 <= self.trains_from <= self.counts_from:
            raise ValueError(
                f"need 0 <= trains_from <= counts_from, not {self.trains_from} and {self.counts_from}"
            )
        if (
            not 0 <= self.lecam_decay < 1
            or self.learning_rate <= 0
            or min(self.width, self.layers) < 1
        ):
            raise ValueError(
                "need lecam_decay in [0, 1), learning_rate > 0, width and layers at least 1, "
                f"not {self.lecam_decay}, {self.learning_rate}, {self.width}, {self.layers}"
            )


def make_discriminator(
    config: AdversarialConfig, *, image_size: int
) -> "PatchDiscriminator | DinoDiscriminator":
    """The discriminator a config names; its trained part is `.trained`, and `.crop_size` the size it crops larger images to.

    Raises ValueError for images that are too small, FileNotFoundError where DINO's weights are not there.
    """
    if config.discriminator == "dino":
        return DinoDiscriminator(
            load_net("timm:vit_small_patch16_224.dino", weights=config.weights, input_size=224)
        )
    if image_size // 2**config.layers < 3:
        raise ValueError(
            f"a PatchGAN of {config.layers} layers needs images of at least {3 * 2**config.layers} px, not {image_size}; "
            "take fewer layers"
        )
    return PatchDiscriminator(width=config.width, layers=config.layers, norm=config.norm)


class SpectralNorm(nn.Module):
    """Parametrization: a weight over its largest singular value, by one round of power iteration a training forward.

    In float32 also under autocast, where torch's own mixes precisions; in eval mode the state stays as it is.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(len(weight)), dim=0))
        for _ in range(15):
            self.u = self._round(weight.detach().flatten(1))[0]

    @torch.no_grad()
    def _round(self, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v = F.normalize(matrix.T @ self.u, dim=0)
        return F.normalize(matrix @ v, dim=0), v

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """weight (rows, ...) -> the same shape, with largest singular value about 1"""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.float().flatten(1)
            u, v = self._round(matrix)
            if self.training:
                self.u = u
            return weight / (u @ matrix @ v)


def _spectral(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


def _group_norm(width: int) -> nn.GroupNorm:
    # Few groups: with one channel a group, an image's own statistics, which tell real from fake best, would be lost.
    return nn.GroupNorm(math.gcd(8, width // 2), width)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): strided convolutions, one logit for each overlapping patch (70 px with three layers).

    `norm` "spectral" normalises weights, "group" activations (all but the first and last layer's).
    """

    crop_size = None

    def __init__(
        self, *, width: int = 64, layers: int = 3, norm: Literal["spectral", "group"] = "spectral"
    ):
        super().__init__()
        wrap = _spectral if norm == "spectral" else nn.Identity()
        widths = [width * 2 ** min(i, 3) for i in range(layers + 1)]
        parts: list[nn.Module] = [wrap(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            parts.append(wrap(nn.Conv2d(widths[i - 1], widths[i], 4, 2 if i < layers else 1, 1)))
            if norm == "group":
                parts.append(_group_norm(widths[i]))
            parts.append(nn.LeakyReLU(0.2))
        self.trained = nn.Sequential(*parts, wrap(nn.Conv2d(widths[-1], 1, 4, 1, 1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> logits (B, places), float32"""
        return self.trained(images).flatten(1).float()


class DinoDiscriminator(nn.Module):
    """Heads on a frozen ViT's tokens (StyleGAN-T, Sauer et al. 2023; the release): after the embedding and four blocks.

    Images are resized to the network's input (the release: bicubic up, area down; here antialiased bilinear). The class token
    is added to every patch token; a head is 1-D convolutions over the row-major tokens. Group norm stands for the release's
    synchronised batch norm, so that a logit depends on its own image only.
    """

    def __init__(
        self, net: FeatureNet, *, blocks: Sequence[int] = DINO_BLOCKS, kernel_size: int = 9
    ):
        super().__init__()
        self.net, self.blocks, self.crop_size = net, tuple(blocks), net.input_size
        self.trained = nn.ModuleList(
            TokenHead(net.num_features, kernel_size) for _ in range(len(blocks) + 1)
        )

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> for each head (B, D, tokens)"""
        vit = self.net.model
        x = vit.norm_pre(
            vit.patch_drop(
                vit._pos_embed(vit.patch_embed(self.net.prepare(images, self.net.input_size)))
            )
        )
        found = [x]
        for i, block in enumerate(vit.blocks[: max(self.blocks) + 1]):
            x = block(x)
            if i in self.blocks:
                found.append(x)
        return [(x[:, vit.num_prefix_tokens :] + x[:, :1]).transpose(1, 2) for x in found]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> logits (B, heads * tokens), float32"""
        logits = [head(tokens) for head, tokens in zip(self.trained, self.features(images))]
        return torch.cat(logits, dim=1).float()


class TokenHead(nn.Module):
    """A 1 x 1 layer, a residual one over `kernel_size` neighbours (circular), and a logit a token, all spectrally normalised."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.enter, self.mix = self._layer(width, 1), self._layer(width, kernel_size)
        self.to_logit = _spectral(nn.Conv1d(width, 1, 1))

    @staticmethod
    def _layer(width: int, kernel_size: int) -> nn.Sequential:
        conv = nn.Conv1d(
            width, width, kernel_size, padding=kernel_size // 2, padding_mode="circular"
        )
        return nn.Sequential(_spectral(conv), _group_norm(width), nn.LeakyReLU(0.2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, D, N) -> (B, N)"""
        x = self.enter(tokens)
        return self.to_logit((x + self.mix(x)) / math.sqrt(2)).squeeze(1)


def hinge_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: real logits above 1, fake ones below -1 cost nothing. Two of any shape -> ()"""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_g(fake: torch.Tensor) -> torch.Tensor:
    """The generator's loss: high logits for what it made. Any shape -> ()"""
    return -fake.mean()


class LecamEma(nn.Module):
    """LeCAM (Tseng et al. 2021): running means of both kinds of logits, from 0, that the other kind should not pass."""

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: torch.Tensor, fake: torch.Tensor) -> None:
        """Take one step's mean logits, each ()."""
        self.real = torch.lerp(real.float(), self.real, self.decay)
        self.fake = torch.lerp(fake.float(), self.fake, self.decay)

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """mean(relu(D(real) - EMA fake)^2) + mean(relu(EMA real - D(fake))^2). Logits of any shape -> ()"""
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_layer: torch.Tensor,
    *,
    average: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: gradient,
) -> torch.Tensor:
    """Makes both gradients equally long at the decoder's last weight: |grad rec| / (|grad adv| + 1e-4), at most 1e4 (VQGAN).

    `average` is the mean of a gradient over processes. Leaves no gradient behind, and both graphs usable. -> ()
    """
    lengths = [
        average(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).float().norm()
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4)


def diff_augment(
    images: torch.Tensor,
    *,
    policy: str = DIFFAUG,
    probability: float = 0.5,
    generator: torch.Generator,
    batch: tuple[int, slice] | None = None,
) -> torch.Tensor:
    """Differentiable augmentation (Zhao et al. 2020), each part of `policy` for each image by itself with `probability`.

    "color": brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5; "translation" by up to 1/8, zeros coming in;
    "cutout_0.2": a square of 0.2 of the side becomes zeros. `batch`, (global size, which rows these images are), makes the
    draws those of one process with all images. (B, 3, H, W) in [-1, 1] -> the same shape, colours beyond [-1, 1] unclamped
    """
    size, rows = batch or (len(images), slice(None))
    for part in policy.split(","):
        name, _, amount = part.partition("_")
        if name not in _AUGMENTATIONS:
            raise ValueError(
                f"unknown augmentation {part!r} in {policy!r}; choose from color, translation, cutout_SHARE"
            )
        draws = torch.rand(size, 4, generator=generator, device=generator.device)[rows].to(
            images.device
        )
        augmented = _AUGMENTATIONS[name](images, draws[:, 1:], float(amount or 0))
        images = torch.where((draws[:, 0] < probability)[:, None, None, None], augmented, images)
    return images


def _color(images: torch.Tensor, draws: torch.Tensor, amount: float) -> torch.Tensor:
    brightness, saturation, contrast = draws[:, :, None, None, None].unbind(
        1
    )  # each (B, 1, 1, 1) in [0, 1)
    x = images + (brightness - 0.5)
    x = torch.lerp(x.mean(1, keepdim=True), x, 2 * saturation)
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, 0.5 + contrast)


def _translation(images: torch.Tensor, draws: torch.Tensor, amount: float) -> torch.Tensor:
    for axis in (2, 3):
        size = images.shape[axis]
        most = int(size / 8 + 0.5)
        shift = (draws[:, axis - 2] * (2 * most + 1)).floor().long() - most  # (B,) in -most .. most
        source = torch.arange(size, device=images.device) + shift[:, None]  # (B, size)
        shape = (len(images), 1, size, 1) if axis == 2 else (len(images), 1, 1, size)
        inside = ((source >= 0) & (source < size)).view(shape)
        # source modulo size is a permutation: the backward pass adds nothing up, so it is the same in any order
        images = torch.take_along_dim(images, (source % size).view(shape), dim=axis) * inside
    return images


def _cutout(images: torch.Tensor, draws: torch.Tensor, amount: float) -> torch.Tensor:
    hidden = []
    for axis in (2, 3):
        size = images.shape[axis]
        side = int(size * amount + 0.5)
        start = (
            draws[:, axis - 2] * (size + 1 - side % 2)
        ).floor() - side // 2  # the square may lie partly outside
        place = torch.arange(size, device=images.device) - start[:, None]  # (B, size)
        hidden.append((place >= 0) & (place < side))
    return images * ~(hidden[0][:, None, :, None] & hidden[1][:, None, None, :])


_AUGMENTATIONS = {"color": _color, "translation": _translation, "cutout": _cutout}
