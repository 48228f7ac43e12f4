"""Blocks of the tokenizer's transformers: a plain one, and one whose latent positions are modulated by the latents."""

import math

import torch
from torch import nn

from maetok_lab.layers.attention import Attention
from maetok_lab.layers.mlp import Mlp
from maetok_lab.layers.norm import DropPath, LayerScale, make_norm
from maetok_lab.layers.positions import Rotation


class PlainBlock(nn.Module):
    """Pre-norm ViT block; LayerScale as in DINOv2, whose skeleton the released encoder has."""

    def __init__(self, width: int, num_heads: int, *, drop_path: float, layer_scale: float | None):
        super().__init__()
        self.norm1, self.norm2 = make_norm("layernorm", width), make_norm("layernorm", width)
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, 4 * width)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rotation)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Modulation(nn.Module):
    """Shift and scale of normalised activations at the latent positions, from the raw latents (the release's "MoVQ" block).

    `norm(x) * scale + shift`, not 1 + scale, and zero weights at first: `scale_init` 0 is the release, where latents enter
    attention as zeros in the beginning; 1 lets them in from the start, which short trainings need.
    """

    def __init__(self, latent_dim: int, width: int, *, chunks: int, scale_init: float):
        super().__init__()
        self.chunks, self.scale_init = chunks, scale_init
        self.linear = nn.Linear(latent_dim, chunks * width)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Zero weights, zero shifts, scales at `scale_init`."""
        self.linear.weight.zero_()
        self.linear.bias.zero_().view(self.chunks, -1)[1::2] = self.scale_init

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """latents (B, N, C) -> (shift, scale, ...), each (B, N, D)"""
        return self.linear(nn.functional.silu(latents)).chunk(self.chunks, dim=-1)


def modulate_latents(
    x: torch.Tensor, patches: int, shift: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """x * scale + shift on the positions behind the first `patches`. x (B, patches + N, D) -> the same shape"""
    return torch.cat(
        [x[:, :patches], torch.addcmul(shift, x[:, patches:], scale).to(x.dtype)], dim=1
    )


class ModulatedBlock(nn.Module):
    """Decoder block: norms without affine; at latent positions the latents themselves set scale and shift."""

    def __init__(
        self, width: int, num_heads: int, *, latent_dim: int, drop_path: float, scale_init: float
    ):
        super().__init__()
        self.norm1 = make_norm("layernorm", width, affine=False)
        self.norm2 = make_norm("layernorm", width, affine=False)
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, 4 * width)
        self.modulation = Modulation(latent_dim, width, chunks=4, scale_init=scale_init)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: torch.Tensor, latents: torch.Tensor, patches: int, rotation: Rotation | None
    ) -> torch.Tensor:
        """x (B, patches + N, width), latents (B, N, C) -> (B, patches + N, width)"""
        shift_attn, scale_attn, shift_mlp, scale_mlp = self.modulation(latents)
        h = modulate_latents(self.norm1(x), patches, shift_attn, scale_attn)
        x = x + self.drop_path(self.attn(h, rotation))
        h = modulate_latents(self.norm2(x), patches, shift_mlp, scale_mlp)
        return x + self.drop_path(self.mlp(h))


def init_weights(module: nn.Module) -> None:
    """ViT's truncated normal for linear layers (std 0.02 at 768 inputs, scaled with 1 / sqrt(inputs)), zero biases.

    For `nn.Module.apply`: children come first, so modules that start elsewhere (`Modulation`, `Refine`) reset themselves after.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 * math.sqrt(768 / module.in_features))
        nn.init.zeros_(module.bias)
    elif hasattr(module, "reset"):
        module.reset()
