"""What of a velocity can be told without learning: two denoisers in closed form, and their losses.

Latents z are normalised; x_t = (1 - t) z + t n, and the velocity is n - z. A denoiser is used as a
model is, `denoiser(x_t, t, labels)`, so that its losses and a network's are of the same noise.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.definitions import definition
from maetok_lab.analysis.fitting import GmmProtocol, fit_gmm
from maetok_lab.analysis.geometry import channel_statistics
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.analysis.preprocess import (
    Reducer,
    as_rows,
    fit_reducer,
    flat_chunks,
    take_rows,
    width_of,
)
from maetok_lab.data.latents import spread_rows
from maetok_lab.diffusion.model import own_labels
from maetok_lab.diffusion.path import PATHS
from maetok_lab.inference import device_of
from maetok_lab.rng import generator

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, labels) -> velocity
TIMES = (0.05, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.95)  # 1 is noise
LINEAR = "linear"  # names of denoisers in tables
MODEL = "model"
DRAWS = 4  # of noise, for each latent and time
BATCH = 64  # latents that the denoisers see at once


# Latents as one Gaussian --------------------------------------------------------------------------


class NormalisedRows:
    """Latents (n, N, C) less what is subtracted from row i, over the channels' std; float64."""

    def __init__(self, latents: Any, mean: Tensor, std: Tensor, *, labels: Tensor | None = None):
        self.latents = as_rows(latents)
        self.mean = mean.double()  # broadcasts with (N, C), or of each class (K, N, C)
        self.std = std.double()
        self.labels = labels
        self.device = getattr(self.latents, "device", torch.device("cpu"))
        self.shape = self.latents.shape

    def __getitem__(self, index: slice) -> Tensor:
        rows = torch.as_tensor(self.latents[index]).double()
        mean = self.mean if self.labels is None else self.mean[self.labels[index]]
        return (rows - mean.to(rows.device)) / self.std.to(rows.device)


@dataclasses.dataclass(frozen=True)
class Axes:
    """A covariance in D dimensions by its r principal axes; all other directions vary alike."""

    axes: Tensor  # (r, D) float32, of unit length
    variances: Tensor  # (r,) float32
    beyond: float  # variance in every other direction

    def expected(self, y: Tensor, t: Tensor) -> Tensor:
        """E[x | (1 - t) x + t n = y] for x of mean 0. y (B, D), t (B, 1) -> (B, D)"""
        axes = self.axes.to(y)
        gains = _gain(self.variances.to(y), t)  # (B, r)
        outside = _gain(torch.as_tensor(self.beyond).to(y), t)  # (B, 1)
        return outside * y + ((gains - outside) * (y @ axes.T)) @ axes


def _gain(variance: Tensor, t: Tensor) -> Tensor:
    """What is left of a coordinate's deviation: (1 - t) v / ((1 - t)^2 v + t^2)."""
    return (1 - t) * variance / ((1 - t).square() * variance + t.square())


def shrunk_axes(rows: Any, reducer: Reducer) -> Axes:
    """The covariance of rows (n, ...), shrunk towards a sphere by Ledoit and Wolf (2004).

    `reducer` has all their axes. Without shrinking, directions in which few rows vary by chance
    alone would be trusted.
    """
    width = width_of(rows)
    spectrum = reducer.spectrum
    sphere = spectrum.sum() / width

    # how far the covariance is off by chance, as a share of how far it is from a sphere
    fourth = 0.0
    for _, chunk in flat_chunks(rows):
        fourth += float((chunk - reducer.mean).square().sum(dim=1).square().sum())
    chance = (fourth / rows.shape[0] - spectrum.square().sum()) / rows.shape[0]
    distance = spectrum.square().sum() - width * sphere.square()
    share = float((chance / distance).clamp(0, 1)) if distance > 0 else 1.0
    variances = (1 - share) * spectrum + share * sphere
    return Axes(reducer.components.float(), variances.float(), float(share * sphere))


