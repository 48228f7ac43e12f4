"""Masks hide what they say: how many patches, which, and how the ratio is drawn."""

import dataclasses
import math

import pytest
import torch

from maetok_lab.rng import generator
from maetok_lab.tokenizer.masking import (
    MaskingConfig,
    block_mask,
    draw_mask,
    draw_ratio,
    random_mask,
)

PLACES = {"random": random_mask, "block": block_mask}
each_kind = pytest.mark.parametrize("kind", PLACES)


def ratios(config: MaskingConfig, count: int, progress: float = 0.0) -> torch.Tensor:
    draws = generator(0, "ratios")
    drawn = [draw_ratio(config, progress=progress, generator=draws) for _ in range(count)]
    return torch.tensor(drawn, dtype=torch.float64)


def largest_rectangle(mask: torch.Tensor) -> int:
    """The area of the largest rectangle of True in (rows, columns)."""
    best = 0
    for top in range(mask.shape[0]):
        for bottom in range(top + 1, mask.shape[0] + 1):
            run = 0
            for column in mask[top:bottom].all(0).tolist():
                run = run + 1 if column else 0
                best = max(best, run * (bottom - top))
    return best


@each_kind
@pytest.mark.parametrize("grid", [(8, 8), (8, 10), (1, 7), (5, 3)])
@pytest.mark.parametrize("ratio", [0.01, 0.4, 0.5, 0.6, 0.99])
def test_every_image_hides_the_ceiling_of_its_share(kind, grid, ratio):
    mask = PLACES[kind](16, grid, ratio, generator=generator(0, "mask"))
    assert mask.dtype == torch.bool
    assert mask.shape == (16, grid[0] * grid[1])
    exact = grid[0] * grid[1] * round(ratio * 100) / 100
    assert (mask.sum(1) == math.ceil(round(exact, 6))).all()


def test_floating_point_does_not_hide_one_patch_too_many():
    assert 0.55 * 100 > 55
    assert random_mask(1, (10, 10), 0.55, generator=generator(0, "mask")).sum() == 55


def test_random_masks_are_each_images_own_and_hide_every_place_equally_often():
    mask = random_mask(4000, (4, 4), 0.5, generator=generator(0, "mask"))
    assert len(mask.unique(dim=0)) > 3000
    assert (mask.float().mean(0) - 0.5).abs().max() < 4 * 0.5 / 4000**0.5


def test_block_masks_hold_one_rectangle_that_is_most_of_them():
    mask = block_mask(100, (8, 8), 0.5, generator=generator(0, "mask"))
    areas = torch.tensor([largest_rectangle(m) for m in mask.view(-1, 8, 8)])
    assert areas.min() >= 0.7 * 32
    assert len(mask.unique(dim=0)) > 50
    singles = random_mask(100, (8, 8), 0.5, generator=generator(0, "mask"))
    assert max(largest_rectangle(m) for m in singles.view(-1, 8, 8)) < 0.7 * 32


def test_a_block_on_a_single_row_is_one_unbroken_run():
    mask = block_mask(50, (1, 100), 0.55, generator=generator(0, "mask"))
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    assert starts.tolist() == [1] * 50


def test_the_papers_ratio_is_a_normal_cut_to_its_interval():
    drawn = ratios(MaskingConfig(), 20_000)
    assert drawn.min() >= 0.4
    assert drawn.max() <= 0.6
    assert drawn.mean().item() == pytest.approx(0.505, abs=0.001)
    assert drawn.std().item() == pytest.approx(0.057, abs=0.001)


def test_the_papers_ratio_has_the_truncated_normals_distribution_function():
    low, high, count = 0.1, 0.7, 5000
    drawn = ratios(MaskingConfig(low=low, high=high), count).sort().values
    normal = torch.distributions.Normal(high, 0.25)
    floor = normal.cdf(torch.tensor(low))
    expected = (normal.cdf(drawn) - floor) / (0.5 - floor)
    steps = torch.arange(count) / count
    assert (expected - steps).abs().max() < 1.63 / count**0.5  # Kolmogorov-Smirnov at 1 %


