"""Every control of the mask studio changes the pictures as the plain functions say; quickly."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from maetok_lab.analysis.masks import draw_masks, ratio_curve
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.plots.masks import (
    ERROR_LIMIT,
    heat_picture,
    hog_picture,
    masked_picture,
    picture_of,
)
from maetok_lab.tokenizer.anatomy import Surgery, error_map, footprint, occlusion, operate
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.foreign import RawPixels
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.perceptual import make_perceptual
from maetok_lab.widgets.front import png_bytes
from maetok_lab.widgets.mask_controls import LARGE, OWN
from maetok_lab.widgets.mask_studio import MaskStudio


def make_studio(images, preset="test", **changes):
    torch.manual_seed(0)
    model = TOKENIZERS[preset]
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), model).eval()}
    return MaskStudio(Tokenizer(model), images, **{"decoders": decoders} | changes)


@pytest.fixture
def studio(small_images):
    studio = make_studio(small_images)
    assert studio.view
    return studio


@torch.inference_mode()
def reconstruct(studio, image, mask):
    return studio.tokenizer.decode(studio.tokenizer.encode(image[None], mask=mask[None]))[0]


def shows(studio, name, expected):
    if name in ("patches", "tokens"):
        png = getattr(studio.controls, name).picture
    else:
        png = studio.pictures[name].image.value
    return png == png_bytes(expected, size=LARGE)


def assert_shows_mask(studio, image, mask):
    """All pictures that depend on the mask are those of this image and this mask."""
    reconstruction = reconstruct(studio, image, mask)
    assert shows(studio, "patches", masked_picture(image, mask, 8))
    assert shows(studio, "reconstruction", picture_of(reconstruction))
    assert shows(studio, "error", heat_picture(error_map(image, reconstruction), limit=ERROR_LIMIT))
    with torch.inference_mode():
        latents = studio.tokenizer.encode(image[None], mask=mask[None])
        predicted = studio.decoders["hog"](latents)[0]
    assert shows(studio, "hog: predicted", hog_picture(predicted, (8, 8)))
    assert studio.controls.patches.hidden == mask.nonzero()[:, 0].tolist()
    score = psnr(reconstruction[None], image[None]).item()
    assert f"{int(mask.sum())} of 64 hidden" in studio.summary.value
    assert f"{score:.2f} dB" in studio.pictures["reconstruction"].caption.value
    (ring,) = studio.charts["psnr"].spec["points"]
    assert ring["x"] == mask.float().mean().item()
    assert ring["y"] == pytest.approx(score)


def test_ratio_kind_and_seed_draw_the_mask_that_is_shown(studio, small_images):
    see, now = studio.controls, {"ratio": 0.5, "kind": "random", "seed": 0}
    assert_shows_mask(studio, small_images[0], draw_masks(small_images[:1], 8, **now)[0])
    for name, value in {"ratio": 0.75, "kind": "block", "seed": 7}.items():
        getattr(see, name).value = value
        now[name] = value
        assert_shows_mask(studio, small_images[0], draw_masks(small_images[:1], 8, **now)[0])
    see.kind.value = "busy"
    expected = ratio_curve(studio.tokenizer, small_images, kind="busy")
    assert studio.charts["psnr"].spec["lines"][0]["y"] == expected["psnr"].tolist()


def test_another_image_is_shown_under_a_mask(studio, small_images):
    studio.controls.image.value = 5
    assert_shows_mask(studio, small_images[5], draw_masks(small_images[5:6], 8, ratio=0.5)[0])
    assert shows(studio, "hog: target", hog_picture(studio.targets["hog"], (8, 8)))


def test_brushed_patches_are_hidden_and_the_ratio_takes_over_again(studio, small_images):
    hidden = [3, 4, 12]
    studio.controls.patches.hidden = hidden
    mask = torch.zeros(64, dtype=torch.bool)
    mask[hidden] = True
    assert_shows_mask(studio, small_images[0], mask)
    studio.controls.ratio.value = 0.25
    assert_shows_mask(studio, small_images[0], draw_masks(small_images[:1], 8, ratio=0.25)[0])


def test_a_picked_patch_shows_the_tokens_that_carry_it_and_a_picked_token_where_it_draws(
    studio, small_images
):
    see, image = studio.controls, small_images[0]
    assert studio.pictures["draws"].box.layout.visibility == "hidden"
    moved = studio.study.moved
    assert shows(studio, "tokens", heat_picture(moved.view(4, 8)))
    see.touch.value = "pick"
    assert see.patches.mode == "pick"
    see.patches.last, see.patches.selection = 18, [18]
    carried = occlusion(studio.tokenizer, image, patch_size=8, std=studio.statistics.std)
    assert shows(studio, "tokens", heat_picture(carried[:, 18].view(4, 8)))
    see.tokens.last, see.tokens.selection = 6, [2, 6]
    drawn = footprint(studio.tokenizer, studio.whole, studio.statistics.mean, patch_size=8)
    assert shows(studio, "draws", heat_picture(drawn[6].view(8, 8)))
    assert "where token 6 draws" in studio.pictures["draws"].caption.value
    assert studio.pictures["draws"].box.layout.visibility == "visible"
    see.touch.value = "brush"
    assert shows(studio, "tokens", heat_picture(moved.view(4, 8)))


@pytest.mark.parametrize("kind", ["drop", "swap", "interpolate", "noise"])
def test_surgery_decodes_the_changed_tokens(studio, small_images, kind):
    see = studio.controls
    see.tokens.last, see.tokens.selection = 3, [0, 3]
    see.other.value, see.amount.value, see.surgery.value = 4, 0.75, kind
    with torch.inference_mode():
        mask = draw_masks(small_images[:1], 8, ratio=0.5)
        latents = studio.tokenizer.encode(small_images[:1], mask=mask)[0]
        other = studio.tokenizer.encode(small_images[4:5])[0]
        surgery = Surgery(kind=kind, tokens=(0, 3), amount=0.75)
        changed = operate(latents, surgery, studio.statistics, other=other)
        expected = studio.tokenizer.decode(changed[None])[0]
    assert shows(studio, "operated", picture_of(expected))
    assert not shows(studio, "operated", picture_of(studio.study.reconstruction))


def upload(studio, content, name="mine.png", length=None):
    """As a browser sends it: bytes arrive as a memoryview."""
    sent = studio.controls.upload
    length = len(content) if length is None else length
    sent.set_state(
        {"name": name, "length": length, "content": memoryview(content), "serial": sent.serial + 1}
    )


def test_an_uploaded_picture_is_studied(studio):
    stream = io.BytesIO()
    colours = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(colours).save(stream, "PNG")
    upload(studio, stream.getvalue())
    assert studio.controls.image.value == OWN
    assert np.array_equal(picture_of(studio.image), colours)
    assert_shows_mask(studio, studio.image, draw_masks(studio.image[None], 8, ratio=0.5)[0])
    studio.controls.image.value = 0
    assert studio.message.value == ""


def test_what_cannot_be_uploaded_is_said_in_the_widget_and_changes_nothing(studio, small_images):
    before = studio.controls.patches.picture
    for content, length, words in (
        (b"no <picture>", None, "is no picture"),
        (b"", 50_000_000, "has 50 MB"),
    ):
        upload(studio, content, name="<b>x", length=length)
        assert words in studio.message.value
        assert "&lt;b&gt;x" in studio.message.value
        assert studio.controls.patches.picture == before
    assert studio.controls.image.value == 0


def test_every_quick_move_is_answered_and_the_last_is_shown(studio, small_images):
    before = studio.computed
    for step in range(1, 11):
        studio.controls.ratio.value = step * 0.05
    assert studio.computed - before == 10
    assert_shows_mask(studio, small_images[0], draw_masks(small_images[:1], 8, ratio=0.5)[0])


def test_all_is_there_when_the_widgets_are_made(small_images):
    """What comes later than a widget's creation is lost on a busy page."""
    studio = make_studio(small_images)
    mask = draw_masks(small_images[:1], 8, ratio=0.5)[0]
    for control in (studio.controls.patches, studio.controls.tokens):
        assert len(control.picture) > 100
    assert studio.controls.patches.hidden == mask.nonzero()[:, 0].tolist()
    reconstruction = picture_of(reconstruct(studio, small_images[0], mask))
    assert shows(studio, "reconstruction", reconstruction)
    assert "view" not in vars(studio)


