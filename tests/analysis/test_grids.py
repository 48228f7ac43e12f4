"""Grids whose cosines, regions and moved latents are known; reasons where there is no grid."""

import math
import types

import numpy as np
import pytest
import torch

from maetok_lab.analysis.definitions import MEASURES
from maetok_lab.analysis.grids import (
    ENTRIES,
    NO_GRID,
    correlogram,
    equivariance,
    foreground_of,
    grid_measures,
    grid_of,
    local_similarity,
    region_similarity,
    similarity_decay,
    spatial_contrast,
)
from maetok_lab.analysis.spectra import NoValue
from maetok_lab.config import override
from maetok_lab.rng import generator
from maetok_lab.tokenizer.foreign import GridTokenizer, RawPixels
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer


def randn(*shape, name="x"):
    return torch.randn(*shape, generator=generator(0, name), dtype=torch.float64)


def checkerboard(images=3, side=8):
    """Tokens that are minus their neighbours: the cosine is 1 at even distances, -1 at odd ones."""
    rows, columns = np.indices((side, side))
    signs = torch.as_tensor((-1.0) ** (rows + columns)).flatten()
    return signs[:, None] * randn(images, 1, 5)


def stripes(images=3, side=8):
    """Tokens along a quarter of a circle by column: the cosine falls with columns apart."""
    angles = torch.arange(side) * math.pi / 2 / (side - 1)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1).double()  # (side, 2)
    return tokens.repeat(side, 1).expand(images, -1, -1)


# Cosines by distance ------------------------------------------------------------------------------


def test_constant_tokens_have_no_structure():
    latents = randn(3, 1, 5).expand(-1, 64, -1)
    assert local_similarity(latents, (8, 8)).value == pytest.approx(0, abs=1e-12)
    assert similarity_decay(latents, (8, 8)).value == pytest.approx(0, abs=1e-12)
    assert spatial_contrast(latents).value == pytest.approx(0, abs=1e-7)


def test_a_checkerboard_is_unlike_its_neighbours():
    latents = checkerboard()
    cosines, pairs = correlogram(latents, (8, 8))
    signs = (-1.0) ** np.arange(15)
    np.testing.assert_allclose(cosines, np.tile(signs, (3, 1)), atol=1e-12)
    assert pairs.sum() == 64**2
    far = (pairs[6:].numpy() * signs[6:]).sum() / pairs[6:].sum().item()
    assert local_similarity(latents, (8, 8)).value == pytest.approx(-1 - far)
    slope = np.polyfit(np.arange(1, 9), signs[1:9], 1)[0]
    assert similarity_decay(latents, (8, 8)).value == pytest.approx(-slope)
    assert spatial_contrast(latents).value == pytest.approx(1)  # halves cancel in the mean


