"""Anatomy on a tokenizer whose token k holds patch k, so that every map is diagonal."""

import pytest
import torch

from maetok_lab.layers.grid import patchify, unpatchify
from maetok_lab.tokenizer.anatomy import (
    SURGERIES,
    Surgery,
    TokenStatistics,
    error_map,
    footprint,
    occlusion,
    operate,
    token_shift,
    token_statistics,
)

PATCH, GRID = 4, (2, 3)


class OneTokenAPatch:
    """Latents are patches of pixels, zero where hidden."""

    def encode(self, images, *, mask=None):
        patches = patchify(images, PATCH)
        return patches if mask is None else patches.masked_fill(mask[..., None], 0.0)

    def decode(self, latents):
        return unpatchify(latents, GRID, PATCH)


@pytest.fixture
def image():
    return torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(1)) + 0.1


@pytest.fixture
def statistics():
    return TokenStatistics(torch.zeros(6, 48), torch.full((48,), 2.0))


def test_a_token_moves_by_the_root_mean_square_of_its_channels_in_std():
    moved = token_shift(
        torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([1.0, 2.0])
    )
    assert moved.item() == pytest.approx(((9 + 4) / 2) ** 0.5)


def test_hiding_a_patch_moves_its_token_alone(image, statistics):
    moved = occlusion(OneTokenAPatch(), image, patch_size=PATCH, std=statistics.std, batch_size=4)
    expected = token_shift(patchify(image[None], PATCH)[0], torch.zeros(6, 48), statistics.std)
    assert moved.shape == (6, 6)
    torch.testing.assert_close(moved, torch.diag(expected))


def test_dropping_a_token_changes_its_patch_alone(image):
    latents = patchify(image[None], PATCH)[0]
    drawn = footprint(OneTokenAPatch(), latents, torch.zeros(6, 48), patch_size=PATCH, batch_size=4)
    torch.testing.assert_close(drawn, torch.diag(latents.abs().mean(1)))


def test_statistics_are_of_each_token_and_each_channel():
    latents = torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0))
    statistics = token_statistics(latents)
    torch.testing.assert_close(statistics.mean, latents.mean(0))
    torch.testing.assert_close(statistics.std, latents.flatten(0, 1).std(0), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="at least two images"):
        token_statistics(latents[:1])


def test_the_error_is_of_what_a_picture_shows():
    image, reconstruction = torch.ones(3, 2, 2), torch.full((3, 2, 2), 5.0)
    reconstruction[:, 0, 0] = -9.0
    assert error_map(image, reconstruction).tolist() == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", SURGERIES)
def test_surgery_changes_the_chosen_tokens_as_its_kind_says(kind, statistics):
    z, other = torch.ones(6, 48), torch.full((6, 48), 3.0)
    changed = operate(z, Surgery(kind=kind, tokens=(1, 4), amount=0.25), statistics, other=other)
    untouched = [0, 2, 3, 5]
    assert torch.equal(changed[untouched], z[untouched])
    expected = {"none": 1.0, "drop": 0.0, "swap": 3.0, "interpolate": 1.5}
    if kind in expected:
        assert changed[[1, 4]].unique().tolist() == [expected[kind]]
    else:
        assert (changed[[1, 4]] - 1).std().item() == pytest.approx(0.25 * 2.0, rel=0.2)
    assert torch.equal(z, torch.ones(6, 48))


def test_without_tokens_surgery_changes_all_and_noise_follows_its_seed(statistics):
    z = torch.ones(6, 48)
    assert operate(z, Surgery(kind="drop"), statistics).abs().max() == 0
    noisy = [operate(z, Surgery(kind="noise", seed=seed), statistics) for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])


def test_what_cannot_be_done_says_why(statistics):
    z = torch.ones(6, 48)
    with pytest.raises(ValueError, match=r"0 .. 5, not \[6\]"):
        operate(z, Surgery(kind="drop", tokens=(6,)), statistics)
    with pytest.raises(ValueError, match="swap needs the latents of another image"):
        operate(z, Surgery(kind="swap"), statistics)
    with pytest.raises(ValueError, match="did you mean 'swap'"):
        Surgery(kind="swop")
    with pytest.raises(ValueError, match="0 or more, not -1"):
        Surgery(kind="noise", amount=-1)
