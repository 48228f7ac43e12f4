"""The tokenizer: images <-> latent tokens. Its sizes by the paper's names are in `TOKENIZERS`."""

import dataclasses
from typing import Literal

import torch
from torch import nn

from maetok_lab.config import override
from maetok_lab.identity import fingerprint, fingerprint_of, weights_hash
from maetok_lab.layers.patches import grid_size, unpatchify
from maetok_lab.tokenizer.blocks import init_weights
from maetok_lab.tokenizer.towers import Grid, LatentDecoder, PatchEncoder, TowerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything about the model, nothing about its training.

    `latent_tokens` "learnable" are extra tokens (the paper); "patches" takes the patch tokens themselves (Table 6, "no
    learnable tokens"), then `num_latent_tokens` is their number. `masked` says what hidden patches become in the encoder.
    `modulation_init` and `latent_init`: see blocks.Modulation and towers.latent_positions. `refine` is the hidden width of
    a 3 x 3 convolution pair on the decoded image, which removes the seams between patches; 0, as in the paper, has none.
    """

    image_size: int = 256
    patch_size: int = 16
    num_latent_tokens: int = 128
    latent_dim: int = 32
    encoder: TowerConfig
    decoder: TowerConfig
    bottleneck: Literal["ae", "kl"] = "ae"
    latent_tokens: Literal["learnable", "patches"] = "learnable"
    masked: Literal["replace", "drop"] = "replace"
    decoder_modulation: bool = True
    modulation_init: float = 0.0
    latent_init: Literal["normal", "grid"] = "normal"
    class_token: bool = False
    layer_scale: float | None = None
    rope_theta: float = 10.0
    refine: int = 0

    def __post_init__(self):
        down, across = grid_size(self.image_size, self.image_size, self.patch_size)
        if self.latent_tokens == "patches" and self.num_latent_tokens != down * across:
            raise ValueError(
                f'latent_tokens="patches" gives {down * across} latent tokens, but num_latent_tokens is {self.num_latent_tokens}'
            )
        if self.latent_tokens == "patches" and self.masked == "drop":
            raise ValueError(
                'masked="drop" removes hidden patches, which are the latents of latent_tokens="patches"'
            )
        if self.num_latent_tokens < 1 or self.latent_dim < 1:
            raise ValueError(
                f"need at least one latent token and channel, not {self.num_latent_tokens} x {self.latent_dim}"
            )

    @property
    def grid(self) -> Grid:
        return grid_size(self.image_size, self.image_size, self.patch_size)


def _tower(width: int, depth: int, num_heads: int, **changes) -> TowerConfig:
    return TowerConfig(width=width, depth=depth, num_heads=num_heads, **changes)


_BASE = TokenizerConfig(
    encoder=_tower(768, 12, 12, positions="rope+ape", rope="mixed"),
    decoder=_tower(768, 12, 12, positions="rope", rope="mixed"),
    class_token=True,
    layer_scale=1e-5,
)
_TINY = TokenizerConfig(
    image_size=32,
    patch_size=4,
    num_latent_tokens=16,
    latent_dim=16,
    encoder=_tower(96, 2, 3, positions="rope+ape"),
    decoder=_tower(96, 2, 3, positions="rope+ape"),
    modulation_init=1.0,
    latent_init="grid",
    refine=16,
)
TOKENIZERS = {
    "test": override(_TINY, {"encoder": _tower(32, 1, 2), "decoder": _tower(32, 1, 2), "latent_dim": 4, "refine": 8}),
    "tiny": _TINY,
    "small": override(_TINY, {"image_size": 64, "num_latent_tokens": 32, "encoder": _tower(256, 6, 4, positions="rope+ape"),
                              "decoder": _tower(256, 6, 4, positions="rope+ape")}),
    "maetok-b-128": _BASE,
    "maetok-b-128-512": override(_BASE, {"image_size": 512}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Posterior:
    """What the encoder says about the latents: mean (B, N, C), and for `kl` the log variance."""

    mean: torch.Tensor
    log_variance: torch.Tensor | None = None

    def sample(self, noise: torch.Tensor | None) -> torch.Tensor:
        """mean + std * noise; the mean itself without noise or for a plain autoencoder. noise (B, N, C) -> (B, N, C)"""
        if self.log_variance is None or noise is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> torch.Tensor:
        """KL divergence to N(0, I), summed over tokens and channels, averaged over the batch (as in LDM). -> ()"""
        if self.log_variance is None:
            raise ValueError(
                "a plain autoencoder has no posterior to compare with a normal distribution"
            )
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1).mean()


class Tokenizer(nn.Module):
    """MAETok's autoencoder (paper section 3.1): `encode` images to (B, N, C) latents, `decode` latents to images.

    Masks are never drawn here: an explicit mask is obeyed, and without one the whole image is seen.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        learnable = config.latent_tokens == "learnable"
        self.encoder = PatchEncoder(
            config.encoder,
            patch_size=config.patch_size,
            grid=config.grid,
            class_token=config.class_token,
            num_latent_tokens=config.num_latent_tokens if learnable else None,
            layer_scale=config.layer_scale,
            theta=config.rope_theta,
            masked=config.masked,
            latent_init=config.latent_init,
        )
        self.to_latents = nn.Linear(
            config.encoder.width, config.latent_dim * (2 if config.bottleneck == "kl" else 1)
        )
        self.decoder = LatentDecoder(
            config.decoder,
            latent_dim=config.latent_dim,
            num_latent_tokens=config.num_latent_tokens,
            grid=config.grid,
            theta=config.rope_theta,
            modulation=config.decoder_modulation,
            scale_init=config.modulation_init,
            latent_init=config.latent_init,
        )
        self.to_pixels = nn.Linear(config.decoder.width, 3 * config.patch_size**2)
        self.refine = Refine(config.refine) if config.refine else nn.Identity()
        self.apply(init_weights)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Latent tokens and channels, (N, C)."""
        return self.config.num_latent_tokens, self.config.latent_dim

    @property
    def fingerprint(self) -> str:
        """A name for what it computes: a hash of its weights as they are now, and of its config."""
        return fingerprint_of([weights_hash(self), fingerprint(self.config)])

    def posterior(self, images: torch.Tensor, *, mask: torch.Tensor | None = None) -> Posterior:
        """images (B, 3, H, W) in [-1, 1], mask (B, patches) bool, True = hidden -> Posterior of (B, N, C)"""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
        moments = self.to_latents(self.encoder(images, mask)).float()
        if self.config.bottleneck == "ae":
            return Posterior(moments)
        mean, log_variance = moments.chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(-30, 20))

    def encode(self, images: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Latents (the posterior's mean). images (B, 3, H, W) in [-1, 1] -> (B, N, C) float32"""
        return self.posterior(images, mask=mask).mean

    def decode(
        self, latents: torch.Tensor, image_size: int | tuple[int, int] | None = None
    ) -> torch.Tensor:
        """latents (B, N, C) -> images (B, 3, H, W), float32, not clamped; `image_size` (H, W) when it is not the config's."""
        if tuple(latents.shape[1:]) != self.latent_shape:
            tokens, channels = self.latent_shape
            raise ValueError(
                f"latents must be (B, {tokens}, {channels}), not {tuple(latents.shape)}"
            )
        size = image_size or self.config.image_size
        grid = grid_size(*((size, size) if isinstance(size, int) else size), self.config.patch_size)
        pixels = self.to_pixels(self.decoder(latents, grid))
        return self.refine(unpatchify(pixels, grid, self.config.patch_size)).float()

    def forward(self, images: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstruct. images (B, 3, H, W) -> (B, 3, H, W)"""
        return self.decode(self.encode(images, mask=mask), tuple(images.shape[-2:]))


class Refine(nn.Module):
    """A small residual convolution pair across patch borders; starts as the identity. (B, 3, H, W) -> (B, 3, H, W)"""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(3, hidden, 3, padding=1),
            nn.Conv2d(hidden, 3, 3, padding=1),
        )

        self.reset()

    def reset(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.conv2(nn.functional.gelu(self.conv1(images)))


def num_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
