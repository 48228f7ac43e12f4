"""Interpolants between data and noise, and the loss that trains a velocity on them.

x_t = alpha(t) x + sigma(t) n, with t = 1 noise and t = 0 data (the paper's convention); the
velocity is v = alpha'(t) x + sigma'(t) n (SiT, Ma et al. 2024, equations 1 and 4).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

PathName = Literal["linear", "cosine"]
TimeSampling = Literal["uniform", "logit-normal"]


@dataclasses.dataclass(frozen=True)
class Path:
    """alpha, sigma and their derivatives as functions of t, of any shape that broadcasts."""

    alpha: Callable[[Tensor], Tensor]  # weight of the data: 1 at t = 0, 0 at t = 1
    sigma: Callable[[Tensor], Tensor]  # weight of the noise: 0 at t = 0, 1 at t = 1
    d_alpha: Callable[[Tensor], Tensor]
    d_sigma: Callable[[Tensor], Tensor]

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x, noise (B, N, C), t (B,) -> x_t and the velocity there, each (B, N, C)"""
        t = t[:, None, None]
        x_t = self.alpha(t) * x + self.sigma(t) * noise
        velocity = self.d_alpha(t) * x + self.d_sigma(t) * noise
        return x_t, velocity

    # x_t and v are two linear equations in x and n; solved by Cramer's rule, they give both back.
    def data(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The data estimate: x = (sigma' x_t - sigma v) / (alpha sigma' - alpha' sigma)."""
        return (self.d_sigma(t) * x_t - self.sigma(t) * velocity) / self._determinant(t)

    def noise(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The noise estimate: n = (alpha v - alpha' x_t) / (alpha sigma' - alpha' sigma)."""
        return (self.alpha(t) * velocity - self.d_alpha(t) * x_t) / self._determinant(t)

    def score(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t) = -n / sigma, for t > 0: SiT's equation 9, but finite at t = 1."""
        return -self.noise(x_t, velocity, t) / self.sigma(t)

    def _determinant(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.d_sigma(t) - self.d_alpha(t) * self.sigma(t)


_QUARTER = math.pi / 2
PATHS: dict[str, Path] = {
    "linear": Path(
        alpha=lambda t: 1 - t,
        sigma=lambda t: t,
        d_alpha=lambda t: -torch.ones_like(t),
        d_sigma=lambda t: torch.ones_like(t),
    ),
    "cosine": Path(
        alpha=lambda t: torch.cos(_QUARTER * t),
        sigma=lambda t: torch.sin(_QUARTER * t),
        d_alpha=lambda t: -_QUARTER * torch.sin(_QUARTER * t),
        d_sigma=lambda t: _QUARTER * torch.cos(_QUARTER * t),
    ),
}


def draw_times(
    count: int, sampling: TimeSampling, *, path: PathName, generator: torch.Generator
) -> Tensor:
    """Training times in (0, 1), float32 (count,), on the generator's device.

    "logit-normal" is what the release calls "lognormal".
    """
    if sampling == "uniform":
        return torch.rand(count, generator=generator, device=generator.device)
    # sigma / alpha = exp(N(0, 1)), solved for t on either path
    ratio = torch.randn(count, generator=generator, device=generator.device).exp()
    if path == "linear":
        return ratio / (1 + ratio)
    return ratio.atan() / _QUARTER


def velocity_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    path: PathName = "linear",
    direction_weight: float = 0.0,
) -> Tensor:
    """Flow-matching loss |model(x_t, t, labels) - v|^2 of each sample (SiT equation 5).

    Times (logit-normal) and noise are drawn from `generator` where they are not given.
    latents, noise (B, N, C), labels, t (B,) -> (B,)
    """
    if t is None:
        t = draw_times(len(latents), "logit-normal", path=path, generator=generator)
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    t = t.to(latents.device)
    x_t, velocity = PATHS[path].interpolate(latents, noise.to(latents.device), t)

    # under autocast the model answers in bf16; the loss is float32
    prediction = model(x_t, t, labels).float()
    losses = (prediction - velocity).square().mean(dim=(1, 2))
    if direction_weight:
        # 1 - cos, mean over tokens: FasterDiT's direction loss, which LightningDiT trains with at
        # weight 1 (the paper's table 9)
        cosine = cosine_similarity(prediction, velocity, dim=-1)
        losses = losses + direction_weight * (1 - cosine).mean(dim=1)
    return losses
