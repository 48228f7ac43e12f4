"""Positions of tokens: fixed sine tables, and rotary embeddings in one and two dimensions.

A rotation is a pair (cos, sin), each (heads or 1, S, head_dim / 2) or with a leading batch axis; `rotate` applies it to
adjacent channel pairs (2i, 2i + 1). Tokens that have no place on the grid (class, latents) get cos 1, sin 0.
"""

import torch
from torch import nn

Rotation = tuple[torch.Tensor, torch.Tensor]


def sincos_1d(positions: torch.Tensor, width: int, *, base: float = 10000.0) -> torch.Tensor:
    """Sine at even, cosine at odd channels, as the released SiT has it. positions (N,) -> (N, width)"""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions.double()[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def sincos_2d(
    rows: torch.Tensor, columns: torch.Tensor, width: int, *, base: float = 100.0
) -> torch.Tensor:
    """Half of the channels for the row, half for the column. rows, columns (N,) -> (N, width); width divisible by 4.

    `base` spans wavelengths from 2 pi to 2 pi * base: 100 suits grids of tens of patches (ViT's 10000 wastes channels on them).
    """
    return torch.cat(
        [sincos_1d(rows, width // 2, base=base), sincos_1d(columns, width // 2, base=base)], dim=1
    )


def grid_positions(
    height: int, width: int, *, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every patch in row-major order, as floats: two tensors (height * width,)."""
    index = torch.arange(height * width, device=device)
    return (index // width).float(), (index % width).float()


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate adjacent channel pairs, in float32. x (B, heads, S, head_dim) -> the same shape and dtype"""
    cos, sin = rotation
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return (
        torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        .flatten(-2)
        .to(x.dtype)
    )


def pad_rotation(rotation: Rotation, before: int, after: int) -> Rotation:
    """The same rotation with `before` and `after` unrotated tokens around it (the token axis is the second to last)."""
    cos, sin = rotation
    pad = (0, 0, before, after)
    return nn.functional.pad(cos, pad, value=1.0), nn.functional.pad(sin, pad, value=0.0)


def take_rotation(rotation: Rotation, index: torch.Tensor) -> Rotation:
    """The rotation of chosen tokens, per image. index (B, S') -> cos and sin (B, heads or 1, S', head_dim / 2)"""
    cos, sin = rotation
    return cos[:, index].transpose(0, 1), sin[:, index].transpose(0, 1)


class AxialRope2d(nn.Module):
    """Fixed 2-D RoPE: the first half of the pairs turns with the column, the second with the row; shared by heads and layers."""

    def __init__(self, depth: int, num_heads: int, head_dim: int, *, theta: float = 10.0):
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"2-D RoPE needs a head width divisible by 4, not {head_dim}")
        self.depth = depth
        self.register_buffer(
            "frequencies", theta ** (-torch.arange(0, head_dim, 4) / head_dim), persistent=False
        )

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> list[Rotation]:
        """rows, columns (S,) -> for each layer cos and sin (1, S, head_dim / 2)"""
        angles = torch.cat(
            [columns[:, None] * self.frequencies, rows[:, None] * self.frequencies], dim=1
        )[None]
        return [(angles.cos(), angles.sin())] * self.depth


class MixedRope2d(nn.Module):
    """Learnable 2-D RoPE of RoPE-ViT ("mixed"), as in the release: each layer, head and pair has its own direction.

    `freqs` (2, depth, num_heads * head_dim / 2): index 0 multiplies the column, 1 the row. Starts with one random angle a
    head. It belongs to the parameters without weight decay.
    """

    def __init__(self, depth: int, num_heads: int, head_dim: int, *, theta: float = 10.0):
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"2-D RoPE needs a head width divisible by 4, not {head_dim}")
        self.num_heads = num_heads
        magnitude = theta ** (-torch.arange(0, head_dim, 4) / head_dim)
        angle = torch.rand(depth, num_heads, 1) * 2 * torch.pi
        along_x = [magnitude * angle.cos(), magnitude * (angle + torch.pi / 2).cos()]
        along_y = [magnitude * angle.sin(), magnitude * (angle + torch.pi / 2).sin()]
        self.freqs = nn.Parameter(
            torch.stack([torch.cat(along_x, -1).flatten(1), torch.cat(along_y, -1).flatten(1)])
        )

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> list[Rotation]:
        """rows, columns (S,) -> for each layer cos and sin (num_heads, S, head_dim / 2), in float32"""
        f_x, f_y = (
            self.freqs.float().unflatten(-1, (self.num_heads, -1)).unsqueeze(-2)
        )  # (depth, heads, 1, pairs)
        angles = columns[:, None] * f_x + rows[:, None] * f_y
        return list(zip(angles.cos(), angles.sin()))


class Rope1d(nn.Module):
    """Fixed 1-D RoPE for token sequences (LightningDiT on 1-D latents), shared by heads and layers."""

    def __init__(self, head_dim: int, *, theta: float = 10000.0):
        super().__init__()
        self.register_buffer(
            "frequencies", theta ** (-torch.arange(0, head_dim, 2) / head_dim), persistent=False
        )

    def forward(self, positions: torch.Tensor) -> Rotation:
        """positions (S,) -> cos and sin (1, S, head_dim / 2)"""
        angles = (positions[:, None] * self.frequencies)[None]
        return angles.cos(), angles.sin()
