"""The way of a sampling ends where sampling ends."""

import math

import pytest
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance, draw_noise
from maetok_lab.generation.images import generate
from maetok_lab.generation.trajectories import (
    decode_point,
    path_numbers,
    trajectory,
    trajectory_shape,
)
from maetok_lab.rng import seeds_for
from maetok_lab.tokenizer.foreign import RawPixels


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
def test_the_last_point_is_what_generate_gives(method):
    tokenizer = RawPixels(8)
    torch.manual_seed(0)
    model = DiffusionTransformer(
        DIFFUSION["test"], num_tokens=4, latent_dim=48, num_classes=3
    ).eval()
    for parameter in model.parameters():  # a fresh model's velocity is zero
        torch.nn.init.normal_(parameter, std=0.1)
    model.tokenizer_fingerprint, model.trained_path = tokenizer.fingerprint, "linear"
    space = LatentSpace(tokenizer.fingerprint, torch.tensor(0.1), torch.tensor(0.7))
    labels, sampling = (
        torch.tensor([0, 1, 2, 3]),
        {"num_steps": 4, "method": method, "guidance": Guidance(2.0, 0.0, 0.8)},
    )
    points = list(trajectory(model, labels, seed=5, **sampling))
    expected = generate(model, tokenizer, space, labels, seed=5, **sampling)
    torch.testing.assert_close(decode_point(points[-1], tokenizer, space, show="state"), expected)
    assert [point.step for point in points] == [0, 1, 2, 3, 4]
    assert (points[0].t, points[-1].t) == (1.0, 0.0)
    assert torch.equal(points[0].state, draw_noise(seeds_for(5, 4), 4, 48))
    last = points[-2]
    assert not torch.equal(
        decode_point(last, tokenizer, space), decode_point(last, tokenizer, space, show="state")
    )


# How straight the way is --------------------------------------------------------------------------


def test_a_straight_and_even_way_has_ones():
    end = torch.randn(5, 4, 3)
    share = torch.linspace(0, 1, 9)[:, None, None, None]
    numbers = path_numbers(share * end)
    for value in (numbers.straightness, numbers.efficiency):
        assert value == pytest.approx((1, 0), abs=1e-6)
    assert torch.allclose(numbers.length_ratio[:, 0], torch.ones(8, dtype=torch.float64))
    # straight, but at first slow
    uneven = path_numbers(share.square() * end)
    assert uneven.efficiency[0] == pytest.approx(1)
    ratio = uneven.length_ratio[:, 0]
    assert ratio.tolist() == pytest.approx([(2 * i + 1) / 8 for i in range(8)], rel=1e-4)


def test_a_quarter_of_a_circle_turns_by_the_same_angle_at_every_step():
    steps = 50
    angle = torch.linspace(0, math.pi / 2, steps + 1, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None, None]
    states = circle * torch.tensor([1.0, 3.0])[:, None, None]  # two samples, one three times as far
    numbers = path_numbers(states)
    assert numbers.straightness == pytest.approx((math.cos(math.pi / 2 / steps), 0), abs=1e-12)
    chord = 2 * math.sin(math.pi / 4 / steps)
    assert numbers.efficiency == pytest.approx((math.sqrt(2) / (steps * chord), 0), abs=1e-12)
    ratio = torch.full((steps,), steps * chord / math.sqrt(2), dtype=torch.float64)
    assert torch.allclose(numbers.length_ratio[:, 0], ratio)


def test_errors_are_those_of_means_over_samples():
    straight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    states = torch.stack([straight, corner], dim=1)[:, :, None]
    numbers = path_numbers(states)
    assert numbers.straightness == pytest.approx((0.5, 0.5))
    mean = (1 + math.sqrt(0.5)) / 2
    assert numbers.efficiency == pytest.approx((mean, 1 - mean))
    still = path_numbers(torch.zeros(4, 2, 1, 1))
    assert math.isnan(still.straightness[0])
    for shape in ((2, 4, 3, 2), (4, 1, 3, 2), (4, 4)):
        with pytest.raises(ValueError, match=r"needs states \(M \+ 1, B, N, C\) of M = 2 steps"):
            path_numbers(torch.zeros(shape))


def test_the_ways_of_a_model_are_equal_unguided_euler_steps_whatever_its_training():
    torch.manual_seed(0)
    model = DiffusionTransformer(DIFFUSION["test"], num_tokens=4, latent_dim=6, num_classes=3)
    # its output is one point: predicted as data, the exact velocity of a point mass
    torch.nn.init.normal_(model.final_layer.linear.bias)
    model.set_training("linear", "data", 5.0)
    model.train()
    labels = torch.tensor([0, 1, 2, 3])
    straight = trajectory_shape(model, labels, num_steps=20)
    assert straight.straightness == pytest.approx((1, 0), abs=1e-5)
    assert straight.efficiency == pytest.approx((1, 0), abs=1e-5)
    ones = torch.ones(20, dtype=torch.float64)
    assert torch.allclose(straight.length_ratio[:, 0], ones, rtol=1e-4)
    assert model.training

    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    numbers = trajectory_shape(model, labels, seed=3)
    points = trajectory(model.eval(), labels, seed=3, num_steps=50, time_shift=1.0)
    expected = path_numbers(torch.stack([point.state for point in points]))
    assert numbers.straightness == expected.straightness
    assert numbers.length_ratio.shape == (50, 2)
    assert numbers.straightness[0] < 0.999
