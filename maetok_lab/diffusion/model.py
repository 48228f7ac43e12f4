"""One diffusion transformer; SiT and LightningDiT are presets of it. Parameters carry the released SiT's names."""

import dataclasses
import math
from typing import Literal

import torch
from torch import nn

from maetok_lab.diffusion.path import PathName
from maetok_lab.layers.attention import Attention, head_width
from maetok_lab.layers.conditioning import LabelEmbedding, TimeEmbedding
from maetok_lab.layers.mlp import Mlp, SwiGLU
from maetok_lab.layers.norm import NormKind, make_norm, modulate
from maetok_lab.layers.positions import (
    AxialRope2d,
    Rope1d,
    Rotation,
    grid_positions,
    sincos_1d,
    sincos_2d,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Size and parts. SiT: LayerNorm, GELU, fixed sines. LightningDiT: RMSNorm, SwiGLU of 2/3 width, RoPE.

    The 2-D positions are for latents of 2-D tokenizers, a square grid flattened row by row.
    """

    width: int
    depth: int
    num_heads: int
    norm: NormKind = "layernorm"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    positions: Literal["sincos", "rope", "sincos-2d", "rope-2d"] = "sincos"
    qk_norm: bool = False

    def __post_init__(self):
        head_width(self.width, self.num_heads)


def _sit(width: int, depth: int, num_heads: int) -> DiffusionConfig:
    return DiffusionConfig(width=width, depth=depth, num_heads=num_heads)


def _lightningdit(
    width: int, depth: int, num_heads: int, *, qk_norm: bool = False
) -> DiffusionConfig:
    return DiffusionConfig(
        width=width,
        depth=depth,
        num_heads=num_heads,
        norm="rmsnorm",
        mlp="swiglu",
        positions="rope",
        qk_norm=qk_norm,
    )


DIFFUSION = {
    "test": _sit(32, 1, 2),
    "tiny": _sit(192, 4, 6),
    "small": _sit(384, 8, 6),
    "sit-s": _sit(384, 12, 6),
    "sit-b": _sit(768, 12, 12),
    "sit-l": _sit(1024, 24, 16),
    "sit-xl": _sit(1152, 28, 16),
    "lightningdit-b": _lightningdit(768, 12, 12),
    "lightningdit-l": _lightningdit(1024, 24, 16, qk_norm=True),
    "lightningdit-xl": _lightningdit(1152, 28, 16, qk_norm=True),
}


def swiglu_width(width: int) -> int:
    """Hidden width of LightningDiT's SwiGLU: 2/3 of the MLP's, so that both have as many parameters."""
    return int(4 * width * 2 / 3)


class Block(nn.Module):
    """adaLN-zero block (DiT): condition c sets shift, scale and gate of attention and MLP; gates start at zero."""

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        width = config.width
        self.norm1 = make_norm(config.norm, width, affine=False)
        self.norm2 = make_norm(config.norm, width, affine=False)
        self.attn = Attention(width, config.num_heads, qk_norm=config.qk_norm)
        if config.mlp == "swiglu":
            self.mlp = SwiGLU(width, swiglu_width(width))
        else:
            self.mlp = Mlp(width, 4 * width, approximate="tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, rotation: Rotation | None
    ) -> torch.Tensor:
        """x (B, N, D), condition (B, D) -> (B, N, D)"""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).chunk(
            6, dim=-1
        )
        x = torch.addcmul(
            x, gate_a[:, None], self.attn(modulate(self.norm1(x), shift_a, scale_a), rotation)
        )
        return torch.addcmul(
            x, gate_m[:, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        )


class FinalLayer(nn.Module):
    """Modulated norm, then a linear layer to latent channels, zero at first."""

    def __init__(self, config: DiffusionConfig, latent_dim: int):
        super().__init__()
        self.norm = make_norm(config.norm, config.width, affine=False)
        self.linear = nn.Linear(config.width, latent_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiffusionTransformer(nn.Module):
    """Velocity of noisy latents: `model(x_t, t, labels)`; t = 1 is noise, label `num_classes` is the null class.

    With num_classes = 0 it is unconditional: the null label is 0. `trained_path` is the interpolant of its training, which
    sampling follows unless it is told another; `tokenizer_fingerprint` names the tokenizer of its latents, where it is known.
    """

    trained_path: PathName = "linear"
    tokenizer_fingerprint: str = ""

    def __init__(
        self, config: DiffusionConfig, *, num_tokens: int, latent_dim: int, num_classes: int
    ):
        super().__init__()
        self.config = config
        self.num_tokens, self.latent_dim, self.num_classes = num_tokens, latent_dim, num_classes
        self.x_embedder = nn.Linear(latent_dim, config.width)
        self.t_embedder = TimeEmbedding(config.width)
        self.y_embedder = LabelEmbedding(num_classes, config.width)
        self.rope = None
        if config.positions.startswith("sincos"):
            # A fixed table, but a parameter in the release: a buffer keeps it in the state dict and out of training.
            self.register_buffer("pos_embed", _table(config, num_tokens)[None])
        elif config.positions == "rope":
            self.rope = Rope1d(config.width // config.num_heads)
        else:
            _side(num_tokens)
            self.rope = AxialRope2d(1, config.num_heads, config.width // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, latent_dim)
        self._init()

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """x_t (B, N, C), t (B,) in [0, 1], labels (B,) -> velocity (B, N, C)"""
        x = self.x_embedder(x_t)
        if self.rope is None:
            x = x + self.pos_embed
        rotation = self._rotation(x.device)
        condition = self.t_embedder(t) + self.y_embedder(labels)
        for block in self.blocks:
            x = block(x, condition, rotation)
        return self.final_layer(x, condition)

    def _rotation(self, device: torch.device) -> Rotation | None:
        """What turns queries and keys; None for fixed sines."""
        if self.rope is None:
            return None
        if self.config.positions == "rope":
            return self.rope(torch.arange(self.num_tokens, device=device))
        side = _side(self.num_tokens)
        return self.rope(*grid_positions(side, side, device=device))[0]

    @torch.no_grad()
    def _init(self) -> None:
        """DiT's: Xavier for linear layers, N(0, 0.02) for the embeddings, zero for modulations and the last layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (
            self.y_embedder.embedding_table.weight,
            self.t_embedder.mlp[0].weight,
            self.t_embedder.mlp[2].weight,
        ):
            nn.init.normal_(weight, std=0.02)
        for layer in [block.adaLN_modulation[1] for block in self.blocks] + [
            self.final_layer.adaLN_modulation[1],
            self.final_layer.linear,
        ]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def describe_model(model: DiffusionTransformer) -> dict[str, int]:
    """The sizes that come from the latents, which loading needs besides the config."""
    return {
        "num_tokens": model.num_tokens,
        "latent_dim": model.latent_dim,
        "num_classes": model.num_classes,
    }


def _table(config: DiffusionConfig, num_tokens: int) -> torch.Tensor:
    """The fixed sines of every token. -> (N, D)"""
    if config.positions == "sincos":
        return sincos_1d(torch.arange(num_tokens), config.width)
    side = _side(num_tokens)
    return sincos_2d(*grid_positions(side, side), config.width)


def _side(num_tokens: int) -> int:
    """Tokens along a side of the grid that 2-D positions need; ValueError when there is none."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"2-D positions need a square grid of tokens, not {num_tokens} tokens")
    return side
