"""Adversarial training: two discriminators, their losses, and the augmentation of what they see."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from maetok_lab.config import content_counts
from maetok_lab.hints import choose
from maetok_lab.nets import FeatureNet, load_net

# The release's augmentation of all that the discriminator sees, each part with probability 0.5 ...
DIFFAUG = "color,translation,cutout_0.2"
# ... and that of the consistency term, each part with probability 1.
STRONG = "color,translation,cutout_0.5"
DINO_BLOCKS = (2, 5, 8, 11)  # of ViT-S's twelve, counted from 0 (release)
HEAD_KERNEL = 9  # tokens that a DINO head's convolution spans (release)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The adversarial term, with the release's settings (paper Table 7, released YAML).

    Before step `trains_from` nothing of it is computed. Steps count from 0.
    """

    # DINO's ViT-S is the release's (the paper says DINOv2-S); PatchGAN needs no weights
    discriminator: Literal["patchgan", "dino"] = "dino"
    # of its verdict in the tokenizer's loss, and of hinge and LeCAM in its own
    weight: float = 0.4
    # balance that weight by gradients: see `adaptive_weight`
    adaptive: bool = True
    # first step that trains the discriminator
    trains_from: int = 30_000
    # first step whose verdict counts for the tokenizer
    counts_from: int = 30_000
    # of LeCAM's regularisation of the discriminator
    lecam_weight: float = 0.001
    # of LeCAM's running means, a step
    lecam_decay: float = 0.999
    # augment all that the discriminator sees, with DIFFAUG
    diffaug: bool = True
    # of the mean squared change of its logits under stronger augmentation; 0 leaves the term out
    consistency_weight: float = 4.0
    # of the discriminator; it follows the tokenizer's schedule
    learning_rate: float = 1e-4
    # of its AdamW
    betas: tuple[float, float] = (0.9, 0.95)
    # a local file with DINO's weights, instead of the hub's
    weights: str | None = content_counts()
    # PatchGAN: of weights, or of activations
    norm: Literal["spectral", "group"] = "spectral"
    # PatchGAN: channels of the first layer; they double up to eightfold
    width: int = 64
    # PatchGAN: how often it halves the image; with three a logit sees 70 px
    layers: int = 3

    def __post_init__(self):
        if not 0 <= self.trains_from <= self.counts_from:
            raise ValueError(
                "need 0 <= trains_from <= counts_from, "
                f"not {self.trains_from} and {self.counts_from}"
            )
        sizes_fit = self.learning_rate > 0 and min(self.width, self.layers) >= 1
        if not 0 <= self.lecam_decay < 1 or not sizes_fit:
            raise ValueError(
                "need lecam_decay in [0, 1), learning_rate > 0, width and layers at least 1, "
                f"not {self.lecam_decay}, {self.learning_rate}, {self.width}, {self.layers}"
            )


# ---- Networks ----


def make_discriminator(
    config: AdversarialConfig, *, image_size: int
) -> "PatchDiscriminator | DinoDiscriminator":
    """The discriminator a config names. What is trained of it, and saved, is `.trained`.

    Raises ValueError for too small images, FileNotFoundError where DINO's weights are missing.
    """
    if config.discriminator == "dino":
        name = "timm:vit_small_patch16_224.dino"
        return DinoDiscriminator(load_net(name, weights=config.weights, input_size=224))
    least = 3 * 2**config.layers
    if image_size < least:
        raise ValueError(
            f"a PatchGAN of {config.layers} layers needs images of at least {least} px, "
            f"not {image_size}; take fewer layers"
        )
    return PatchDiscriminator(config)


class SpectralNorm(nn.Module):
    """Parametrization: a weight over its largest singular value.

    One round of power iteration a training forward; in eval mode the state stays as it is.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(len(weight)), dim=0))
        # enough rounds that the first forward already divides by nearly the right value
        for _ in range(15):
            self.u, _ = self._round(weight.detach().flatten(1))

    @torch.no_grad()
    def _round(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The next left and right singular vectors of a matrix (rows, columns)."""
        v = F.normalize(matrix.T @ self.u, dim=0)
        return F.normalize(matrix @ v, dim=0), v

    def forward(self, weight: Tensor) -> Tensor:
        """weight (rows, ...) -> the same shape, with largest singular value about 1"""
        # float32 also under autocast, where torch's own spectral norm mixes precisions
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.float().flatten(1)
            u, v = self._round(matrix)
            if self.training:
                self.u = u
            return weight / (u @ matrix @ v)


