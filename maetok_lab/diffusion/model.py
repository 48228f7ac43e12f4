"""One diffusion transformer; SiT and LightningDiT are presets of it.

Parameters carry the released SiT's names.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from maetok_lab.diffusion.path import PATHS, PathName, Prediction, TimeShift, shift_for
from maetok_lab.hints import check_choice
from maetok_lab.layers.conditioning import LabelEmbedding, TimeEmbedding
from maetok_lab.layers.grid import (
    AxialRope2d,
    Rope1d,
    Rotation,
    dit_sincos_2d,
    grid_positions,
    sincos_1d,
    sincos_2d,
)
from maetok_lab.layers.norm import NormKind, make_norm, modulate
from maetok_lab.layers.transformer import (
    MOST_SIZE,
    Attention,
    BlockStack,
    Mlp,
    SwiGLU,
    check_memory,
    check_size,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Size and parts; the defaults are SiT's. ValueError unless heads divide the width, and for
    sizes that nobody can train.
    """

    width: int  # D, channels of every token
    depth: int  # blocks
    num_heads: int  # of attention; divides the width
    norm: NormKind = "layernorm"  # LightningDiT: rmsnorm
    mlp: Literal["gelu", "swiglu"] = "gelu"  # LightningDiT: swiglu, of 2/3 of the hidden width
    # sincos: a fixed table, added once; rope: turns queries and keys in every block (LightningDiT).
    # The 2-D ones are for latents of 2-D tokenizers, a square grid flattened row by row;
    # lightningdit is that of hustvl's published weights: DiT's 2-D sines, and RoPE, row first.
    positions: Literal["sincos", "rope", "sincos-2d", "rope-2d", "lightningdit"] = "sincos"
    qk_norm: bool = False  # LightningDiT's larger models: keeps bf16 stable

    def __post_init__(self):
        check_size(self.width, self.depth, self.num_heads)


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
    "tiny": _sit(128, 4, 4),
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
    """Hidden width of LightningDiT's SwiGLU: 2/3 of the MLP's, for as many parameters."""
    return int(4 * width * 2 / 3)


class Block(nn.Module):
    """adaLN-zero block (DiT): the condition sets shift, scale and gate of attention and of MLP.

    Gates start at zero.
    """

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

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation | None) -> Tensor:
        """x (B, N, D), condition (B, D) -> (B, N, D)"""
        six = self.adaLN_modulation(condition).chunk(6, dim=-1)  # each (B, D), the release's order
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = six
        # x + gate * branch, in one kernel each
        h = modulate(self.norm1(x), shift_attn, scale_attn)
        x = torch.addcmul(x, gate_attn[:, None], self.attn(h, rotation))
        h = modulate(self.norm2(x), shift_mlp, scale_mlp)
        return torch.addcmul(x, gate_mlp[:, None], self.mlp(h))


