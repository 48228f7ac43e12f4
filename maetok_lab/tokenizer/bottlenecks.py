"""What stands between encoder and latents: one class for each bottleneck, with its own losses.

Each says how many numbers a channel takes from the encoder, turns them into latents, and weighs
them with terms of its own, as `losses.LossConfig` says.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from maetok_lab.tokenizer.config import TokenizerConfig

RMS_EPS = 1e-6  # of the mean square of a token
TEMPERATURE = 0.07  # of the shares that SoftVQ mixes its codes by (its release)
SHARPNESS = 0.01  # temperature of its entropy terms (its release)
VARIANCE_FLOOR = 1e-6  # below which a smaller variance costs VE nothing more; not stated there
MAGNITUDE_SHARE = 1e-5  # of VE's term for large latents in all of it: 1e-6 of 0.1 (its paper)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """What the encoder says of the latents: their mean (B, N, C), and what else there is."""

    mean: Tensor
    log_variance: Tensor | None = None  # (B, N, C), of `kl` and `ve`
    similarity: Tensor | None = None  # (B, N, K) cosines with SoftVQ's codes

    def sample(self, noise: Tensor | None) -> Tensor:
        """mean + std * noise; the mean alone without noise or variance. (B, N, C) -> (B, N, C)"""
        if self.log_variance is None or noise is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL divergence to N(0, I), summed over a sample, averaged over the batch (LDM). -> ()"""
        if self.log_variance is None:
            raise ValueError(
                "a plain autoencoder has no posterior to compare with a normal distribution"
            )
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1).mean()


class Plain(nn.Module):
    """`ae`: the encoder's numbers are the latents, as in the paper."""

    numbers = 1  # that a channel takes from the encoder

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config

    def forward(self, numbers: Tensor) -> Posterior:
        """What the encoder says, (B, N, numbers * C) float32 -> of latents (B, N, C)"""
        return Posterior(numbers)

    def losses(self, posterior: Posterior) -> dict[str, Tensor]:
        """The terms that a training adds, () each, by name."""
        return {}


class Kl(Plain):
    """`kl`: a normal distribution for each number, drawn towards N(0, I) (VAE)."""

    numbers = 2

    def forward(self, numbers: Tensor) -> Posterior:
        """As `Plain.forward`; the first half is the mean, the second the log variance."""
        # LDM's bounds: exp() of what lies outside would be of no use, or no number
        mean, log_variance = numbers.chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(-30, 20))

    def losses(self, posterior: Posterior) -> dict[str, Tensor]:
        """The divergence, "kl"."""
        return {"kl": posterior.kl()}


class VarianceExpansion(Kl):
    """`ve`: a normal distribution whose variance is drawn upwards, and its mean kept in bounds.

    Source: arXiv 2603.21085 as others report it; the floor of the variance is ours.
    """

    def losses(self, posterior: Posterior) -> dict[str, Tensor]:
        """ "ve": mean 1 / (variance + floor), and a small share of mean exp(|mean| - 1)."""
        spread = 1 / (posterior.log_variance.exp() + VARIANCE_FLOOR)
        magnitude = (posterior.mean.abs() - 1).exp()
        return {"ve": spread.mean() + MAGNITUDE_SHARE * magnitude.mean()}


class Rms(Plain):
    """`rms`: every token has mean square 1, so that noise of one size means the same to all."""

    def forward(self, numbers: Tensor) -> Posterior:
        """As `Plain.forward`."""
        size = (numbers.square().mean(dim=-1, keepdim=True) + RMS_EPS).sqrt()
        return Posterior(numbers / size)


class SoftVq(Plain):
    """`softvq`: a latent is a mixture of codes, by its likeness to each (arXiv 2412.10958)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__(config)
        # one codebook after the other
        codebook = torch.empty(config.codebooks * config.codes, config.latent_dim).normal_()
        self.codebook = nn.Parameter(normalize(codebook, dim=-1))

    def forward(self, numbers: Tensor) -> Posterior:
        """As `Plain.forward`; every latent lies inside of the unit sphere."""
        # the first tokens share the first codebook, the next ones the next (its release)
        groups = self.config.codebooks
        codes = normalize(self.codebook.float(), dim=-1).unflatten(0, (groups, -1))  # (g, K, C)
        tokens = normalize(numbers, dim=-1).unflatten(1, (groups, -1))  # (B, g, N / g, C)

        # The codes learn from what they are mixed to, not from how they are picked (its release).
        # In bf16 a cosine over SHARPNESS would be off by 0.2, and latents would not be float32.
        with torch.autocast(numbers.device.type, enabled=False):
            similarity = torch.einsum("bgnc,gkc->bgnk", tokens, codes.detach())
            shares = (similarity / TEMPERATURE).softmax(dim=-1)
            latents = torch.einsum("bgnk,gkc->bgnc", shares, codes)
        return Posterior(latents.flatten(1, 2), similarity=similarity.flatten(1, 2))

    def losses(self, posterior: Posterior) -> dict[str, Tensor]:
        """ "entropy": of each token's codes, which is to be low, less that of their mean."""
        log_shares = (posterior.similarity.flatten(0, 1) / SHARPNESS).log_softmax(dim=-1)
        shares = log_shares.exp()
        own = -(shares * log_shares).sum(dim=-1).mean()
        mean = shares.mean(dim=0)
        together = -(mean * (mean + 1e-5).log()).sum()
        return {"entropy": own - together}


class Fsq(Plain):
    """`fsq`: each number takes one of a few levels in [-1, 1] (finite scalar quantisation).

    Source: arXiv 2309.15505. The gradient passes the rounding by as if it were not there.
    """

    def forward(self, numbers: Tensor) -> Posterior:
        """As `Plain.forward`."""
        half = (self.config.levels - 1) / 2
        bounded = half * numbers.tanh()
        rounded = bounded + (bounded.round() - bounded).detach()
        return Posterior(rounded / half)


BOTTLENECKS = {
    "ae": Plain,
    "kl": Kl,
    "ve": VarianceExpansion,
    "rms": Rms,
    "softvq": SoftVq,
    "fsq": Fsq,
}
