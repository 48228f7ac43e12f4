"""What a tokenizer is built like: one config for the model, one for each of its transformers.

The named sizes, from `test` to the paper's, are `model.TOKENIZERS`.
"""

import dataclasses
import functools
from typing import Literal

from maetok_lab.config import younger
from maetok_lab.layers.grid import grid_size
from maetok_lab.layers.transformer import MOST_SIZE, check_size

Grid = tuple[int, int]  # patches down and across


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One transformer: the encoder, the pixel decoder, or the decoder of an auxiliary target."""

    # channels of a token; ViT-Base has 768
    width: int
    # blocks; a decoder of depth 0 is one linear map
    depth: int
    # of width / num_heads channels each; 12 in ViT-Base
    num_heads: int
    # of patches. "rope" works at any image size, "ape" (learned) at the config's only
    positions: Literal["rope", "ape", "rope+ape"] = "rope"
    # "mixed" is the release's: learned frequencies, different in every layer and head
    rope: Literal["axial", "mixed"] = "axial"
    # stochastic depth of the last block; it rises linearly from 0 at the first
    drop_path: float = 0.0

    def __post_init__(self):
        check_size(self.width, self.depth, self.num_heads)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), not {self.drop_path}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything about the model, nothing about its training. The defaults are the paper's."""

    # pixels a side; with RoPE alone the model takes other sizes too
    image_size: int = 256
    # pixels a side
    patch_size: int = 16
    # N of the latents (B, N, C)
    num_latent_tokens: int = 128
    # C of the latents
    latent_dim: int = 32
    # images -> latents
    encoder: TowerConfig
    # latents -> images
    decoder: TowerConfig
    # between encoder and latents, `bottlenecks.BOTTLENECKS`; "ae" is the paper's
    bottleneck: Literal["ae", "kl", "ve", "rms", "softvq", "fsq"] = "ae"
    # SoftVQ: how many codes there are; its release has 8,192
    codes: int = younger(8192)
    # SoftVQ: how many codebooks of so many codes the tokens are shared out to, in their order; its
    # release has 4
    codebooks: int = younger(1)
    # FSQ: how many values a number can take; odd, so that 0 is one
    levels: int = younger(5)
    # "learnable" are extra tokens; "patches" are the patches' own (Table 6, no learnable tokens)
    latent_tokens: Literal["learnable", "patches"] = "learnable"
    # what becomes of hidden patches: one mask token (SimMIM), or they leave the sequence (MAE)
    masked: Literal["replace", "drop"] = "replace"
    # whether the latents modulate the pixel decoder's norms; auxiliary decoders always have it
    decoder_modulation: bool = True
    # scale of modulated norms at first. At 0, as released, attention sees the latents as zeros;
    # short trainings need 1
    modulation_init: float = 0.0
    # positions of the latents at first: small noise (release), or places spread over the image
    latent_init: Literal["normal", "grid"] = "normal"
    # one more token in the encoder, as in the release
    class_token: bool = False
    # LayerScale of the encoder's blocks at first; 1e-5 in the release
    layer_scale: float | None = None
    # one more token in the pixel decoder, as in the released SoftVQ
    decoder_class_token: bool = younger(False)
    # LayerScale of the pixel decoder's blocks at first, where latents do not modulate them; 1e-5 in
    # the released SoftVQ
    decoder_layer_scale: float | None = younger(None)
    # base of the RoPE wavelengths
    rope_theta: float = 10.0
    # pixels by which each decoded patch reaches into its neighbours and is faded into them, so that
    # no seams are seen (ours, not the paper's)
    overlap: int = younger(0)
    # hidden channels of the convolutions that remove seams between patches; 0 (paper) has none
    refine: int = 0

    def __post_init__(self):
        self._check_limits()
        down, across = self.grid  # raises where patches do not fit the image
        if self.latent_tokens == "patches":
            if self.num_latent_tokens != down * across:
                raise ValueError(
                    f'latent_tokens="patches" gives {down * across} latent tokens, '
                    f"but num_latent_tokens is {self.num_latent_tokens}"
                )
            if self.masked == "drop":
                raise ValueError(
                    'masked="drop" removes hidden patches, '
                    'which are the latents of latent_tokens="patches"'
                )
        if not 0 <= self.overlap <= self.patch_size // 2:
            raise ValueError(
                f"overlap must be in 0 .. patch_size / 2 = {self.patch_size // 2}, "
                f"not {self.overlap}"
            )
        if self.num_latent_tokens % self.codebooks:
            raise ValueError(
                f"{self.codebooks} codebooks share the tokens evenly, but num_latent_tokens is "
                f"{self.num_latent_tokens}; take a number that divides it"
            )
        if self.decoder_layer_scale and self.decoder_modulation:
            raise ValueError(
                "decoder_layer_scale is of plain blocks, but decoder_modulation=True makes "
                "modulated ones; set one of them"
            )
        of_blocks = self.decoder_class_token or self.decoder_layer_scale is not None
        if of_blocks and self.decoder.depth == 0:
            raise ValueError(
                "decoder_class_token and decoder_layer_scale are of a decoder's blocks, which "
                "decoder.depth 0, one linear map, has not; leave them out or take a depth over 0"
            )
        if down * across > MOST_SIZE:
            raise ValueError(f"an image has at most {MOST_SIZE:,} patches, not {down * across:,}")

    def _check_limits(self) -> None:
        """ValueError for sizes that would take all memory before anything else is said."""
        sizes = {"image_size": 1, "patch_size": 1, "num_latent_tokens": 1, "latent_dim": 1}
        for name, least in {**sizes, "refine": 0, "codes": 2, "codebooks": 1, "levels": 3}.items():
            value = getattr(self, name)
            if not least <= value <= MOST_SIZE:
                raise ValueError(f"{name} must be {least} .. {MOST_SIZE:,}, not {value:,}")
        if self.levels % 2 == 0:
            raise ValueError(f"levels must be odd, so that 0 is one of them, not {self.levels}")
        if self.rope_theta <= 0:
            raise ValueError(f"rope_theta must be over 0, not {self.rope_theta}")

    # cached, because every training step reads it
    @functools.cached_property
    def grid(self) -> Grid:
        """Patches down and across an image of `image_size`."""
        return grid_size(self.image_size, self.image_size, self.patch_size)