def test_correlogram_agrees_with_pairs_by_hand_on_a_grid_that_is_not_square():
    latents = randn(2, 3 * 4, 5)
    cosines, pairs = correlogram(latents, (3, 4))
    unit = (latents / latents.norm(dim=2, keepdim=True)).numpy()
    by_steps = {}
    for a in range(12):
        for b in range(12):
            steps = abs(a // 4 - b // 4) + abs(a % 4 - b % 4)
            by_steps.setdefault(steps, []).append(unit[:, a] @ unit[:, b].T)
    for steps, products in by_steps.items():
        assert pairs[steps] == len(products)
        expected = np.mean([np.diagonal(product) for product in products], axis=0)
        np.testing.assert_allclose(cosines[:, steps], expected, atol=1e-12)


def test_smooth_tokens_are_like_their_neighbours():
    smooth = stripes()
    noise = randn(200, 64, 2)
    assert local_similarity(smooth, (8, 8)).value > 0.2
    assert similarity_decay(smooth, (8, 8)).value > 0.02
    for measure in (local_similarity, similarity_decay):
        measured = measure(noise, (8, 8))
        assert abs(measured.value) < 4 * measured.error
    # unit vectors in random directions of many dimensions: their mean is nearly 0
    assert spatial_contrast(randn(20, 64, 50)).value == pytest.approx((1 - 1 / 64) ** 0.5, rel=0.01)


def test_a_grid_that_is_too_small_has_no_value():
    with pytest.raises(NoValue, match="3 x 4 grid are 6 steps apart"):
        local_similarity(randn(2, 12, 3), (3, 4))
    with pytest.raises(NoValue, match="1 x 2 grid are 2 steps apart"):
        similarity_decay(randn(2, 2, 3), (1, 2))
    assert math.isfinite(local_similarity(randn(2, 16, 3), (4, 4)).value)


# Foreground and background ------------------------------------------------------------------------


def disc(images=4, size=32):
    """White images with a square of colour that fills tokens 2..3 of 8 in both directions."""
    pictures = torch.ones(images, 3, size, size)
    pictures[:, :, 8:16, 8:16] = torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    return pictures


def test_foreground_is_what_is_not_white():
    inside = foreground_of(disc(), (8, 8))
    assert inside.shape == (4, 64)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert (inside == expected.flatten()).all()
    # a token is foreground by over half of its pixels, and nearly white is white
    assert not foreground_of(disc(), (2, 2)).any()
    assert not foreground_of(torch.full((1, 3, 32, 32), 0.99), (8, 8)).any()


def test_regions_of_one_direction_each_differ_by_their_cosine():
    inside = foreground_of(disc(), (8, 8))
    one, other = torch.tensor([1.0, 0, 0]), torch.tensor([0.6, 0.8, 0])
    latents = torch.where(inside[..., None], one, other).double()
    measured = region_similarity(latents, (8, 8), disc())
    assert measured.value == pytest.approx(1 - 0.6)
    assert measured.error == pytest.approx(0, abs=1e-9)
    # an image without background has no part in it
    images = torch.cat([disc(2), -torch.ones(2, 3, 32, 32)])
    assert region_similarity(latents, (8, 8), images).value == pytest.approx(0.4)
    with pytest.raises(NoValue, match="no image has neighbours in its foreground"):
        region_similarity(latents, (8, 8), -torch.ones(4, 3, 32, 32))


# Images that are moved ----------------------------------------------------------------------------


def pictures(count=6, size=32):
    return torch.rand(count, 3, size, size, generator=generator(0, "images")) * 2 - 1


def mean_colours(images):
    """An encoder that turns with the image: a token is the mean colour of its patch, plus 5."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, (8, 8))
    return 5 + 2 * small.flatten(2).transpose(1, 2)


def test_an_equivariant_encoder_scores_0():
    turned = equivariance(mean_colours, pictures(), (8, 8), turns=(1, 2, 3), batch_size=4)
    assert turned.value == pytest.approx(0, abs=1e-10)
    # tokens that are pixels are scaled as the image is
    pixels = RawPixels(16, patch_size=1)
    scaled = equivariance(pixels.encode, pictures(size=16), (16, 16), scales=(0.5, 0.75))
    assert scaled.value == pytest.approx(0, abs=1e-10)


def test_a_smaller_image_is_compared_where_it_lies():
    # mean colours of patches: half the size averages 2 x 2 patches, as its latents do
    scaled = equivariance(mean_colours, pictures(), (8, 8), scales=(0.5,))
    assert scaled.value == pytest.approx(0, abs=1e-10)


def test_latents_that_do_not_move_score_2_and_those_with_patches_inside_more_than_0():
    def unrelated(images):
        """Other tokens for every image, whatever they show."""
        return torch.stack(
            [
                randn(64, 4, name=str(float(image.double().sum() + image[0, 0, 0])))
                for image in images
            ]
        )

    turned = equivariance(unrelated, pictures(40), (8, 8), turns=(1, 2, 3))
    assert turned.value == pytest.approx(2, abs=0.1)
    assert equivariance(RawPixels(32).encode, pictures(), (8, 8), turns=(1,)).value > 0.1


def test_what_cannot_be_moved_has_no_value():
    with pytest.raises(NoValue, match="4 x 16 is not square"):
        equivariance(mean_colours, pictures(), (4, 16), turns=(1,))
    with pytest.raises(NoValue, match=r"0\.75 times 2 x 2 tokens are no whole ones"):
        equivariance(mean_colours, pictures(), (2, 2), scales=(0.75,))


class EighthSize(torch.nn.Module):
    """A model with diffusers' interface: its latents are colours at an eighth of the size."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, images):
        return types.SimpleNamespace(latent=self.scale * torch.nn.functional.avg_pool2d(images, 8))

    def decode(self, latents):
        return types.SimpleNamespace(
            sample=torch.nn.functional.interpolate(latents, scale_factor=8)
        )


def test_the_grid_of_a_diffusers_model_is_read_as_an_image_is():
    tokenizer = GridTokenizer(EighthSize(), 64)
    images = pictures(size=64)
    table = grid_measures(
        tokenizer.encode(images), grid_of(tokenizer), images=images, encode=tokenizer.encode
    )
    # its latents are colours, which turn with the image, and of noise their spectrum is flat
    assert table.loc["equivariance_rotation", "value"] == pytest.approx(0, abs=1e-9)
    u, v = np.indices((8, 8))
    sec = table.loc["sec_0.5"]
    assert abs(sec["value"] - (u + v > 7).mean()) < 4 * sec["error"]


# The table ----------------------------------------------------------------------------------------


def test_the_table_has_all_entries_with_definitions_and_no_reason():
    images = pictures() * 0.5
    images[:, :, :, 20:] = 1  # white background
    pixels = RawPixels(32, patch_size=4)
    latents = pixels.encode(images)
    table = grid_measures(latents, grid_of(pixels), images=images, encode=pixels.encode)
    assert list(table.index) == list(ENTRIES)
    assert table["value"].notna().all()
    assert (table["error"] > 0).all()
    assert (table["reason"] == "").all()
    for entry, (measure, _) in ENTRIES.items():
        assert table.attrs["definitions"][entry]["measure"] == measure
        assert measure in MEASURES
    # scales and offsets of channels change nothing
    scaled = latents * torch.linspace(0.5, 3, 48) + torch.arange(48)
    again = grid_measures(scaled, (8, 8), images=images)
    np.testing.assert_allclose(
        again["value"].iloc[:7].astype(float), table["value"].iloc[:7].astype(float), rtol=1e-4
    )


def test_learnable_tokens_have_a_reason_for_each_entry():
    tokenizer = Tokenizer(TOKENIZERS["test"])
    assert grid_of(tokenizer) is None
    table = grid_measures(randn(4, *tokenizer.latent_shape), None, images=pictures(4))
    assert list(table.index) == list(ENTRIES)
    assert table["value"].isna().all()
    assert set(table["reason"]) == {NO_GRID}
    assert set(table.attrs["definitions"]) == set(ENTRIES)


def test_what_is_not_given_is_the_reason():
    table = grid_measures(randn(4, 16, 3), (4, 4))
    assert table.loc[["srss", "esm_kl"], "reason"].str.contains("give `images`").all()
    assert table["value"].notna().sum() == 5
    with_images = grid_measures(randn(4, 16, 3), (4, 4), images=pictures(4))
    assert "give its `encode`" in with_images.loc["equivariance_scale", "reason"]
    assert "foreground" in with_images.loc["srss", "reason"]
    tiny = grid_measures(randn(4, 4, 3), (2, 2))
    assert "6 steps apart" in tiny.loc["lds", "reason"]
    constant = grid_measures(torch.full((4, 16, 3), 0.1), (4, 4))
    assert "constant" in constant.loc["sec_0.5", "reason"]
    assert constant.loc["lds", "value"] == 0


def test_grids_of_tokenizers():
    assert grid_of(RawPixels(32, patch_size=4)) == (8, 8)
    assert grid_of(GridTokenizer(EighthSize(), 32)) == (4, 4)
    changes = {"latent_tokens": "patches", "masked": "replace", "num_latent_tokens": 64}
    assert grid_of(Tokenizer(override(TOKENIZERS["test"], changes))) == (8, 8)


def test_errors_say_what_was_needed():
    with pytest.raises(ValueError, match=r"needs latents \(n, 16, C\)"):
        grid_measures(randn(4, 15, 3), (4, 4))
    with pytest.raises(ValueError, match="NaN"):
        grid_measures(randn(4, 16, 3) * math.nan, (4, 4))
    with pytest.raises(ValueError, match="two images or more"):
        grid_measures(randn(1, 16, 3), (4, 4))
    with pytest.raises(ValueError, match="those of the 4 latents, not 3"):
        grid_measures(randn(4, 16, 3), (4, 4), images=pictures(3))
