"""The feed-forward part of a transformer block.

timm's Mlp has the same tensors and gives the same bits, but importing timm takes longer than torch
itself, and the models need it for nothing else.
"""

from typing import Literal

from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, Linear. `approximate` "none" is ViT's exact GELU, "tanh" DiT's and SiT's."""

    def __init__(self, width: int, hidden: int, *, approximate: Literal["none", "tanh"] = "none"):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwiGLU(nn.Module):
    """Linear(SiLU(gate) * value), LightningDiT's; as many weights as `Mlp` at 2/3 of its hidden."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)  # gate and value in one product
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)
