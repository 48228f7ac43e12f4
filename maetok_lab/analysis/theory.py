"""The paper's theorem as a toy: learn K Gaussians by score matching and count the samples it takes.

Theorem 2.1 (A.5, after Shah et al. 2023): data from K equally likely N(mean_i, I) in d dimensions,
well separated and warm started; gradient descent on the denoising loss reaches error eps in the
means with Theta(K^4 d^5 B^6 / eps^2) samples. That is an upper bound; here the growth with K is
measured. The student is the theorem's: the exact score with its means to learn. float64 throughout,
it is small.
"""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.config import to_json
from maetok_lab.progress import track
from maetok_lab.rng import generator

TRIES = 200  # sets of random directions from which the best separated is taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySettings:
    """One experiment; lengths are in standard deviations of the components."""

    dimensions: int = 8  # d
    distance: float = 6.0  # between the two nearest means
    start: float = 1.0  # norm of the warm start's error, for each mean
    time: float = 0.3  # the noise level t: x_t = exp(-t) x_0 + sqrt(1 - exp(-2 t)) noise
    steps: int = 60  # of gradient descent
    repeats: int = 4  # sets of samples over which errors are averaged
    target: float = 0.3  # error at which the samples needed are read off
    seed: int = 0  # of means, samples and starts

    def __post_init__(self):
        if self.time <= 0 or self.target <= 0 or self.repeats < 1 or self.steps < 2:
            came = f"{self.time}, {self.target}, {self.repeats}, {self.steps}"
            raise ValueError(f"need time > 0, target > 0, repeats >= 1 and steps >= 2, not {came}")


def sample_complexity(
    components: Sequence[int], samples: Sequence[int], *, settings: ToySettings
) -> pd.DataFrame:
    """Error of the learned means for each number of components K and of samples.

    -> columns `components, samples, error, spread`; `.attrs` hold `needed` (samples at which the
    error crosses `target`, by K) and `exponent` (slope of log needed over log K). Raises ValueError
    for K < 2 or fewer samples than K.
    """
    if min(components) < 2 or min(samples) < max(components):
        raise ValueError(
            f"need K >= 2 and at least K samples, not {list(components)} and {list(samples)}"
        )
    rows = []
    for count in track(components, "toy, modes"):
        means = separated_means(count, settings)
        for number in samples:
            errors = torch.tensor(
                [_learn(means, number, settings, repeat) for repeat in range(settings.repeats)]
            )
            # root mean square over repeats of the worst mean's distance from the truth
            error = float(errors.square().mean().sqrt())
            spread = math.nan
            if settings.repeats > 1:
                spread = float(errors.std())
            rows.append({"components": count, "samples": number, "error": error, "spread": spread})
    table = pd.DataFrame(rows)
    needed = {}
    for count, part in table.groupby("components"):
        needed[int(count)] = _crossing(part, settings.target)
    table.attrs = {"settings": to_json(settings), "needed": needed, "exponent": _slope(needed)}
    return table


# The model ----------------------------------------------------------------------------------------


def separated_means(count: int, settings: ToySettings) -> Tensor:
    """Random means (K, d) of which the nearest two are `distance` apart."""
    random = generator(settings.seed, "toy-means", count)
    # Of many random directions the best separated set is taken, so that all K have like norms.
    tries = torch.randn(TRIES, count, settings.dimensions, generator=random, dtype=torch.float64)
    tries = tries / tries.norm(dim=2, keepdim=True)
    nearest = torch.stack([torch.pdist(means).min() for means in tries])
    best = int(nearest.argmax())
    return tries[best] * settings.distance / nearest[best]


def mixture_score(points: Tensor, means: Tensor) -> Tensor:
    """Gradient of the log-density of equally likely N(mean_i, I): (n, d), (K, d) -> (n, d)."""
    # sum_i r_i(x) mean_i - x, with responsibilities r_i; |x|^2 is common to all and left out
    logits = points @ means.T - 0.5 * means.square().sum(dim=1)
    return logits.softmax(dim=1) @ means - points


def denoising_loss(means: Tensor, clean: Tensor, noise: Tensor, time: float) -> Tensor:
    """E |s(x_t) + noise / sigma_t|^2 of a student with means (K, d); clean, noise (n, d) -> ()."""
    scale = math.exp(-time)
    sigma = math.sqrt(1 - math.exp(-2 * time))
    # the noised components have unit covariance too: their score has the same form
    score = mixture_score(scale * clean + sigma * noise, scale * means)
    return (score + noise / sigma).square().sum(dim=1).mean()


def _learn(truth: Tensor, number: int, settings: ToySettings, repeat: int) -> float:
    """Largest distance of a learned mean from the truth, after descent on `number` samples."""
    random = generator(settings.seed, "toy", len(truth), number, repeat)
    count, width = truth.shape
    deviations = torch.randn(number, width, generator=random, dtype=torch.float64)
    clean = truth[torch.arange(number) % count] + deviations
    offset = torch.randn(count, width, generator=random, dtype=torch.float64)
    means = truth + settings.start * offset / offset.norm(dim=1, keepdim=True)

    # Each mean sees a share 1 / K of the samples; the curvature of the loss is 2 exp(-2 t) / K.
    rate = 0.25 * count * math.exp(2 * settings.time)
    late_steps = settings.steps - settings.steps // 2
    average = torch.zeros_like(means)
    for step in range(settings.steps):
        means = means.detach().requires_grad_()
        noise = torch.randn(number, width, generator=random, dtype=torch.float64)
        # antithetic pairs: the noise of the noise cancels, what is left is the samples'
        both = torch.cat([noise, -noise])
        loss = denoising_loss(means, clean.repeat(2, 1), both, settings.time)
        means = means - rate * torch.autograd.grad(loss, means)[0]
        # the answer is the mean of the second half: each step has noise of its own
        if step >= settings.steps // 2:
            average += means.detach() / late_steps
    return float((average - truth).norm(dim=1).max())


# Reading the curve --------------------------------------------------------------------------------


def _crossing(part: pd.DataFrame, target: float) -> float:
    """Samples at which the error falls through `target`, linear in logarithms; or NaN."""
    log_n = torch.tensor(part["samples"].to_list(), dtype=torch.float64).log()
    log_error = torch.tensor(part["error"].to_list(), dtype=torch.float64).log()
    above = log_error - math.log(target)
    for i in range(1, len(part)):
        high = above[i - 1]
        low = above[i]
        if high >= 0 > low:
            step = (log_n[i] - log_n[i - 1]) * high / (high - low)
            return float((log_n[i - 1] + step).exp())
    return math.nan


def _slope(needed: dict[int, float]) -> float:
    """Least-squares slope of log samples over log K, where both are known; NaN below two."""
    pairs = []
    for count, number in needed.items():
        if not math.isnan(number):
            pairs.append((math.log(count), math.log(number)))
    if len(pairs) < 2:
        return math.nan
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())
