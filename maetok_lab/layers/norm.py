"""Normalisation, modulation (adaptive layer norm), and what tames a residual branch."""

from typing import Literal

import torch
from torch import Tensor, nn

NormKind = Literal["layernorm", "rmsnorm"]


def make_norm(kind: NormKind, width: int, *, affine: bool = True) -> nn.Module:
    """LayerNorm or RMSNorm over the last axis, eps 1e-6 as in ViT, DiT and the release."""
    # without affine: the blocks of DiT take scale and shift from their condition instead
    norm = nn.RMSNorm if kind == "rmsnorm" else nn.LayerNorm
    return norm(width, eps=1e-6, elementwise_affine=affine)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """DiT's adaptive norm: x * (1 + scale) + shift. x (B, N, D), shift and scale (B, D) -> as x"""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class DropPath(nn.Module):
    """Stochastic depth: in training a branch is dropped for a whole sample with probability `rate`.

    Not timm's, which draws in x's own precision and rounds differently: stored runs, made with
    this one, could not be repeated bit for bit.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape; whole samples are zeros while training."""
        if not self.training or self.rate == 0:
            return x
        ones = [1] * (x.dim() - 1)
        draws = torch.rand(len(x), *ones, device=x.device)  # one a sample
        # what survives grows, so that the expectation stays
        return x * (draws >= self.rate) / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned factor a channel on a branch, small at first (CaiT; the release starts at 1e-5)."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