def test_uniform_and_fixed_ratios_are_what_they_say():
    drawn = ratios(MaskingConfig(ratio="uniform", low=0.2, high=0.6), 5000)
    assert 0.2 <= drawn.min() < 0.21
    assert 0.59 < drawn.max() < 0.6
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.007)
    for ratio in ("uniform", "truncated_normal", "linear"):
        assert (ratios(MaskingConfig(ratio=ratio, low=0.3, high=0.3), 10) == 0.3).all()


def test_the_linear_schedule_falls_from_high_to_low():
    config = MaskingConfig(ratio="linear", low=0.0, high=0.6)
    for progress, expected in ((0.0, 0.6), (0.25, 0.45), (0.5, 0.3), (1.0, 0.0)):
        assert ratios(config, 3, progress).tolist() == pytest.approx([expected] * 3)
    assert draw_mask(config, 2, (8, 8), progress=0.5, generator=generator(0, "mask")).sum(
        1
    ).tolist() == [20, 20]
    assert draw_mask(config, 2, (8, 8), progress=1.0, generator=generator(0, "mask")) is None


@each_kind
def test_one_ratio_counts_for_the_whole_batch_and_the_generator_decides_all(kind):
    config = MaskingConfig(kind=kind)
    masks = [
        draw_mask(config, 6, (8, 8), generator=generator(0, "mask", step)) for step in (1, 2, 3, 1)
    ]
    for mask in masks:
        assert len(mask.sum(1).unique()) == 1
        assert math.ceil(64 * 0.4) <= mask[0].sum() <= math.ceil(64 * 0.6)
    assert torch.equal(masks[0], masks[3])
    assert not torch.equal(masks[0], masks[1])


@each_kind
@pytest.mark.parametrize(
    ("config", "share", "spread"),
    [
        (MaskingConfig(), 0.505, 0.057),
        (MaskingConfig(ratio="uniform", low=0.1, high=0.7), 0.4, 0.6 / 12**0.5),
        (MaskingConfig(ratio="uniform", low=0.35, high=0.35), 0.35, 0.0),
        (MaskingConfig(ratio="linear", low=0.0, high=0.6), 0.3, 0.6 / 12**0.5),
    ],
)
def test_over_many_draws_each_kind_hides_its_share(kind, config, share, spread):
    config, count, patches = dataclasses.replace(config, kind=kind), 400, 20 * 20
    masks = [
        draw_mask(config, 1, (20, 20), progress=i / count, generator=generator(0, "mask", i))
        for i in range(count)
    ]
    shares = torch.tensor([mask.float().mean().item() for mask in masks])
    # the ceiling adds up to one patch, half of one on average
    assert (shares.mean() - share).abs() < 4 * spread / count**0.5 + 1 / patches
    assert (shares.std() - spread).abs() < 0.1 * spread + 1 / patches


def test_no_mask_is_none():
    assert draw_mask(MaskingConfig(ratio="none"), 2, (4, 4), generator=generator(0, "mask")) is None


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.4), (-1.0, 0.4), (-0.5, -0.1), (0.4, 1.0)])
def test_impossible_ratios_are_refused(low, high):
    message = f"-1 < low <= high and 0 <= high < 1, not low {low}, high {high}"
    with pytest.raises(ValueError, match=message):
        MaskingConfig(low=low, high=high)


def test_what_is_drawn_below_zero_hides_nothing():
    config = MaskingConfig(ratio="uniform", low=-0.1, high=0.7)  # l-DeTok's
    masks = [draw_mask(config, 1, (20, 20), generator=generator(0, "mask", i)) for i in range(400)]
    bare = sum(mask is None for mask in masks) / 400
    assert abs(bare - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 400) ** 0.5
    shares = [mask.float().mean().item() for mask in masks if mask is not None]
    assert min(shares) > 0 and max(shares) < 0.71 and abs(sum(shares) / len(shares) - 0.35) < 0.05
