"""Augmentation of what a discriminator sees: differentiable, seeded, and what it says it is."""

import pytest
import torch

from maetok_lab.rng import generator
from maetok_lab.tokenizer.discriminators import STRONG, diff_augment


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def augment(
    images: torch.Tensor, policy: str, probability: float = 1.0, seed: int = 0, **more
) -> torch.Tensor:
    return diff_augment(
        images, policy=policy, probability=probability, generator=generator(seed, "test"), **more
    )


@pytest.mark.parametrize("policy", ["color", "translation", "cutout_0.2", STRONG])
def test_augmentation_keeps_shape_passes_gradients_and_is_seeded(policy):
    images = noise(6, 3, 16, 24).requires_grad_()
    once, again, other = (augment(images, policy, seed=seed) for seed in (0, 0, 1))
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    once.square().sum().backward()
    assert torch.isfinite(images.grad).all()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    assert torch.equal(augment(images, policy, probability=0.0), images)


def test_each_image_is_augmented_by_itself_with_its_probability():
    images = noise(2000, 3, 8, 8)
    changed = (augment(images, "color", probability=0.3) != images).flatten(1).any(1).float().mean()
    assert abs(changed - 0.3) < 0.04
    assert len({float(x.mean()) for x in augment(torch.zeros(50, 3, 8, 8), "color")}) == 50


def test_colours_change_by_brightness_saturation_and_contrast_only():
    grey = torch.full((500, 3, 4, 4), 0.25)
    shift = augment(grey, "color") - grey
    assert shift.flatten(1).std(1).max() < 1e-6  # grey has neither saturation nor contrast
    assert -0.5 <= shift.min() < -0.45
    assert 0.45 < shift.max() <= 0.5
    images = noise(400, 3, 8, 8)
    spread = augment(images, "color").std((1, 2, 3)) / images.std((1, 2, 3))
    assert spread.max() < 1.5 * 2
    assert spread.min() > 0.5 * 0.5


def test_translation_moves_by_up_to_an_eighth_and_zeros_come_in():
    size = 16
    image = (
        (1 + torch.arange(size * size, dtype=torch.float32))
        .view(1, 1, size, size)
        .expand(300, 3, -1, -1)
    )
    moved = augment(image, "translation")
    shifts = set()
    for result in moved[:, 0]:
        inside = (
            (result[8, 8].int().item() - 1) // size - 8,
            (result[8, 8].int().item() - 1) % size - 8,
        )
        shifts.add(inside)
        down, across = inside
        expected = torch.nn.functional.pad(image[0, 0], (2, 2, 2, 2))[
            2 + down : 2 + down + size, 2 + across : 2 + across + size
        ]
        assert torch.equal(result, expected)
    assert shifts == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


@pytest.mark.parametrize(("share", "side"), [(0.2, 6), (0.5, 16)])
def test_cutout_hides_a_square_of_its_share_of_the_side(share, side):
    hidden = augment(torch.ones(2000, 3, 32, 32), f"cutout_{share}")[:, 0] == 0
    assert hidden.flatten(1).sum(1).max() == side * side
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.flatten(1).sum(1), rows * columns)
    assert rows.min() >= side // 2 - 1  # at the border a part of it lies outside
    assert hidden.any(0).all()  # it can be anywhere


def test_rows_of_a_shared_batch_are_augmented_as_in_one_process():
    images = noise(8, 3, 16, 16)
    whole = augment(images, STRONG, probability=0.5)
    for rank in range(2):
        rows = slice(rank, None, 2)
        assert torch.equal(
            augment(images[rows], STRONG, probability=0.5, batch=(8, rows)), whole[rows]
        )


def test_an_unknown_augmentation_is_an_error():
    with pytest.raises(
        ValueError,
        match=r"unknown augmentation 'flip'; choose one of \['color', 'cutout', 'translation'\]",
    ):
        augment(noise(1, 3, 8, 8), "color,flip")
