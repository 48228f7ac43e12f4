"""Denoisers in closed form against Bayes losses that are known, and losses on equal noise."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.covariance import LedoitWolf

from maetok_lab.analysis.denoisers import (
    Axes,
    Leading,
    LinearDenoiser,
    MixtureDenoiser,
    denoiser_losses,
    fit_linear,
    fit_mixtures,
    shrunk_axes,
)
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.analysis.preprocess import fit_reducer
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.rng import generator

TIMES = (0.1, 0.5, 0.9)
VARIANCES = torch.tensor([4.0, 1.0, 0.25, 0.01])
IDENTITY = {"mean": torch.zeros(()), "std": torch.ones(())}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "test"), dtype=torch.float64)


def gaussian(count: int, seed: int = 0) -> torch.Tensor:
    """Latents (count, 2, 2) of one Gaussian with `VARIANCES`, at 0."""
    return (draw(count, 4, seed=seed) * VARIANCES.sqrt()).view(count, 2, 2)


def bayes_loss_of_gaussian(t: float) -> float:
    return float((VARIANCES / (t**2 + (1 - t) ** 2 * VARIANCES)).mean())


def no_labels(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.long)


def losses_at(denoisers: dict, latents: torch.Tensor, labels: torch.Tensor) -> dict:
    table = denoiser_losses(denoisers, latents, labels, times=TIMES)
    rows = table.set_index(["denoiser", "t"])[["loss", "error"]]
    return {key: tuple(value) for key, value in rows.iterrows()}


def test_of_one_gaussian_the_linear_denoiser_has_the_bayes_loss():
    exact = LinearDenoiser(torch.zeros(1, 4), Axes(torch.eye(4), VARIANCES, 0.0))
    fitted = fit_linear(gaussian(20_000, seed=1), no_labels(20_000), **IDENTITY)
    losses = losses_at({"exact": exact, "fitted": fitted}, gaussian(4000), no_labels(4000))
    for t in TIMES:
        loss, error = losses["exact", t]
        assert loss == pytest.approx(bayes_loss_of_gaussian(t), abs=4 * error)
        assert losses["fitted", t][0] == pytest.approx(loss, rel=0.002)


WEIGHTS, CENTRES, STDS = (0.3, 0.7), (-2.0, 1.0), (0.5, 0.2)


def bayes_loss_of_mixture(t: float) -> float:
    """E Var(x0 | x_t) / t^2 by quadrature over x_t, from the densities alone."""

    def integrand(y: float) -> float:
        shares, means, variances = [], [], []
        for weight, centre, std in zip(WEIGHTS, CENTRES, STDS):
            spread = (1 - t) ** 2 * std**2 + t**2
            shares.append(weight * norm.pdf(y, (1 - t) * centre, math.sqrt(spread)))
            means.append(centre + (1 - t) * std**2 / spread * (y - (1 - t) * centre))
            variances.append(std**2 * t**2 / spread)
        density = sum(shares)
        posterior = np.array(shares) / density
        second = posterior @ (np.array(variances) + np.square(means))
        return density * (second - (posterior @ np.array(means)) ** 2)

    value, _ = quad(integrand, -12, 12, limit=400)
    return value / t**2


def mixture_latents(count: int, seed: int = 0) -> torch.Tensor:
    random = generator(seed, "mixture")
    second = torch.rand(count, generator=random) > WEIGHTS[0]
    centres = torch.tensor(CENTRES, dtype=torch.float64)[second.long()]
    stds = torch.tensor(STDS, dtype=torch.float64)[second.long()]
    x = centres + stds * torch.randn(count, generator=random, dtype=torch.float64)
    return x[:, None, None]


def test_of_known_modes_the_mixture_has_the_bayes_loss_and_nobody_a_lower_one():
    mixture = Mixture(
        torch.tensor(WEIGHTS), torch.tensor(CENTRES)[:, None], torch.tensor(STDS)[:, None] ** 2
    )
    nothing = Axes(torch.zeros(0, 1), torch.zeros(0), 0.0)
    exact = MixtureDenoiser(Leading(torch.zeros(1), torch.eye(1), nothing), mixture)
    train = mixture_latents(5000, seed=1)
    fitted = fit_mixtures(train, [1, 2], dimensions=1, **IDENTITY)
    linear = fit_linear(train, no_labels(5000), **IDENTITY)
    denoisers = {"exact": exact, "linear": linear, "one": fitted[1], "two": fitted[2]}
    losses = losses_at(denoisers, mixture_latents(4000), no_labels(4000))
    for t in TIMES:
        bayes = bayes_loss_of_mixture(t)
        assert losses["exact", t][0] == pytest.approx(bayes, abs=4 * losses["exact", t][1])
        for name in denoisers:
            assert losses[name, t][0] > bayes - 4 * losses[name, t][1]
    # at t = 0.5 the modes are told apart, which one Gaussian cannot
    assert losses["one", 0.5][0] > 1.2 * losses["two", 0.5][0]
    assert losses["one", 0.5][0] == pytest.approx(losses["linear", 0.5][0], rel=0.01)


def test_mixtures_on_the_same_axes_look_at_noisy_latents_once():
    train = gaussian(300, seed=1)
    one, three = fit_mixtures(train, [1, 3], dimensions=2, **IDENTITY).values()
    alone = fit_mixtures(train, [3], dimensions=2, **IDENTITY)[3]
    assert one.leading is three.leading
    t = torch.full((4,), 0.3)
    for x_t in (draw(4, 2, 2, seed=5), draw(4, 2, 2, seed=6)):
        one(x_t, t, no_labels(4))
        before = one.leading.split(x_t, t)
        assert torch.equal(three(x_t, t, no_labels(4)), alone(x_t, t, no_labels(4)))
        assert one.leading.split(x_t, t)[0] is before[0]


def test_what_a_mixture_leaves_out_is_one_gaussian():
    # one mode on two of four axes, a Gaussian on the others: the linear denoiser
    train = gaussian(20_000, seed=1)
    two = fit_mixtures(train, [1], dimensions=2, **IDENTITY)[1]
    linear = fit_linear(train, no_labels(20_000), **IDENTITY)
    losses = losses_at({"two": two, "linear": linear}, gaussian(500), no_labels(500))
    for t in TIMES:
        assert losses["two", t][0] == pytest.approx(losses["linear", t][0], rel=1e-3)


def test_the_linear_denoiser_knows_class_means():
    labels = torch.arange(3000) % 3
    offsets = 5.0 * draw(3, 2, 2, seed=2)
    told = fit_linear(gaussian(3000, seed=1) + offsets[labels], labels, **IDENTITY)
    untold = fit_linear(gaussian(3000, seed=1) + offsets[labels], 0 * labels, **IDENTITY)
    test = gaussian(300) + offsets[labels[:300]]
    losses = losses_at({"told": told}, test, labels[:300])
    losses |= losses_at({"untold": untold}, test, 0 * labels[:300])
    for t in TIMES:
        loss, error = losses["told", t]
        assert loss == pytest.approx(bayes_loss_of_gaussian(t), abs=4 * error + 0.01)
        assert losses["untold", t][0] > loss


def test_latents_are_normalised_as_the_diffusion_model_sees_them():
    z = gaussian(2000, seed=1)
    space = {"mean": torch.tensor([1.0, -2.0]), "std": torch.tensor([3.0, 0.5])}
    plain = fit_linear(z, no_labels(2000), **IDENTITY)
    raw = fit_linear(z * space["std"] + space["mean"], no_labels(2000), **space)
    t = torch.full((5,), 0.4)
    x_t = draw(5, 2, 2, seed=3)
    torch.testing.assert_close(raw(x_t, t, no_labels(5)), plain(x_t, t, no_labels(5)))


@pytest.mark.parametrize("count", [12, 60])
def test_covariances_are_shrunk_as_ledoit_and_wolf_do(count):
    rows = draw(count, 30) * torch.linspace(0.1, 2, 30)
    axes = shrunk_axes(rows, fit_reducer(rows, variance=1.0, standardise=False))
    covariance = axes.beyond * torch.eye(30)
    covariance += axes.axes.T @ torch.diag(axes.variances - axes.beyond) @ axes.axes
    expected = torch.from_numpy(LedoitWolf().fit(rows.numpy()).covariance_).float()
    torch.testing.assert_close(covariance, expected, rtol=1e-4, atol=1e-5)


def test_a_class_without_training_latents_has_the_mean_of_all():
    z = gaussian(100, seed=1) + 3
    denoiser = fit_linear(z, torch.arange(100) % 2 * 2, **IDENTITY)
    torch.testing.assert_close(denoiser.means[1], z.mean(dim=0).flatten().float())


def test_an_unconditional_model_is_told_its_only_label():
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=2, latent_dim=2, num_classes=0).eval()
    labels = torch.arange(12) % 3
    losses = denoiser_losses({"model": model}, gaussian(12), labels, times=[0.5])
    untold = denoiser_losses({"model": model}, gaussian(12), 0 * labels, times=[0.5])
    assert losses["loss"][0] == untold["loss"][0]


def test_gains_are_over_the_first_denoiser_on_the_same_noise():
    linear = fit_linear(gaussian(500, seed=1), no_labels(500), **IDENTITY)
    table = denoiser_losses(
        {"linear": linear, "same": linear, "zero": lambda x, t, y: 0 * x},
        gaussian(50),
        no_labels(50),
        times=[0.5],
        draws=2,
    ).set_index("denoiser")
    assert table["loss"]["same"] == table["loss"]["linear"]
    assert table["gain"]["same"] == table["gain_error"]["same"] == 0
    assert table["gain"]["zero"] == pytest.approx(
        1 - table["loss"]["zero"] / table["loss"]["linear"], rel=1e-5
    )
