"""Multi-head self-attention, through torch's fused kernel only."""

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from maetok_lab.layers.positions import Rotation, rotate


def head_width(width: int, num_heads: int) -> int:
    """width / num_heads; ValueError when heads do not divide the width."""
    if width % num_heads:
        raise ValueError(f"{num_heads} heads do not divide the width {width}")
    return width // num_heads


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v with biases; `qk_norm` normalises q and k per head (stable bf16 for large models)."""

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        head_dim = head_width(width, num_heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """x (B, S, D) -> (B, S, D); `rotation` turns q and k (see layers.positions)."""
        q, k, v = rearrange(
            self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.num_heads
        )
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.proj(rearrange(attend(q, k, v), "b h s d -> b s (h d)"))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v in v's dtype. q, k, v (B, heads, S, head_dim) -> the same shape"""
    if v.device.type == "cpu" and v.dtype != torch.float32:
        # The CPU kernel's bf16 backward pass takes three to ten times as long as the float32 one (torch 2.13).
        with torch.autocast("cpu", enabled=False):
            return scaled_dot_product_attention(q.float(), k.float(), v.float()).to(v.dtype)
    return scaled_dot_product_attention(q, k, v)
