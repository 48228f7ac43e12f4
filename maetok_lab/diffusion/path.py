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
Prediction = Literal["velocity", "data"]
TimeShift = float | Literal["dimension"]
LEAST_SIGMA = 0.05  # that a velocity made of data is divided by: JiT's clip of t
SHIFT_BASE = 4096  # numbers of a latent that need no shift


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

    def velocity(self, x_t: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The inverse of `data`: v = (sigma' x_t - (alpha sigma' - alpha' sigma) x) / sigma.

        Its sigma is at least `LEAST_SIGMA`, in training and sampling (JiT, arXiv 2511.13720, on
        whose path that is t; JLT, 2605.27102; RAEv2, 2605.18324): with many steps 1.8 % (0.05 / e)
        of the difference of noise and data stays.
        """
        sigma = self.sigma(t).clamp(min=LEAST_SIGMA)
        return (self.d_sigma(t) * x_t - self._determinant(t) * data) / sigma

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
    count: int,
    sampling: TimeSampling,
    *,
    path: PathName,
    generator: torch.Generator,
    time_shift: float | None = None,
) -> Tensor:
    """Training times in (0, 1), float32 (count,), on the generator's device, shifted at the end.

    "logit-normal" is what the release calls "lognormal".
    """
    if sampling == "uniform":
        times = torch.rand(count, generator=generator, device=generator.device)
    else:
        # sigma / alpha = exp(N(0, 1)), solved for t on either path
        ratio = torch.randn(count, generator=generator, device=generator.device).exp()
        times = ratio / (1 + ratio) if path == "linear" else ratio.atan() / _QUARTER
    return times if time_shift is None else shift_times(times, time_shift)


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved towards noise by a shift above 1: s t / (1 + (s - 1) t).

    Esser et al. 2024, equation 23, where t = 1 is noise too. ValueError for one of 0 or less.
    """
    check_shift(shift)
    return shift * times / (1 + (shift - 1) * times)


def check_shift(shift: float) -> None:
    """ValueError for a time shift that is none."""
    if not isinstance(shift, int | float) or not 0 < shift < math.inf:
        raise ValueError(f"time_shift must be above 0 (1 is none), not {shift}")


def dimension_shift(num_tokens: int, latent_dim: int) -> float:
    """sqrt(N C / 4096), the time shift for latents of this size (RAE, arXiv 2510.11690).

    More numbers are more of the image under the same noise; MAETok-B has 4096.
    """
    return math.sqrt(num_tokens * latent_dim / SHIFT_BASE)


def shift_for(time_shift: TimeShift, num_tokens: int, latent_dim: int) -> float | None:
    """The shift of a training on latents of this size; None is none."""
    if time_shift == "dimension":
        time_shift = dimension_shift(num_tokens, latent_dim)
    check_shift(time_shift)
    return None if time_shift == 1 else time_shift


def velocity_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    path: PathName = "linear",
    prediction: Prediction = "velocity",
    direction_weight: float = 0.0,
) -> Tensor:
    """Flow-matching loss |model(x_t, t, labels) - v|^2 of each sample (SiT equation 5).

    `prediction` is what the model makes its velocity of: with "data", v is clipped as that is
    (`Path.velocity`). Times (logit-normal) and noise are drawn from `generator` where they are not
    given. latents, noise (B, N, C), labels, t (B,) -> (B,)
    """
    if t is None:
        t = draw_times(len(latents), "logit-normal", path=path, generator=generator)
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    t = t.to(latents.device)
    x_t, velocity = PATHS[path].interpolate(latents, noise.to(latents.device), t)
    if prediction == "data":
        velocity = PATHS[path].velocity(x_t, latents, t[:, None, None])

    # under autocast the model answers in bf16; the loss is float32
    prediction = model(x_t, t, labels).float()
    losses = (prediction - velocity).square().mean(dim=(1, 2))
    if direction_weight:
        # 1 - cos, mean over tokens: FasterDiT's direction loss, which LightningDiT trains with at
        # weight 1 (the paper's table 9)
        cosine = cosine_similarity(prediction, velocity, dim=-1)
        losses = losses + direction_weight * (1 - cosine).mean(dim=1)
    return losses