@pytest.mark.slow
def test_a_move_is_answered_within_a_tenth_of_a_second_at_tiny(small_images):
    """Timed with all it draws: HOG decoder, perceptual distance, PNGs; the project's limits."""
    distance = make_perceptual(LossConfig(perceptual="squeezenet"))
    studio = make_studio(small_images, "tiny", distance=distance)
    assert studio.view
    for _ in range(4):  # what else this machine does only adds: one quiet minute is enough to know
        seconds = []
        for step in range(60):
            start = time.perf_counter()
            studio.controls.ratio.value = (step * 7 % 19 + 1) * 0.05
            seconds.append(time.perf_counter() - start)
        if np.percentile(seconds, 95) <= 0.2:
            break
    assert studio.computed >= 55
    assert np.median(seconds) <= 0.1
    assert np.percentile(seconds, 95) <= 0.2


def test_the_twin_is_the_same_state_as_a_figure(studio):
    import matplotlib.pyplot

    matplotlib.use("Agg")
    studio.controls.ratio.value = 0.25
    figure = studio.twin()
    assert figure.axes[1].get_title() == "seen (25% hidden)"
    assert figure.axes[2].get_title() == f"reconstruction, {studio.study.psnr:.1f} dB"
    matplotlib.pyplot.close(figure)


def test_every_control_has_a_label(studio):
    for name, control in vars(studio.controls).items():
        assert getattr(control, "label", "") or getattr(control, "description", ""), name


def test_a_tokenizer_without_masks_is_refused(small_images):
    with pytest.raises(TypeError, match="a RawPixels sees all"):
        MaskStudio(RawPixels(32), small_images)
