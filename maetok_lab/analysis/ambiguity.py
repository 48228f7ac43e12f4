"""How ambiguous velocities are: VIV, after "Diffusing in the Right Space" (arXiv 2606.03578).

Where a noisy latent may come from many clean ones, its velocity cannot be told. The article takes
each class as a Gaussian whose covariance is a Kronecker product of one over tokens and one over
channels. What it calls irreducible is the loss of the best linear denoiser of such a class.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from maetok_lab.analysis.grids import channel_scale
from maetok_lab.analysis.preprocess import as_rows, take_rows
from maetok_lab.rng import generator

FEWEST = 4  # latents of a class that counts
ROUNDS = 5  # of fitting both factors in turn
RIDGE = 1e-9  # of the mean variance, so that factors can be inverted
MAX_ROWS = 50_000  # random latents that are looked at


class TooFewOfAClass(ValueError):
    """No class has latents enough for a covariance."""


@dataclasses.dataclass(frozen=True)
class Ambiguity:
    """Velocity ambiguity of labelled latents, in squared normalised velocity a number."""

    eigenvalues: Tensor  # (K, N C), of each class's covariance
    rho: float  # share of the variance that is within classes, in [0, 1]

    @property
    def viv(self) -> float:
        """pi / 2 times the mean root of the eigenvalues, a mean over classes; lower is better."""
        return float(math.pi / 2 * self.eigenvalues.sqrt().mean())

    def at(self, t: Tensor) -> Tensor:
        """I(t), whose integral over (0, 1) is VIV: the loss of the best linear denoiser at t."""
        t = t.double()[:, None, None]
        spread = t.square() + (1 - t).square() * self.eigenvalues
        return (self.eigenvalues / spread).mean(dim=(1, 2))


def velocity_ambiguity(latents: Any, labels: Tensor, *, seed: int = 0) -> Ambiguity:
    """VIV and rho of latents (n, N, C) with labels (n,), each channel normalised over all.

    Classes of fewer than four latents are left out; at most 50,000 random latents are read. Raises
    ValueError where no class has four.
    """
    latents = as_rows(latents)
    if len(latents.shape) != 3:
        raise ValueError(f"latents must be (n, N, C), not {tuple(latents.shape)}")
    order = torch.randperm(latents.shape[0], generator=generator(seed, "ambiguity"))
    rows = order[:MAX_ROWS].sort().values
    z = take_rows(latents, rows).double().cpu()
    labels = labels[rows]

    # of each class its eigenvalues; a channel that never varies is 0
    mean, std = channel_scale(z)
    z = (z - mean) / std
    eigenvalues = []
    for label in labels.unique():
        members = z[labels == label]
        if len(members) >= FEWEST:
            eigenvalues.append(kronecker_eigenvalues(members - members.mean(dim=0)))
    if not eigenvalues:
        raise TooFewOfAClass(
            f"velocity ambiguity needs a class of {FEWEST} latents; none has so many"
        )
    stacked = torch.stack(eigenvalues)
    return Ambiguity(stacked, float(stacked.mean()))


def kronecker_eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues of the covariance of centred x (n, N, C) as one over tokens times one over
    channels, scaled to the variance of x. -> (N C,) float64
    """
    count, tokens, channels = x.shape
    over_tokens = torch.eye(tokens, dtype=x.dtype)
    for _ in range(ROUNDS):
        whitened = _solve(over_tokens, x)
        over_channels = torch.einsum("ntc,ntd->cd", x, whitened) / (count * tokens)
        whitened = _solve(over_channels, x.transpose(1, 2)).transpose(1, 2)
        over_tokens = torch.einsum("ntc,nuc->tu", x, whitened) / (count * channels)
    factors = [
        torch.linalg.eigvalsh(factor).clamp(min=0) for factor in (over_tokens, over_channels)
    ]
    products = torch.outer(*factors).flatten()
    variance = x.square().mean(dim=0).sum()
    return products * variance / products.sum().clamp(min=torch.finfo(x.dtype).tiny)


def _solve(factor: Tensor, x: Tensor) -> Tensor:
    """factor^-1 x, with a ridge. factor (a, a), x (n, a, b) -> (n, a, b)"""
    size = len(factor)
    mean = factor.diagonal().mean().clamp(min=torch.finfo(x.dtype).tiny)
    ridge = factor + RIDGE * mean * torch.eye(size, dtype=x.dtype)
    columns = x.transpose(0, 1).reshape(size, -1)
    return torch.linalg.solve(ridge, columns).view(size, len(x), -1).transpose(0, 1)
