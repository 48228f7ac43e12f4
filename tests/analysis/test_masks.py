"""Masks by ratio and by class of patch, the study of one image, and the curve over many."""

import pytest
import torch

from maetok_lab.analysis.masks import (
    HIDE_ORDERS,
    MASK_KINDS,
    PATCH_CLASSES,
    draw_masks,
    hide_order,
    image_targets,
    masks_along,
    patch_contrast,
    ratio_curve,
    reconstruct_masked,
    study_mask,
)
from maetok_lab.config import override
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.tokenizer.anatomy import token_statistics
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.targets import hog

# 8 x 8 patches of 4 px
MODEL = override(TOKENIZERS["test"], {"image_size": 32, "patch_size": 4, "overlap": 2})


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(MODEL).eval()


@pytest.fixture(scope="module")
def decoders():
    torch.manual_seed(1)
    return {"hog": AuxiliaryDecoder(AuxiliaryConfig(), MODEL).eval()}


@pytest.fixture(scope="module")
def images():
    """Left half white, right half noise of two strengths: all classes of patches."""
    draw = torch.Generator().manual_seed(2)
    pictures = torch.ones(6, 3, 32, 32)
    pictures[:, :, :16, 16:] = 0.1 * torch.randn(6, 3, 16, 16, generator=draw)
    pictures[:, :, 16:, 16:] = torch.rand(6, 3, 16, 16, generator=draw) * 2 - 1
    return pictures


def quarters(mask):
    """Share hidden of the flat half, the soft and the busy quarter. mask (64,)"""
    square = mask.view(8, 8).float()
    return square[:, :4].mean().item(), square[:4, 4:].mean().item(), square[4:, 4:].mean().item()


def test_contrast_is_the_spread_inside_a_patch_and_no_colour(images):
    contrast = patch_contrast(images, 4)
    assert contrast.view(6, 8, 8)[:, :, :4].max() == 0
    assert 0.05 < contrast.view(6, 8, 8)[:, :4, 4:].mean() < 0.15
    gradient = torch.zeros(1, 3, 4, 4)
    gradient[:, 1] = 1.0
    assert patch_contrast(gradient, 4).item() == 0


@pytest.mark.parametrize(("kind", "place"), [("flat", 0), ("soft", 1), ("busy", 2)])
def test_a_class_of_patches_is_hidden_by_its_own_share(images, kind, place):
    for ratio in (0.0, 0.5, 1.0):
        for mask in draw_masks(images, 4, kind=kind, ratio=ratio):
            shares = quarters(mask)
            assert shares[place] == ratio
            assert sum(shares) == ratio, "no other class is touched"