# Denoisers ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LinearDenoiser:
    """The best linear denoiser that knows each class's mean and the covariance within classes.

    Its loss is what a diffusion model must beat; for Gaussian classes of one covariance none can.
    """

    means: Tensor  # (K, D)
    within: Axes

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x_t (B, N, C), t (B,) in (0, 1], labels (B,) -> velocity (B, N, C)"""
        x = x_t.flatten(1)
        t = t.to(x)[:, None]
        means = self.means.to(x)[labels]
        x0 = means + self.within.expected(x - (1 - t) * means, t)
        return ((x - x0) / t).view(x_t.shape)


def fit_linear(
    latents: Any, labels: Tensor, *, mean: Tensor, std: Tensor, num_classes: int = 0
) -> LinearDenoiser:
    """The linear denoiser of training latents (n, N, C), normalised by `mean` and `std`.

    labels (n,) are 0 .. K - 1, or more with `num_classes`; one without latents has the mean of all.
    """
    latents = as_rows(latents)
    rows = NormalisedRows(latents, mean, std)
    classes = max(num_classes, int(labels.max()) + 1)
    sums = torch.zeros(classes, width_of(rows), dtype=torch.float64, device=rows.device)
    for start, chunk in flat_chunks(rows):
        sums.index_add_(0, labels[start : start + len(chunk)].to(chunk.device), chunk)
    counts = torch.bincount(labels.cpu(), minlength=classes).to(sums)[:, None]
    means = torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum(0) / counts.sum())

    # the means are of normalised latents, and are subtracted from raw ones here
    raw_means = means.view(classes, *rows.shape[1:]) * std.to(means) + mean.to(means)
    within = NormalisedRows(latents, raw_means, std, labels=labels.cpu())
    axes = shrunk_axes(within, fit_reducer(within, variance=1.0, standardise=False))
    return LinearDenoiser(means.float(), axes)


class Leading:
    """The leading principal axes of latents, which are one Gaussian along all others.

    It keeps its last answer: mixtures on the same axes ask it about the same noisy latents.
    """

    def __init__(self, mean: Tensor, axes: Tensor, remaining: Axes):
        self.mean = mean  # (D,)
        self.axes = axes  # (d, D)
        self.remaining = remaining  # the covariance in all other directions
        self._last: tuple[Tensor, ...] | None = None  # what was asked, and the answer

    def split(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t (B, N, C), t (B,) -> coordinates of x_t - E[x_t] along the axes (B, d), and what is
        expected of x without them (B, D)
        """
        if self._last is None or self._last[0] is not x_t or self._last[1] is not t:
            axes = self.axes.to(x_t)
            mean = self.mean.to(x_t)
            rows = x_t.flatten(1)
            times = t.to(rows)[:, None]
            y = rows - (1 - times) * mean
            coordinates = y @ axes.T
            beyond = mean + self.remaining.expected(y - coordinates @ axes, times)
            self._last = (x_t, t, coordinates, beyond)
        return self._last[2], self._last[3]


