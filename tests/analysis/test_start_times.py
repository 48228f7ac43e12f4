"""Sampling from later starts: an exact model keeps the floor, one that shrinks all leaves it."""

from types import SimpleNamespace

import torch

from maetok_lab.analysis.start_times import distance_by_start
from maetok_lab.data.latents import LatentSpace
from maetok_lab.evaluation.metrics import kernel_distance
from maetok_lab.rng import generator

SPACE = LatentSpace("tokenizer", torch.tensor(0.1), torch.tensor(0.3))
NET = SimpleNamespace(
    name="pixels", weight_hash="none", features=lambda images: 5 * images.flatten(1)
)


class Model:
    """A velocity with what samplers ask of a model."""

    trained_path = "linear"
    num_tokens, latent_dim, num_classes = 12, 1, 0

    def __init__(self, velocity):
        self.velocity = velocity

    def __call__(self, x_t, t, labels):
        return self.velocity(x_t, t[:, None, None])


def exact(x_t, t):
    """Of standard normal latents."""
    return x_t * (2 * t - 1) / ((1 - t) ** 2 + t**2)


def decode(latents):
    return latents.view(-1, 3, 2, 2)


def table_of(velocity, **options):
    z = SPACE.denormalise(torch.randn(400, 12, 1, generator=generator(0, "test")))
    labels = torch.zeros(400, dtype=torch.long)
    table = distance_by_start(Model(velocity), decode, SPACE, z, labels, net=NET, **options)
    return table.set_index("start"), z


def test_an_exact_model_stays_at_the_floor_and_one_that_shrinks_all_does_not():
    right, _ = table_of(exact, starts=(0.5, 1.0), num_steps=100)
    wrong, _ = table_of(lambda x_t, t: 3 * x_t, starts=(0.5, 1.0), num_steps=20)
    assert list(right.columns) == ["kid_gap_pixels", "low", "high"]
    floor = right.loc[0.0]
    for start in (0.5, 1.0):
        assert floor["low"] < right["kid_gap_pixels"][start] < floor["high"]
    # it shrinks to a tenth on the way, and to a third of half the way
    assert wrong["kid_gap_pixels"][0.5] > floor["high"]


def test_the_floor_is_that_of_the_two_halves_and_nothing_is_drawn_for_it():
    table, z = table_of(exact, starts=())
    pixels = (255 * (decode(z).clamp(-1, 1) + 1) / 2).round() / 255 * 2 - 1
    expected = kernel_distance(5 * pixels[::2].flatten(1), 5 * pixels[1::2].flatten(1)).value
    assert abs(table["kid_gap_pixels"][0.0] - expected) < 1e-6
    assert len(table) == 1