@pytest.mark.parametrize("kind", ["random", *PATCH_CLASSES])
def test_a_higher_ratio_hides_the_same_patches_and_more(images, kind):
    less, more = (draw_masks(images, 4, kind=kind, ratio=ratio, seed=3) for ratio in (0.3, 0.7))
    assert (less <= more).all()
    assert less.sum() < more.sum()


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_masks_follow_their_seed(images, kind):
    first, same, other = (
        draw_masks(images, 4, kind=kind, ratio=0.4, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    if kind in ("random", "block"):
        assert first.sum(1).tolist() == [26] * 6


def test_what_is_no_mask_says_so(images):
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 1.5"):
        draw_masks(images, 4, ratio=1.5)
    with pytest.raises(ValueError, match="did you mean 'busy'"):
        draw_masks(images, 4, kind="bussy", ratio=0.5)


def test_a_study_is_the_tokenizers_own_answer(tokenizer, decoders, images):
    image, mask = images[0], draw_masks(images[:1], 4, ratio=0.5)[0]
    with torch.inference_mode():
        statistics = token_statistics(tokenizer.encode(images))
        whole, latents = (
            tokenizer.encode(images[:1])[0],
            tokenizer.encode(images[:1], mask=mask[None])[0],
        )
        reconstruction = tokenizer.decode(latents[None])[0]

        def distance(a, b):
            return (a - b).abs().flatten(1).mean(1)

        study = study_mask(tokenizer, image, mask, statistics, decoders=decoders, distance=distance)
        torch.testing.assert_close(study.reconstruction, reconstruction)
        torch.testing.assert_close(study.latents, latents)
        torch.testing.assert_close(study.predictions["hog"], decoders["hog"](latents[None])[0])
    assert study.hidden == 0.5
    assert study.psnr == pytest.approx(psnr(reconstruction[None], image[None]).item())
    assert study.perceptual == pytest.approx((reconstruction - image).abs().mean().item(), rel=1e-5)
    torch.testing.assert_close(
        study.moved, ((latents - whole) / statistics.std).square().mean(-1).sqrt()
    )
    torch.testing.assert_close(study.targets["hog"], hog(image[None], 4, 4)[0])
    assert study.error.shape == (32, 32)
    without = study_mask(tokenizer, image, mask, statistics)
    assert (without.perceptual, without.predictions) == (None, {})


def test_what_was_computed_before_is_taken(tokenizer, decoders, images):
    statistics = token_statistics(tokenizer.encode(images).detach())
    mask = torch.zeros(64, dtype=torch.bool)
    computed = {"whole": torch.zeros(32, 4), "targets": image_targets(decoders, images[1])}
    study = study_mask(tokenizer, images[0], mask, statistics, decoders=decoders, **computed)
    torch.testing.assert_close(
        study.moved, (study.latents / statistics.std).square().mean(-1).sqrt()
    )
    assert study.targets["hog"] is computed["targets"]["hog"]


def test_the_curve_is_the_mean_over_images_of_the_same_scores(tokenizer, images):
    def distance(a, b):
        return (a - b).square().flatten(1).mean(1)

    curve = ratio_curve(
        tokenizer, images, kind="busy", ratios=(0.0, 1.0), seed=1, distance=distance, batch_size=4
    )
    assert curve["ratio"].tolist() == [0.0, 1.0]
    assert curve["hidden"].tolist() == [0.0, 0.25]
    with torch.inference_mode():
        reconstructions = tokenizer(
            images, mask=draw_masks(images, 4, kind="busy", ratio=1.0, seed=1)
        )
    scores = psnr(reconstructions, images)
    assert curve["psnr"][1] == pytest.approx(scores.mean().item(), rel=1e-5)
    assert curve["psnr_error"][1] == pytest.approx(scores.std().item() / 6**0.5, rel=1e-4)
    assert curve["perceptual"][1] == pytest.approx(
        distance(reconstructions, images).mean().item(), rel=1e-5
    )
    assert "perceptual" not in ratio_curve(tokenizer, images, ratios=(0.5,))


@pytest.mark.parametrize("kind", HIDE_ORDERS)
def test_a_slider_hides_each_patch_once_and_none_comes_back(kind, small_image):
    order = hide_order(small_image, 8, kind=kind)
    assert sorted(order.tolist()) == list(range(64))
    masks = masks_along(order, 33)
    assert masks.sum(1).tolist() == list(range(0, 65, 2))
    assert (masks[1:] | ~masks[:-1]).all()
    assert hide_order(small_image, 8, kind=kind).equal(order)


def test_flat_and_detail_first_are_orders_of_contrast_and_a_block_is_a_square(small_image):
    contrast = patch_contrast(small_image[None], 8)[0]
    for kind, sign in {"flat first": 1, "detail first": -1}.items():
        ordered = sign * contrast[hide_order(small_image, 8, kind=kind)]
        assert (ordered.diff() >= -1e-5).all()
    nine = torch.zeros(64, dtype=torch.bool)
    nine[hide_order(small_image, 8, kind="block")[:9]] = True
    rows, columns = nine.view(8, 8).nonzero().T
    assert rows.max() - rows.min() == columns.max() - columns.min() == 2
    with pytest.raises(ValueError, match="unknown order of hiding 'spiral'"):
        hide_order(small_image, 8, kind="spiral")


def test_one_image_under_many_masks_is_each_mask_alone(small_image):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZERS["test"]).eval()
    masks = masks_along(hide_order(small_image, 8, kind="scattered"), 5)
    images, scores = reconstruct_masked(tokenizer, small_image, masks, batch_size=2)
    for mask, image, score in zip(masks, images, scores):
        with torch.inference_mode():
            alone = tokenizer(small_image[None], mask=mask[None])
        torch.testing.assert_close(image[None], alone)
        assert score == pytest.approx(psnr(alone, small_image[None]).item(), abs=1e-3)


@pytest.fixture
def small_image():
    draw = torch.Generator().manual_seed(0)
    image = torch.ones(3, 64, 64)
    image[:, 16:40, 8:48] = torch.rand(3, 24, 40, generator=draw) * 2 - 1
    return image