@dataclasses.dataclass(frozen=True)
class MixtureDenoiser:
    """The best denoiser of a Gaussian mixture, which knows K modes and no labels.

    The mixture is on the leading principal axes; along the others latents are one Gaussian.
    """

    leading: Leading
    mixture: Mixture  # diagonal, of the coordinates along them

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x_t (B, N, C), t (B,) in (0, 1], labels unused -> velocity (B, N, C)"""
        coordinates, beyond = self.leading.split(x_t, t)
        x = x_t.flatten(1)
        t = t.to(x)[:, None]
        x0 = beyond + self._expected(coordinates, t) @ self.leading.axes.to(x)
        return ((x - x0) / t).view(x_t.shape)

    def _expected(self, y: Tensor, t: Tensor) -> Tensor:
        """E[x | (1 - t) x + t n = y] under the mixture. y (B, d), t (B, 1) -> (B, d)"""
        mixture = self.mixture.to(y.device, y.dtype)
        t = t[:, :, None]
        offsets = y[:, None] - (1 - t) * mixture.means  # (B, K, d)
        spread = (1 - t).square() * mixture.covariances + t.square()
        logs = -0.5 * (offsets.square() / spread + spread.log()).sum(dim=2)
        shares = (mixture.weights.log() + logs).softmax(dim=1)  # (B, K)
        expected = mixture.means + _gain(mixture.covariances, t) * offsets
        return (shares[:, :, None] * expected).sum(dim=1)


def fit_mixtures(
    latents: Any,
    components: Sequence[int],
    *,
    mean: Tensor,
    std: Tensor,
    dimensions: int,
    restarts: int = 3,
    seed: int = 0,
) -> dict[int, MixtureDenoiser]:
    """A denoiser by number of components, of training latents (n, N, C) normalised as above.

    `dimensions` principal axes carry the mixtures, which `fit_gmm` fits in standardised scores.
    """
    # the mixture on the leading axes, a Gaussian on the others
    rows = NormalisedRows(latents, mean, std)
    every = fit_reducer(rows, variance=1.0, standardise=False)
    cloud = shrunk_axes(rows, every)
    remaining = Axes(cloud.axes[dimensions:], cloud.variances[dimensions:], cloud.beyond)
    leading = Leading(every.mean, cloud.axes[:dimensions], remaining)
    scale = every.spectrum[:dimensions].sqrt()
    reducer = dataclasses.replace(every, components=every.components[:dimensions], scale=scale)
    scores = reducer.transform(rows)

    protocol = GmmProtocol(dimensions=dimensions, restarts=restarts, heldout=0, seed=seed)
    denoisers = {}
    for count in components:
        fitted = fit_gmm(scores, count, protocol)
        scaled = dataclasses.replace(
            fitted, means=fitted.means * scale, covariances=fitted.covariances * scale.square()
        )
        denoisers[count] = MixtureDenoiser(leading, scaled)
    return denoisers


def denoiser_curve(
    latents: Any,
    labels: Tensor,
    test_latents: Any,
    test_labels: Tensor,
    *,
    components: Sequence[int],
    dimensions: int,
    restarts: int = 3,
    model: Denoiser | None = None,
    images: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    """`denoiser_losses` of the linear denoiser, of mixtures, and of a diffusion model if given.

    Fitted to latents (n, N, C) with labels (n,); cached ones have the statistics and labels that
    the model was trained with. At most `images` test latents are looked at, evenly from all.
    """
    mean, std = channel_space(latents)
    space = {"mean": mean, "std": std}
    labels = getattr(latents, "labels", labels)
    test_labels = getattr(test_latents, "labels", test_labels)
    # a class may be among the test images alone
    classes = int(test_labels.max()) + 1
    linear = fit_linear(latents, labels, num_classes=classes, **space)
    denoisers: dict[str, Denoiser] = {LINEAR: linear}
    fit = {"dimensions": dimensions, "restarts": restarts, "seed": seed}
    for count, denoiser in fit_mixtures(latents, components, **space, **fit).items():
        denoisers[f"{count} modes" if count > 1 else "1 mode"] = denoiser
    if model is not None:
        denoisers[MODEL] = model

    # the denoisers go where the latents are
    rows = spread_rows(len(test_labels), images)
    x = torch.as_tensor(take_rows(test_latents, rows)).to(device_of(model))
    x = (x.float() - mean.to(x)) / std.to(x)
    return denoiser_losses(denoisers, x, test_labels[rows], seed=seed)


def channel_space(latents: Any) -> tuple[Tensor, Tensor]:
    """Mean and std by which latents are normalised: a cache's own, or those of each channel."""
    if hasattr(latents, "space"):
        return latents.space.mean.cpu(), latents.space.std.cpu()
    numbers = channel_statistics(latents)
    return torch.tensor(numbers["mean"].values), torch.tensor(numbers["std"].values)


# Losses -------------------------------------------------------------------------------------------


@torch.inference_mode()
def denoiser_losses(
    denoisers: Mapping[str, Denoiser],
    latents: Tensor,
    labels: Tensor,
    *,
    times: Sequence[float] = TIMES,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """The loss of each denoiser at each time, all on the same noise.

    Normalised held-out latents (n, N, C), labels (n,) -> columns denoiser, t, loss and error (its
    standard error over images), and against the first denoiser gain, a share, and gain_error.
    """
    # one time after the other, and each batch of latents with the same noise for all denoisers
    rows = []
    for t in times:
        losses = {name: [] for name in denoisers}
        for number, part in enumerate(torch.arange(len(latents)).split(BATCH)):
            x = latents[part].float().repeat(draws, 1, 1)
            y = labels[part].to(x.device).repeat(draws)
            random = generator(seed, f"denoiser-{t:g}", number)
            noise = torch.randn(x.shape, generator=random).to(x.device)
            time = torch.full((len(x),), t, device=x.device)
            x_t, velocity = PATHS["linear"].interpolate(x, noise, time)
            for name, denoiser in denoisers.items():
                answer = denoiser(x_t, time, own_labels(denoiser, y)).float()
                loss = (answer - velocity).square().mean(dim=(1, 2))
                losses[name].append(loss.view(draws, -1).mean(dim=0).cpu())
        rows += _rows_at(t, {name: torch.cat(parts) for name, parts in losses.items()})
    table = pd.DataFrame(rows)
    settings = {"images": len(latents), "draws": draws, "seed": seed}
    table.attrs = {"definition": definition("denoiser_loss", **settings)}
    return table


def _rows_at(t: float, losses: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Means with errors, and gains over the first denoiser image by image."""
    first = next(iter(losses.values()))
    root = len(first) ** 0.5
    rows = []
    for name, values in losses.items():
        gain = (first - values) / first.mean()
        numbers = {"loss": values.mean(), "error": values.std() / root}
        numbers |= {"gain": gain.mean(), "gain_error": gain.std() / root}
        row = {"denoiser": name, "t": t}
        row |= {column: float(value) for column, value in numbers.items()}
        rows.append(row)
    return rows
