"""The tokenizer: images <-> latent tokens. Named sizes, to the paper's: `TOKENIZERS`."""

from torch import Tensor, nn

from maetok_lab.config import override
from maetok_lab.identity import fingerprint, fingerprint_of, weights_fingerprint
from maetok_lab.layers.grid import grid_size, unpatchify
from maetok_lab.tokenizer.bottlenecks import BOTTLENECKS, Posterior
from maetok_lab.tokenizer.config import TokenizerConfig, TowerConfig
from maetok_lab.tokenizer.towers import LatentDecoder, PatchEncoder, init_weights

# ---- Sizes by name ----


def _tower(width: int, depth: int, num_heads: int, **changes) -> TowerConfig:
    return TowerConfig(width=width, depth=depth, num_heads=num_heads, **changes)


# The paper's: ViT-Base twice. Its encoder has RoPE alone, the release's absolute positions too.
_BASE = TokenizerConfig(
    encoder=_tower(768, 12, 12, positions="rope+ape", rope="mixed"),
    decoder=_tower(768, 12, 12, positions="rope", rope="mixed"),
    class_token=True,
    layer_scale=1e-5,
)
# Emoji in minutes on a laptop: where it leaves the paper, short trainings were the reason.
_TINY = TokenizerConfig(
    image_size=64,
    patch_size=8,
    num_latent_tokens=32,
    latent_dim=16,
    encoder=_tower(96, 2, 3, positions="rope+ape"),
    decoder=_tower(96, 2, 3, positions="rope+ape"),
    modulation_init=1.0,
    latent_init="grid",
    masked="drop",
    overlap=4,
)
_SMALL_TOWER = _tower(256, 6, 4, positions="rope+ape")
_TEST_TOWER = _tower(32, 1, 2)
TOKENIZERS = {
    "test": override(_TINY, {"encoder": _TEST_TOWER, "decoder": _TEST_TOWER, "latent_dim": 4}),
    "tiny": _TINY,
    "small": override(
        _TINY,
        {
            "patch_size": 4,
            "encoder": _SMALL_TOWER,
            "decoder": _SMALL_TOWER,
            "masked": "replace",
            "overlap": 0,
            "refine": 16,
        },
    ),
    "maetok-b-128": _BASE,
    "maetok-b-128-512": override(_BASE, {"image_size": 512}),
}


# ---- The model ----


class Tokenizer(nn.Module):
    """MAETok's autoencoder (paper section 3.1): `encode` images to latents, `decode` them again.

    Masks are never drawn here: an explicit one is obeyed, without one the whole image is seen.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        # images -> latents: what decoder tuning leaves as it is
        self.encoder = PatchEncoder(config)
        bottleneck = BOTTLENECKS[config.bottleneck]
        self.to_latents = nn.Linear(config.encoder.width, bottleneck.numbers * config.latent_dim)
        # latents -> images
        self.decoder = LatentDecoder(
            config,
            config.decoder,
            modulation=config.decoder_modulation,
            class_token=config.decoder_class_token,
        )
        reach = config.patch_size + 2 * config.overlap
        self.to_pixels = nn.Linear(config.decoder.width, 3 * reach**2)
        self.refine = Refine(config.refine) if config.refine else nn.Identity()
        self.apply(init_weights)  # it draws every linear layer anew
        # after it, so that what a bottleneck draws leaves all other weights as they are
        self.bottleneck = bottleneck(config)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Latent tokens and channels, (N, C)."""
        return self.config.num_latent_tokens, self.config.latent_dim

    @property
    def fingerprint(self) -> str:
        """A name for what it computes: a hash of its weights as they are now, and of its config."""
        return fingerprint_of([weights_fingerprint(self), fingerprint(self.config)])

    def posterior(self, images: Tensor, *, mask: Tensor | None = None) -> Posterior:
        """images (B, 3, H, W) in [-1, 1], mask (B, patches) bool, True = hidden -> of (B, N, C)"""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
        return self.bottleneck(self.to_latents(self.encoder(images, mask)).float())

    def encode(self, images: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Latents (the posterior's mean). images (B, 3, H, W) in [-1, 1] -> (B, N, C) float32"""
        return self.posterior(images, mask=mask).mean

    def decode(self, latents: Tensor, image_size: int | tuple[int, int] | None = None) -> Tensor:
        """latents (B, N, C) -> images (B, 3, H, W), float32, not clamped.

        `image_size` is a side or (H, W), the config's without it.
        """
        if tuple(latents.shape[1:]) != self.latent_shape:
            tokens, channels = self.latent_shape
            raise ValueError(
                f"latents must be (B, {tokens}, {channels}), not {tuple(latents.shape)}"
            )
        size = image_size or self.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        grid = grid_size(height, width, self.config.patch_size)
        # no output activation, as released; who shows or scores an image clamps it
        pixels = self.to_pixels(self.decoder(latents, grid))  # (B, patches, 3 patch_size^2)
        images = unpatchify(pixels, grid, self.config.patch_size, overlap=self.config.overlap)
        return self.refine(images).float()

    def forward(self, images: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Reconstruct. images (B, 3, H, W) -> (B, 3, H, W)"""
        return self.decode(self.encode(images, mask=mask), tuple(images.shape[-2:]))


class Refine(nn.Module):
    """A residual pair of 3 x 3 convolutions across the seams of patches (ours, not the paper's)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, 3, 3, padding=1)
        self.reset()

    def reset(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)"""
        return images + self.conv2(nn.functional.gelu(self.conv1(images)))


def num_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
