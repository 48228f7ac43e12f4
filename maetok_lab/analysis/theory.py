"""The paper's theorem as a toy: learn a mixture of K Gaussians by score matching and count the samples it takes.

Theorem 2.1 (A.5, after Shah et al. 2023): data from K equally likely N(mean_i, I) in d dimensions, well separated and
warm started; gradient descent on the denoising loss reaches error eps in the means with Theta(K^4 d^5 B^6 / eps^2)
samples. That is an upper bound; here the growth with K is measured. The student is the theorem's: the exact score with
its means to learn.
"""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.config import to_json
from maetok_lab.rng import generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySettings:
    """`distance` is that between the nearest means and `start` the norm of the warm start's error, in noise standard
    deviations; `time` the one noise level that is trained on, where x_t = exp(-t) x_0 + sqrt(1 - exp(-2 t)) noise.
    """

    dimensions: int = 8
    distance: float = 6.0
    start: float = 1.0
    time: float = 0.3
    steps: int = 60
    repeats: int = 4
    target: float = 0.3
    seed: int = 0

    def __post_init__(self):
        if self.time <= 0 or self.target <= 0 or self.repeats < 1 or self.steps < 2:
            came = f"{self.time}, {self.target}, {self.repeats}, {self.steps}"
            raise ValueError(f"need time > 0, target > 0, repeats >= 1 and steps >= 2, not {came}")


def sample_complexity(
    components: Sequence[int] = (2, 4, 8, 16),
    samples: Sequence[int] = (64, 256, 1024, 4096),
    *,
    settings: ToySettings | None = None,
) -> pd.DataFrame:
    """Error of the learned means over the number of samples, for several numbers of components K.

    -> columns `components, samples, error, spread`: the root mean square over repeats of the worst mean's distance from
    the truth, in noise standard deviations, and its standard deviation over repeats. `.attrs["needed"]` holds the
    samples at which the error crosses `target`, by K (between the points that enclose it, in logarithms),
    `.attrs["exponent"]` the slope of log samples needed over log K. Raises ValueError for K < 2 or fewer samples than
    K.
    """
    settings = settings or ToySettings()
    if min(components) < 2 or min(samples) < max(components):
        raise ValueError(
            f"need K >= 2 and at least K samples, not {list(components)} and {list(samples)}"
        )
    rows = []
    for count in components:
        means = separated_means(count, settings)
        for number in samples:
            errors = torch.tensor(
                [_learn(means, number, settings, repeat) for repeat in range(settings.repeats)]
            )
            error = float(errors.square().mean().sqrt())
            spread = float(errors.std()) if settings.repeats > 1 else math.nan
            rows.append({"components": count, "samples": number, "error": error, "spread": spread})
    table = pd.DataFrame(rows)
    needed = {int(k): _crossing(part, settings.target) for k, part in table.groupby("components")}
    table.attrs = {"settings": to_json(settings), "needed": needed, "exponent": _slope(needed)}
    return table


def separated_means(count: int, settings: ToySettings) -> Tensor:
    """Random means (K, d) of which the nearest two are `distance` apart."""
    random = generator(settings.seed, "toy-means", count)
    # many tries: of random directions the best separated set is kept, so that all K have like norms
    tries = torch.randn(200, count, settings.dimensions, generator=random, dtype=torch.float64)
    tries = tries / tries.norm(dim=2, keepdim=True)
    nearest = torch.stack([torch.pdist(means).min() for means in tries])
    best = int(nearest.argmax())
    return tries[best] * settings.distance / nearest[best]


def mixture_score(points: Tensor, means: Tensor) -> Tensor:
    """Gradient of the log-density of equally likely N(mean_i, I): points (n, d), means (K, d) -> (n, d)."""
    logits = points @ means.T - 0.5 * means.square().sum(dim=1)  # |x|^2 is common to all
    return logits.softmax(dim=1) @ means - points


def denoising_loss(means: Tensor, clean: Tensor, noise: Tensor, time: float) -> Tensor:
    """E |s(x_t) + noise / sigma_t|^2 of the student with these means: (K, d), (n, d), (n, d) -> ()."""
    scale, sigma = math.exp(-time), math.sqrt(1 - math.exp(-2 * time))
    score = mixture_score(
        scale * clean + sigma * noise, scale * means
    )  # the noised components have unit covariance too
    return (score + noise / sigma).square().sum(dim=1).mean()


def _learn(truth: Tensor, number: int, settings: ToySettings, repeat: int) -> float:
    """The largest distance of a learned mean from the truth, after gradient descent on one set of samples."""
    random = generator(settings.seed, "toy", len(truth), number, repeat)
    count, width = truth.shape
    clean = truth[torch.arange(number) % count] + torch.randn(
        number, width, generator=random, dtype=torch.float64
    )
    offset = torch.randn(count, width, generator=random, dtype=torch.float64)
    means = truth + settings.start * offset / offset.norm(dim=1, keepdim=True)
    average = torch.zeros_like(means)
    for step in range(settings.steps):
        means = means.detach().requires_grad_()
        noise = torch.randn(number, width, generator=random, dtype=torch.float64)
        # antithetic pairs: the noise of the noise cancels, what is left is the samples'
        both = torch.cat([noise, -noise])
        gradient = torch.autograd.grad(
            denoising_loss(means, clean.repeat(2, 1), both, settings.time), means
        )[0]
        # each mean sees a share 1 / K of the samples; the curvature of the loss is 2 exp(-2 t) / K
        means = means - 0.25 * count * math.exp(2 * settings.time) * gradient
        if step >= settings.steps // 2:
            average += means.detach() / (settings.steps - settings.steps // 2)
    return float((average - truth).norm(dim=1).max())


def _crossing(part: pd.DataFrame, target: float) -> float:
    """Samples at which the error falls through `target`, linear between logarithms; NaN if it never does."""
    log_n, log_error = (
        torch.tensor(part[name].to_list(), dtype=torch.float64).log()
        for name in ("samples", "error")
    )
    for i in range(1, len(part)):
        high, low = log_error[i - 1] - math.log(target), log_error[i] - math.log(target)
        if high >= 0 > low:
            return float((log_n[i - 1] + (log_n[i] - log_n[i - 1]) * high / (high - low)).exp())
    return math.nan


def _slope(needed: dict[int, float]) -> float:
    known = [(math.log(k), math.log(n)) for k, n in needed.items() if not math.isnan(n)]
    if len(known) < 2:
        return math.nan
    x, y = torch.tensor(known, dtype=torch.float64).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