def _spectral(layer: nn.Module) -> nn.Module:
    """The layer itself, with its weight normalised whenever it is read."""
    register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


def _group_norm(width: int) -> nn.GroupNorm:
    # Few groups: with one channel a group, an image's own statistics, which tell real from fake
    # best, would be lost.
    return nn.GroupNorm(math.gcd(8, width // 2), width)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): strided convolutions, a logit for each overlapping patch."""

    crop_size = None  # it takes images of any size

    def __init__(self, config: AdversarialConfig):
        super().__init__()
        wrap = _spectral if config.norm == "spectral" else nn.Identity()
        width = config.width
        parts: list[nn.Module] = [wrap(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            inputs = width
            width = config.width * 2 ** min(layer, 3)
            stride = 2 if layer < config.layers else 1  # the last one keeps the grid
            parts.append(wrap(nn.Conv2d(inputs, width, 4, stride, 1)))
            if config.norm == "group":
                parts.append(_group_norm(width))
            parts.append(nn.LeakyReLU(0.2))
        self.trained = nn.Sequential(*parts, wrap(nn.Conv2d(width, 1, 4, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> logits (B, places), float32"""
        return self.trained(images).flatten(1).float()


class DinoDiscriminator(nn.Module):
    """Heads on the tokens of a frozen ViT (StyleGAN-T, Sauer et al. 2023; the release).

    There is one for the embedding and one for each of `DINO_BLOCKS`.
    """

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.net = net
        self.crop_size = net.input_size  # half of the time larger images are cropped to it
        heads = [TokenHead(net.num_features) for _ in range(len(DINO_BLOCKS) + 1)]
        self.trained = nn.ModuleList(heads)

    def features(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> for each head (B, D, tokens)"""
        # The release resizes bicubic up and by area down; `prepare` is antialiased bilinear.
        vit = self.net.model
        x = vit._pos_embed(vit.patch_embed(self.net.prepare(images, self.net.input_size)))
        x = vit.norm_pre(vit.patch_drop(x))
        layers = [x]
        for i, block in enumerate(vit.blocks[: DINO_BLOCKS[-1] + 1]):
            x = block(x)
            if i in DINO_BLOCKS:
                layers.append(x)

        # the class token is added to every patch token, as in the release
        features = []
        for x in layers:
            tokens = x[:, vit.num_prefix_tokens :] + x[:, :1]
            features.append(tokens.transpose(1, 2))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> logits (B, heads * tokens), float32"""
        logits = [head(tokens) for head, tokens in zip(self.trained, self.features(images))]
        return torch.cat(logits, dim=1).float()


class TokenHead(nn.Module):
    """1-D convolutions over row-major tokens to a logit each, all spectrally normalised.

    Group norm stands for the release's synchronised batch norm, so that a logit depends on its own
    image only.
    """

    def __init__(self, width: int):
        super().__init__()
        self.enter = self._layer(width, 1)
        self.mix = self._layer(width, HEAD_KERNEL)
        self.to_logit = _spectral(nn.Conv1d(width, 1, 1))

    @staticmethod
    def _layer(width: int, kernel_size: int) -> nn.Sequential:
        padding = kernel_size // 2
        conv = nn.Conv1d(width, width, kernel_size, padding=padding, padding_mode="circular")
        return nn.Sequential(_spectral(conv), _group_norm(width), nn.LeakyReLU(0.2))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, D, N) -> (B, N)"""
        x = self.enter(tokens)
        return self.to_logit((x + self.mix(x)) / math.sqrt(2)).squeeze(1)


# ---- Losses ----


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: real logits above 1 and fake ones below -1 cost nothing. -> ()"""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_g(fake: Tensor) -> Tensor:
    """The tokenizer's loss: high logits for what it decoded. Any shape -> ()"""
    return -fake.mean()


class LecamEma(nn.Module):
    """LeCAM (Tseng et al. 2021): running means of real and fake logits, both from 0.

    Its loss keeps the logits of either kind from passing the mean of the other, in which they
    themselves are counted already, as in the release.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take one step's mean logits, each ()."""
        self.real, self.fake = self._after(real, fake)

    def _after(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Both averages with one more step's mean logits."""
        return (
            torch.lerp(real.float(), self.real, self.decay),
            torch.lerp(fake.float(), self.fake, self.decay),
        )

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean(relu(real - EMA fake)^2) + mean(relu(EMA real - fake)^2) of logits. -> ()"""
        real_mean, fake_mean = self._after(real.detach().mean(), fake.detach().mean())
        return F.relu(real - fake_mean).square().mean() + F.relu(real_mean - fake).square().mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    *,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """The factor that makes both gradients equally long at the decoder's last weight (VQGAN).

    `average` is the mean of a gradient over processes. Both graphs stay usable. -> (), at most 1e4
    """
    lengths = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        lengths.append(average(gradient).float().norm())
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4)


# ---- Augmentation ----


def diff_augment(
    images: Tensor,
    *,
    policy: str,
    probability: float,
    generator: Generator,
    batch: tuple[int, slice] | None = None,
) -> Tensor:
    """Differentiable augmentation (Zhao et al. 2020): (B, 3, H, W) in [-1, 1] -> beyond it too.

    Each image gets each part of `policy` by itself, with `probability`. `batch`, the global size
    and the rows these images are, makes the draws those of one process with all images.
    """
    size, rows = batch or (len(images), slice(None))
    for part in policy.split(","):
        name, _, amount = part.partition("_")
        augment = choose(name, _AUGMENTATIONS, "augmentation")
        # one draw decides, three say how; a CPU generator's draws are the same on every device
        draws = torch.rand(size, 4, generator=generator, device=generator.device)
        draws = draws[rows].to(images.device)
        augmented = augment(images, draws[:, 1:], float(amount or 0))
        images = torch.where((draws[:, 0] < probability)[:, None, None, None], augmented, images)
    return images


def _color(images: Tensor, draws: Tensor, amount: float) -> Tensor:
    """Brightness by -0.5 to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    draws = draws[:, :, None, None, None]
    brightness, saturation, contrast = draws.unbind(1)  # each (B, 1, 1, 1) in [0, 1)
    x = images + (brightness - 0.5)
    x = torch.lerp(x.mean(1, keepdim=True), x, 2 * saturation)
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, 0.5 + contrast)


def _translation(images: Tensor, draws: Tensor, amount: float) -> Tensor:
    """Move by up to an eighth of each side; zeros come in."""
    for axis in (2, 3):
        size = images.shape[axis]
        reach = int(size / 8 + 0.5)
        shift = (draws[:, axis - 2] * (2 * reach + 1)).floor().long() - reach  # (B,)
        source = torch.arange(size, device=images.device) + shift[:, None]  # (B, size)
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        inside = ((source >= 0) & (source < size)).view(shape)
        # Taken modulo its size the source is a permutation: the backward pass adds nothing up, so
        # that it is the same in any order.
        images = torch.take_along_dim(images, (source % size).view(shape), dim=axis) * inside
    return images


def _cutout(images: Tensor, draws: Tensor, amount: float) -> Tensor:
    """Zeros in a square of `amount` of each side, which may lie partly outside."""
    hidden = []
    for axis in (2, 3):
        size = images.shape[axis]
        side = int(size * amount + 0.5)
        start = (draws[:, axis - 2] * (size + 1 - side % 2)).floor() - side // 2  # (B,)
        place = torch.arange(size, device=images.device) - start[:, None]  # (B, size)
        hidden.append((place >= 0) & (place < side))
    rows, columns = hidden
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


_AUGMENTATIONS = {"color": _color, "translation": _translation, "cutout": _cutout}
