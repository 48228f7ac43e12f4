"""With a Gaussian mixture's exact velocity as the model, samplers reach it with their orders."""

import math

import pytest
import torch

from maetok_lab.diffusion.graphs import Graphed
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.path import PATHS
from maetok_lab.diffusion.sampling import Guidance, sample, sample_steps

each_path = pytest.mark.parametrize("path", PATHS)
WEIGHTS, MEANS, STDS = (
    torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.5, 1.0], [0.5, 0.8])
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Mixture:
    """The exact velocity of 1-D Gaussian mixtures, one a channel: E[alpha' x + sigma' n | x_t]."""

    def __init__(self, path: str):
        self.path = PATHS[path]

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x, t = x_t.double()[..., None], t.double()[0]
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        variance = (alpha * STDS).square() + sigma**2
        centred = x - alpha * MEANS
        share = (WEIGHTS.log() - 0.5 * variance.log() - 0.5 * centred.square() / variance).softmax(
            -1
        )
        data, noise = MEANS + alpha * STDS.square() / variance * centred, sigma / variance * centred
        return (
            (share * (self.path.d_alpha(t) * data + self.path.d_sigma(t) * noise)).sum(-1).float()
        )


def quantile(z: torch.Tensor) -> torch.Tensor:
    """Where the flow takes noise z: the mixture's value at its quantile (1-D flows keep order)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    expected, low, high = (
        normal.cdf(z.double()),
        torch.full_like(z.double(), -9),
        torch.full_like(z.double(), 9),
    )
    for _ in range(60):
        middle = (low + high) / 2
        below = (WEIGHTS * normal.cdf((middle[..., None] - MEANS) / STDS)).sum(-1) < expected
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def error(method: str, steps: int, path: str) -> float:
    z = noise(64, 1, 1)
    labels = torch.zeros(64, dtype=torch.long)
    actual = sample(Mixture(path), z, labels, method=method, num_steps=steps, path=path)
    return (actual - quantile(z)).abs().mean().item()


@each_path
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_fixed_step_samplers_converge_with_their_order(method, order, path):
    coarse, fine = error(method, 32, path), error(method, 128, path)
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.25)
    assert fine < (0.03 if order == 1 else 1e-3)


@each_path
def test_dopri5_solves_the_flow_to_five_digits(path):
    assert error("dopri5", 1, path) < 1e-5
    assert error("dopri5", 7, path) < 1e-5


@each_path
def test_euler_maruyama_reproduces_the_mixtures_mean_and_covariance(path):
    count = 8000
    z, labels = noise(count, 1, 2), torch.zeros(count, dtype=torch.long)
    sde = torch.randn(
        149, count, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    actual = sample(
        Mixture(path), z, labels, method="euler_maruyama", num_steps=150, path=path, sde_noise=sde
    )
    actual = actual[:, 0].double()
    mean = (WEIGHTS * MEANS).sum()
    variance = (WEIGHTS * (STDS.square() + MEANS.square())).sum() - mean**2
    assert torch.allclose(actual.mean(0), mean.expand(2), atol=0.05)
    assert torch.allclose(actual.T.cov(), variance * torch.eye(2, dtype=torch.float64), atol=0.06)
    # The noise makes the spread: the same at the start, another on the way, another end.
    assert (actual - quantile(z[:, 0])).abs().mean() > 0.3


@each_path
@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama", "dopri5"])
def test_a_single_point_is_reached_exactly_and_known_from_the_first_step_on(method, path):
    point = noise(2, 3, seed=5)

    def model(x_t, t, labels):
        """v = alpha' x + sigma' n, with x the point and n what is left of x_t."""
        t = t.double()[:, None, None]
        p = PATHS[path]
        return p.d_alpha(t) * point + p.d_sigma(t) * (x_t - p.alpha(t) * point) / p.sigma(t).clamp(
            min=1e-6
        )

    sde = noise(9, 4, 2, 3).double()
    options = {"sde_noise": sde} if method == "euler_maruyama" else {}
    steps = list(
        sample_steps(
            model, noise(4, 2, 3), torch.zeros(4), method=method, num_steps=10, path=path, **options
        )
    )
    for step in steps:
        assert torch.allclose(step.x0, point.double().expand(4, -1, -1), atol=1e-4)
    if method == "dopri5" or (method, path) == ("euler", "linear"):
        assert torch.allclose(steps[-1].x, point.double().expand(4, -1, -1), atol=1e-3)


@each_path
@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_shifted_times_solve_the_same_equation(path, shift):
    z, labels = noise(64, 1, 1), torch.zeros(64, dtype=torch.long)
    actual = sample(
        Mixture(path), z, labels, method="heun", num_steps=128, path=path, time_shift=shift
    )
    assert (actual - quantile(z)).abs().mean() < 5e-3


# Data prediction ----------------------------------------------------------------------------------


def point_network(path: str, prediction: str) -> DiffusionTransformer:
    """A network whose output is one point of three channels, whatever goes in."""
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=2, latent_dim=3, num_classes=4)
    model.set_training(path, prediction)
    torch.nn.init.zeros_(model.final_layer.linear.weight)
    model.final_layer.linear.bias.data = POINT.clone()
    return model.eval()


POINT = torch.tensor([0.5, -2.0, 1.5])


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_network_that_predicts_the_data_exactly_is_sampled_to_the_data(method):
    z, labels = noise(4, 2, 3), torch.tensor([0, 1, 2, 3])
    model = point_network("linear", "data")
    for steps in (5, 20):  # none of whose velocities is clipped
        options = {"method": method, "num_steps": steps}
        end = sample(model, z, labels, **options)
        assert torch.allclose(end, POINT.expand(4, 2, 3), atol=1e-5)
        plain = sample(Point("linear"), z, labels, **options)
        assert torch.allclose(end, plain, atol=1e-5)


@each_path
def test_below_the_clip_a_little_of_the_noise_stays(path):
    z, labels = noise(4, 2, 3), torch.tensor([0, 1, 2, 3])
    model = point_network(path, "data")
    end = sample(model, z, labels, method="dopri5", num_steps=2)
    if path == "linear":  # from t = 0.05 on dx / dt = (x - point) / 0.05
        left = 0.05 / math.e * (z - POINT)
        assert torch.allclose(end - POINT, left, atol=1e-3)
    assert (end - POINT).abs().max() < 0.05 * (z - POINT).abs().max()


class Point:
    """The exact velocity of a point, as a network that predicts velocities would have it."""

    def __init__(self, path: str):
        self.trained_path = path

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (x_t - POINT) / t[:, None, None]


def test_networks_of_both_predictions_guide_each_other():
    z, labels = noise(4, 2, 3), torch.tensor([0, 1, 2, 3])
    strong = point_network("linear", "data")
    weak = Point("linear")
    for first, second in ((strong, weak), (weak, strong)):
        options = {"weak_model": second, "guidance": Guidance(3.0), "num_steps": 10}
        end = sample(Graphed(first), z, labels, **options)
        assert torch.allclose(end, POINT.expand(4, 2, 3), atol=1e-4)
