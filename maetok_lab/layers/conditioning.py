"""What a diffusion model is conditioned on: time and class."""

import math

import torch
from torch import Tensor, nn

NUM_FREQUENCIES = 256  # sines and cosines of the time embedding


class TimeEmbedding(nn.Module):
    """256 sinusoids of t in [0, 1], cosines first, base 10000, then an MLP.

    t is not scaled to 0 .. 1000 before: the release's choice.
    """

    def __init__(self, width: int):
        super().__init__()
        half = NUM_FREQUENCIES // 2
        exponents = -math.log(10000) * torch.arange(half) / half
        # not persistent: a constant, which the released weights do not hold
        self.register_buffer("frequencies", torch.exp(exponents), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, width)"""
        angles = t.float()[:, None] * self.frequencies  # (B, 128)
        waves = [angles.cos(), angles.sin()]
        return self.mlp(torch.cat(waves, dim=1))


class LabelEmbedding(nn.Module):
    """One learned vector a class and one more, the last, for the null class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)  # the released name

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B,) in 0 .. num_classes, the last being null -> (B, width)"""
        return self.embedding_table(labels)
