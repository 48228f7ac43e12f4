"""What a diffusion model is conditioned on: time and class."""

import math

import torch
from torch import nn

NUM_FREQUENCIES = 256  # of the time embedding


class TimeEmbedding(nn.Module):
    """256 sinusoids of t itself (cosines first, base 10000, t in [0, 1] unscaled: the release's choice), then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        half = NUM_FREQUENCIES // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10000) * torch.arange(half) / half), persistent=False
        )
        self.mlp = nn.Sequential(
            nn.Linear(NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t (B,) -> (B, width)"""
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbedding(nn.Module):
    """One learned vector a class and one more, the last, for the null class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """labels (B,) in 0 .. num_classes, the last being null -> (B, width)"""
        return self.embedding_table(labels)