class FinalLayer(nn.Module):
    """Modulated norm, then a linear layer to latent channels, zero at first."""

    def __init__(self, config: DiffusionConfig, latent_dim: int):
        super().__init__()
        self.norm = make_norm(config.norm, config.width, affine=False)
        self.linear = nn.Linear(config.width, latent_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, N, D), condition (B, D) -> (B, N, C)"""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiffusionTransformer(BlockStack):
    """Velocity of noisy latents: `model(x_t, t, labels)`; t = 1 is noise.

    Label `num_classes` is the null class; with num_classes = 0 the model is unconditional.
    """

    trained_path: PathName = "linear"  # the interpolant of its training, which sampling follows
    trained_shift: float | None = None  # of the times of its training, likewise; None is none
    # what its last layer gives; `forward` makes a velocity of it
    trained_prediction: Prediction = "velocity"
    tokenizer_fingerprint: str = ""  # of the tokenizer of its latents, where that is recorded

    def __init__(
        self, config: DiffusionConfig, *, num_tokens: int, latent_dim: int, num_classes: int
    ):
        super().__init__()
        check_memory(config.width, config.depth)
        if not 1 <= num_tokens <= MOST_SIZE or latent_dim < 1 or num_classes < 0:
            raise ValueError(
                f"need 1 .. {MOST_SIZE:,} tokens, 1 channel and 0 classes or more, "
                f"not {num_tokens}, {latent_dim} and {num_classes}"
            )
        self.config = config
        self.num_tokens = num_tokens
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.x_embedder = nn.Linear(latent_dim, config.width)
        self.t_embedder = TimeEmbedding(config.width)
        self.y_embedder = LabelEmbedding(num_classes, config.width)
        # A fixed table, but a parameter in the release: a buffer keeps it in the state dict and out
        # of training. Without one there is no such buffer.
        self.register_buffer("pos_embed", _table(config, num_tokens))
        self.rope = _rope(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, latent_dim)
        self._init()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x_t (B, N, C), t (B,) in [0, 1], labels (B,) -> velocity (B, N, C)"""
        # Under autocast, too, what the blocks add to is of the input's precision: in bf16 it would
        # lose a little at every block.
        x = self.x_embedder(x_t).to(x_t.dtype)  # (B, N, D)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        rotation = self.rotation(x.device)
        condition = self.t_embedder(t) + self.y_embedder(labels)  # (B, D)
        for block in self.blocks:
            x = self.run_block(block, x, condition, rotation)
        output = self.final_layer(x, condition)
        if self.trained_prediction == "velocity":
            return output
        return PATHS[self.trained_path].velocity(x_t, output, t[:, None, None])

    def set_training(
        self, path: PathName, prediction: Prediction = "velocity", time_shift: TimeShift = 1.0
    ) -> None:
        """How it is trained; ValueError for a path, prediction or shift that is none."""
        check_choice(path, list(PATHS), "path")
        check_choice(prediction, list(get_args(Prediction)), "prediction")
        self.trained_path = path
        self.trained_prediction = prediction
        self.trained_shift = shift_for(time_shift, self.num_tokens, self.latent_dim)

    def rotation(self, device: torch.device) -> Rotation | None:
        """What turns queries and keys, cos and sin (1, N, head_dim / 2); None for sines alone."""
        if self.rope is None:
            return None
        if self.config.positions == "rope":
            return self.rope(torch.arange(self.num_tokens, device=device))
        side = _side(self.num_tokens)
        rows, columns = grid_positions(side, side, device=device)
        if self.config.positions == "lightningdit":  # the row turns the first half of the pairs
            return self.rope(columns, rows)[0]
        return self.rope(rows, columns)[0]

    @torch.no_grad()
    def _init(self) -> None:
        """DiT's: Xavier for linear layers, N(0, 0.02) for the embeddings, zeros at every end."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        time_mlp = self.t_embedder.mlp
        for part in (self.y_embedder.embedding_table, time_mlp[0], time_mlp[2]):
            nn.init.normal_(part.weight, std=0.02)

        # zero gates make every block the identity at first, and a zero last layer predicts 0
        ends = [self.final_layer.adaLN_modulation[1], self.final_layer.linear]
        for block in self.blocks:
            ends.append(block.adaLN_modulation[1])
        for layer in ends:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def own_labels(model: Any, labels: Tensor) -> Tensor:
    """Labels as a model takes them: an unconditional one knows 0 alone. (B,) -> (B,)"""
    return labels * (getattr(model, "num_classes", 1) > 0)


def describe_model(model: DiffusionTransformer) -> dict[str, int]:
    """The sizes that come from the latents, which loading needs besides the config."""
    return {
        "num_tokens": model.num_tokens,
        "latent_dim": model.latent_dim,
        "num_classes": model.num_classes,
    }


def _table(config: DiffusionConfig, num_tokens: int) -> Tensor | None:
    """The fixed sines of every token. -> (1, N, D), or None for RoPE alone"""
    if config.positions == "rope":
        return None
    if config.positions == "sincos":
        return sincos_1d(torch.arange(num_tokens), config.width)[None]
    # refuses what is no square now, not at the first forward pass
    side = _side(num_tokens)
    if config.positions == "rope-2d":
        return None
    table = dit_sincos_2d if config.positions == "lightningdit" else sincos_2d
    return table(*grid_positions(side, side), config.width)[None]


def _rope(config: DiffusionConfig) -> Rope1d | AxialRope2d | None:
    """What makes the rotations; None for fixed sines alone."""
    head_dim = config.width // config.num_heads
    if config.positions.startswith("sincos"):
        return None
    if config.positions == "rope":
        return Rope1d(head_dim)
    if config.positions == "rope-2d":
        return AxialRope2d(1, config.num_heads, head_dim)
    return AxialRope2d(1, config.num_heads, head_dim, theta=10000.0)


def _side(num_tokens: int) -> int:
    """Tokens along a side of the grid that 2-D positions need; ValueError when there is none."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"2-D positions need a square grid of tokens, not {num_tokens} tokens")
    return side
