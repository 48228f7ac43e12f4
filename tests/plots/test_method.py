"""The picture of the method shows what the models compute."""

import numpy as np
import pytest
import torch

from maetok_lab.analysis.masks import draw_masks
from maetok_lab.config import override
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.generation.images import generate
from maetok_lab.plots.masks import hog_picture, masked_picture, picture_of
from maetok_lab.plots.method import fade_visible, plot_method
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer

MODEL = override(TOKENIZERS["test"], {"image_size": 32, "patch_size": 4, "overlap": 2})
LOOK = {"num_steps": 8, "guidance": Guidance(2.0, 0.0, 0.75)}


@pytest.fixture(scope="module")
def parts():
    """Random weights: tokenizer, decoders, model, space, an image and its mask."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(MODEL).eval()
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), MODEL).eval()}
    sizes = {"num_tokens": MODEL.num_latent_tokens, "latent_dim": MODEL.latent_dim}
    model = DiffusionTransformer(DIFFUSION["test"], num_classes=3, **sizes).eval()
    for parameter in model.parameters():  # a fresh model's velocity is zero
        torch.nn.init.normal_(parameter, std=0.1)
    model.tokenizer_fingerprint = tokenizer.fingerprint
    width = MODEL.latent_dim
    space = LatentSpace(tokenizer.fingerprint, torch.full((width,), 0.1), torch.full((width,), 0.7))
    image = torch.rand(3, 32, 32) * 2 - 1
    mask = draw_masks(image[None], 4, ratio=0.5)[0]
    return tokenizer, decoders, model, space, image, mask


@pytest.fixture(scope="module")
def drawn(parts):
    """What each picture of the figure holds, by its name."""
    figure = plot_method(*parts, label=1, label_name="cats", seed=3, **LOOK)
    pictures = {ax.get_label(): np.asarray(ax.images[0].get_array()) for ax in figure.axes}
    return figure, pictures


def test_the_upper_row_is_an_image_its_mask_its_tokens_and_what_decoders_make_of_them(parts, drawn):
    tokenizer, decoders, _, space, image, mask = parts
    _, pictures = drawn
    with torch.inference_mode():
        latents = tokenizer.encode(image[None], mask=mask[None])
        reconstruction = tokenizer.decode(latents)[0]
        predicted = decoders["hog"](latents)[0]
        target = decoders["hog"].target(image[None])[0]
    assert np.array_equal(pictures["image"], picture_of(image))
    assert np.array_equal(pictures["visible"], masked_picture(image, mask, 4))
    assert np.allclose(pictures["latents"], space.normalise(latents)[0].numpy())
    assert np.array_equal(pictures["pixel decoder, predicted"], picture_of(reconstruction))
    assert np.array_equal(pictures["pixel decoder, target"], picture_of(image))
    for name, side in {"predicted": predicted, "target": target}.items():
        expected = fade_visible(hog_picture(side, (8, 8)), mask, (8, 8))
        assert np.array_equal(pictures[f"HOG decoder, {name}"], expected)


def test_patches_are_the_images_own_in_reading_order(parts, drawn):
    image = picture_of(parts[4])
    sheet = drawn[1]["patches"]
    for row, column in [(0, 0), (0, 3), (5, 2), (7, 7)]:
        top, left = 2 + 6 * row, 2 + 6 * column  # patches of 4 px, 2 px apart
        expected = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert np.array_equal(sheet[top : top + 4, left : left + 4], expected)


def test_the_lower_row_goes_from_noise_to_the_image_that_generate_draws(parts, drawn):
    tokenizer, _, model, space, _, _ = parts
    _, pictures = drawn
    expected = generate(model, tokenizer, space, torch.tensor([1]), seed=3, **LOOK)[0]
    assert np.abs(pictures["sample"].astype(int) - picture_of(expected)).max() <= 1
    states = [pictures[f"state at t = {t}"] for t in ("1", "0.75", "0.5", "0.25", "0")]
    decoded = tokenizer.decode(space.denormalise(torch.tensor(np.array(states[-1]))[None]))[0]
    assert np.abs(picture_of(decoded).astype(int) - pictures["sample"]).max() <= 1
    assert states[0].std() == pytest.approx(1, abs=0.2)
    guess = tokenizer.decode(space.denormalise(torch.zeros(1, *states[0].shape)))[0]
    assert np.abs(pictures["guess at t = 1"].astype(int) - picture_of(guess)).max() <= 1


def test_words_say_what_was_hidden_and_which_loss_counts(drawn):
    words = [text.get_text() for text in drawn[0].texts]
    assert {"64 patches", "50% hidden", "SiT", "noise, t = 1", "sample"} <= set(words)
    assert "loss on hidden\npatches alone" in words
    assert any("its label here is “cats”" in line for line in words)


def test_a_decoder_of_all_patches_fades_none(parts):
    tokenizer, _, model, space, image, mask = parts
    torch.manual_seed(1)
    config = AuxiliaryConfig(target="pixel", loss_on="all")
    decoder = AuxiliaryDecoder(config, MODEL).eval()
    figure = plot_method(tokenizer, {"pixel": decoder}, model, space, image, mask, label=0, **LOOK)
    words = [text.get_text() for text in figure.texts]
    assert "loss on\nall patches" in words
    assert "loss on hidden\npatches alone" not in words


def test_what_is_not_hidden_fades_to_white():
    pixels = np.zeros((4, 4, 3), np.uint8)
    faded = fade_visible(pixels, torch.tensor([True, False, False, False]), (2, 2))
    assert (faded[:2, :2] == 0).all()
    assert (faded[2:] > 200).all()
    assert (faded[:2, 2:] > 200).all()
