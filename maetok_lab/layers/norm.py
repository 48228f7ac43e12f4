"""Normalisation and modulation (adaptive layer norm)."""

from typing import Literal

import torch
from torch import nn

NormKind = Literal["layernorm", "rmsnorm"]


def make_norm(kind: NormKind, width: int, *, affine: bool = True) -> nn.Module:
    """LayerNorm or RMSNorm over the last axis, eps 1e-6 as in ViT, DiT and the release."""
    if kind == "rmsnorm":
        return nn.RMSNorm(width, eps=1e-6, elementwise_affine=affine)
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """DiT's adaptive norm: x * (1 + scale) + shift. x (B, N, D), shift and scale (B, D) -> (B, N, D)"""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class DropPath(nn.Module):
    """Stochastic depth: in training a residual branch is dropped for a whole sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch, small at first (CaiT; the release starts at 1e-5)."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma
