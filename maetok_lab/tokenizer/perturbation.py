"""What befalls latents between encoder and decoder while both train: noise, masks, mixtures.

The rivals of masked patches: all of it is drawn outside, nothing happens to latents that are used.
"""

import dataclasses
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from maetok_lab.device import wide
from maetok_lab.tokenizer.masking import hide_first

LEAST_SINE = 1e-6  # of an angle: below it, slerp is the straight line
Draws = dict[str, Tensor]  # by name, one row an image


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerturbationConfig:
    """How latents are disturbed; the defaults, and the paper, leave them alone."""

    # "interpolate": (1 - a) z + a scale e, a ~ U(0, 1) for each image (l-DeTok); "add": z + a ...
    noise: Literal["none", "interpolate", "add"] = "none"
    # std of that noise where a is 1; 3 in l-DeTok
    noise_scale: float = 3.0
    # shares of latent tokens that one learned vector replaces; one is drawn for each batch (LMR)
    masked_shares: tuple[float, ...] = ()
    # how often each of these shares is drawn, in parts of their sum
    masked_odds: tuple[float, ...] = ()
    # decode mixtures of two images' latents as well, for the discriminator alone (InterpTok)
    between: bool = False

    def __post_init__(self):
        if self.noise_scale <= 0:
            raise ValueError(f"noise_scale must be over 0, not {self.noise_scale}")
        if len(self.masked_shares) != len(self.masked_odds):
            raise ValueError(
                "masked_odds needs a number for each of masked_shares, "
                f"not {len(self.masked_odds)} for {len(self.masked_shares)}"
            )
        if any(not 0 <= share < 1 for share in self.masked_shares):
            raise ValueError(f"masked_shares must lie in [0, 1), not {self.masked_shares}")
        if self.masked_odds and (min(self.masked_odds) < 0 or sum(self.masked_odds) <= 0):
            raise ValueError(f"masked_odds must be parts of a whole, not {self.masked_odds}")


def draw_perturbation(
    config: PerturbationConfig, count: int, shape: tuple[int, int], *, generator: Generator
) -> Draws:
    """What a batch of `count` images with latents of `shape` (N, C) is disturbed by.

    "noise" (B, N, C) with its "amount" (B, 1, 1); "masked" (B, N) bool; "share" (B, 1) of the
    second image of a mixture. Only what the config asks for.
    """
    draws: Draws = {}
    options = {"generator": generator, "device": generator.device}
    if config.noise != "none":
        draws["noise"] = config.noise_scale * torch.randn(count, *shape, **options)
        draws["amount"] = torch.rand(count, 1, 1, **options)
    if config.masked_shares:
        odds = torch.tensor(config.masked_odds, dtype=torch.float32, device=generator.device)
        number = torch.multinomial(odds, 1, generator=generator).item()
        hidden = round(config.masked_shares[number] * shape[0])
        draws["masked"] = hide_first(torch.rand(count, shape[0], **options), hidden)
    if config.between:
        draws["share"] = torch.rand(count, 1, **options)
    return draws


class Perturbation(nn.Module):
    """Latents (B, N, C) as the decoders see them in training."""

    def __init__(self, config: PerturbationConfig, latent_dim: int):
        super().__init__()
        self.config = config
        self.mask_latent = None
        if config.masked_shares:
            self.mask_latent = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, latents: Tensor, draws: Draws) -> Tensor:
        """Noise first, then the learned vector over hidden tokens. (B, N, C) -> (B, N, C)"""
        if "noise" in draws:
            amount = draws["amount"]
            if self.config.noise == "interpolate":
                latents = (1 - amount) * latents
            latents = latents + amount * draws["noise"]
        if "masked" in draws:
            hidden = draws["masked"][..., None]
            latents = torch.where(hidden, self.mask_latent.to(latents.dtype), latents)
        return latents

    def mixtures(self, latents: Tensor, draws: Draws) -> Tensor | None:
        """Between each image's latents and those of the next in the batch: (B, N, C), or None."""
        if "share" not in draws:
            return None
        return slerp(latents, latents.roll(1, dims=0), draws["share"])


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """From a (at share 0) to b (at 1) by even turns, rows flattened: (n, ...) twice -> (n, ...).

    `share` is one number, or (n, 1). Norms are not equalised. Rows of one direction, or of opposite
    ones, go along the line.
    """
    start = wide(a).flatten(1)
    end = wide(b).flatten(1).to(start.device)
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device)
    cosine = (normalize(start) * normalize(end)).sum(dim=1, keepdim=True)  # (n, 1)
    straight = cosine.detach().clamp(-1, 1).acos().sin() < LEAST_SINE
    # such rows get a right angle, which is not used: their own has no finite gradient
    angle = cosine.masked_fill(straight, 0).clamp(-1, 1).acos()
    turned = ((1 - share) * angle).sin() * start + (share * angle).sin() * end
    mixed = torch.where(straight, torch.lerp(start, end, share), turned / angle.sin())
    return mixed.view(a.shape).to(a)
