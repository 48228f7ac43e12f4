"""The feed-forward part of a transformer block."""

from typing import Literal

import torch
from torch import nn


class Mlp(nn.Module):
    """Linear, GELU, Linear. `approximate` "none" is the exact GELU (ViT), "tanh" the one of DiT and SiT."""

    def __init__(self, width: int, hidden: int, *, approximate: Literal["none", "tanh"] = "none"):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwiGLU(nn.Module):
    """Linear(SiLU(gate) * value): with 2/3 of the hidden width it has as many parameters as `Mlp` (LightningDiT)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)
