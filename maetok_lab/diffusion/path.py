"""Interpolants between data and noise, and the losses that train a velocity on them.

x_t = alpha(t) x + sigma(t) n, with t = 1 noise and t = 0 data (the paper's convention); the velocity is
v = alpha'(t) x + sigma'(t) n (SiT, Ma et al. 2024, equations 1 and 4). Times broadcast: t (B,) or any shape.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.functional import cosine_similarity

PathName = Literal["linear", "cosine"]
TimeSampling = Literal["uniform", "logit-normal"]


@dataclasses.dataclass(frozen=True)
class Path:
    """alpha, sigma and their derivatives as functions of t."""

    alpha: Callable[[torch.Tensor], torch.Tensor]
    sigma: Callable[[torch.Tensor], torch.Tensor]
    d_alpha: Callable[[torch.Tensor], torch.Tensor]
    d_sigma: Callable[[torch.Tensor], torch.Tensor]

    def interpolate(
        self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, noise (B, N, C), t (B,) -> x_t and the velocity there, each (B, N, C)"""
        t = t[:, None, None]
        return self.alpha(t) * x + self.sigma(t) * noise, self.d_alpha(t) * x + self.d_sigma(
            t
        ) * noise

    def data(self, x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The data estimate: x = (sigma' x_t - sigma v) / (alpha sigma' - alpha' sigma)."""
        return (self.d_sigma(t) * x_t - self.sigma(t) * velocity) / self._wronskian(t)

    def noise(self, x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise estimate: n = (alpha v - alpha' x_t) / (alpha sigma' - alpha' sigma)."""
        return (self.alpha(t) * velocity - self.d_alpha(t) * x_t) / self._wronskian(t)

    def velocity_from_data(
        self, x_t: torch.Tensor, data: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """The velocity of an x-prediction: n = (x_t - alpha x) / sigma put into v = alpha' x + sigma' n; t > 0."""
        return self.d_alpha(t) * data + self.d_sigma(t) * (x_t - self.alpha(t) * data) / self.sigma(
            t
        )

    def velocity_from_noise(
        self, x_t: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """The velocity of a noise prediction: x = (x_t - sigma n) / alpha put into v = alpha' x + sigma' n; t < 1."""
        return (
            self.d_alpha(t) * (x_t - self.sigma(t) * noise) / self.alpha(t)
            + self.d_sigma(t) * noise
        )

    def score(self, x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """grad log p_t(x_t) = -n / sigma (SiT equation 9, rearranged so that it stays finite at t = 1); t > 0."""
        return -self.noise(x_t, velocity, t) / self.sigma(t)

    def _wronskian(self, t: torch.Tensor) -> torch.Tensor:
        return self.alpha(t) * self.d_sigma(t) - self.d_alpha(t) * self.sigma(t)


_QUARTER = math.pi / 2
PATHS: dict[str, Path] = {
    "linear": Path(
        lambda t: 1 - t, lambda t: t, lambda t: -torch.ones_like(t), lambda t: torch.ones_like(t)
    ),
    "cosine": Path(
        lambda t: torch.cos(_QUARTER * t),
        lambda t: torch.sin(_QUARTER * t),
        lambda t: -_QUARTER * torch.sin(_QUARTER * t),
        lambda t: _QUARTER * torch.cos(_QUARTER * t),
    ),
}


def draw_times(
    count: int, sampling: TimeSampling, *, path: PathName, generator: torch.Generator
) -> torch.Tensor:
    """Training times in (0, 1), float32 (count,).

    "logit-normal" is the release's "lognormal": s = exp(N(0, 1)) is the ratio sigma / alpha, so t = s / (1 + s) on the linear
    path and t = (2 / pi) atan(s) on the cosine path.
    """
    if sampling == "uniform":
        return torch.rand(count, generator=generator, device=generator.device)
    ratio = torch.randn(count, generator=generator, device=generator.device).exp()
    return ratio / (1 + ratio) if path == "linear" else ratio.atan() / _QUARTER


def velocity_loss(
    model: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    labels: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    t: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    path: PathName = "linear",
    sampling: TimeSampling = "logit-normal",
    direction_weight: float = 0.0,
) -> torch.Tensor:
    """Flow-matching loss |model(x_t, t, labels) - v|^2 of each sample (SiT equation 5).

    `direction_weight` times 1 - cos(model, v), the mean over tokens, is added: the velocity direction loss of FasterDiT that
    LightningDiT trains with (at weight 1; the paper's table 9).
    Times and noise are drawn from `generator`, or given. latents, noise (B, N, C), labels, t (B,) -> (B,)
    """
    if t is None:
        t = draw_times(len(latents), sampling, path=path, generator=generator)
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    t = t.to(latents.device)
    x_t, velocity = PATHS[path].interpolate(latents, noise.to(latents.device), t)
    predicted = model(x_t, t, labels).float()
    losses = (predicted - velocity).square().mean(dim=(1, 2))
    if direction_weight:
        losses = losses + direction_weight * (
            1 - cosine_similarity(predicted, velocity, dim=-1)
        ).mean(dim=1)
    return losses
