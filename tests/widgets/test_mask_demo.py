"""The mask demo shows what both tokenizers make of a mask; its still goes on without a kernel."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("anywidget")

from maetok_lab.analysis.masks import HIDE_ORDERS, hide_order, masks_along
from maetok_lab.config import override
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.plots.masks import picture_of
from maetok_lab.tokenizer.anatomy import footprint
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.widgets.front import UPLOAD_LIMIT
from maetok_lab.widgets.mask_demo import OWN, MaskDemo


@pytest.fixture
def demo(small_images):
    torch.manual_seed(0)
    pair = [Tokenizer(TOKENIZERS["test"]) for _ in range(2)]
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), TOKENIZERS["test"]).eval()}
    return MaskDemo(*pair, small_images, decoders=decoders, count=4, num_ratios=5)


@torch.inference_mode()
def expected(demo, name, mask):
    image = demo.image[None]
    rebuilt = demo.tokenizers[name](image, mask=mask[None])
    return picture_of(rebuilt[0]), psnr(rebuilt, image).item()


def shows(demo, pixels, mask, sheet, column):
    """Both pictures are in that place of the sheet, masked above plain."""
    sheet = pixels(sheet).astype(int)
    for row, name in enumerate(demo.tokenizers):
        picture, _ = expected(demo, name, mask)
        part = sheet[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        # the batch rounds otherwise than one image alone
        assert np.abs(part - picture).max() <= 1


def test_every_ratio_is_there_when_the_page_is_made(demo, pixels, small_images):
    study = demo.view.study
    order = hide_order(small_images[0], 8, kind="scattered")
    masks = masks_along(order, 5)
    assert np.frombuffer(study["masks"], np.uint8).reshape(5, 64).tolist() == masks.int().tolist()
    assert study["hidden"] == [0, 0.25, 0.5, 0.75, 1]
    for step, mask in enumerate(masks):
        shows(demo, pixels, mask, study["sheet"], step)
        for name, scores in zip(demo.tokenizers, study["psnr"]):
            assert scores[step] == pytest.approx(expected(demo, name, mask)[1], abs=1e-3)
    assert np.array_equal(pixels(study["original"]), picture_of(small_images[0]))
    assert demo.view.step == 2
    assert pixels(demo.view.thumbnails).shape == (64, 4 * 64, 3)


def test_a_tokens_tile_is_its_footprint(demo):
    levels = np.frombuffer(demo.view.study["footprint"], np.uint8).reshape(32, 64)
    masked = demo.tokenizers["masked"]
    with torch.inference_mode():
        drawn = footprint(
            masked, masked.encode(demo.image[None])[0], demo.statistics.mean, patch_size=8
        )
    assert levels.max(1).tolist() == [255] * 32
    strongest = drawn / drawn.amax(1, keepdim=True)
    np.testing.assert_allclose(levels / 255, strongest, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("kind", HIDE_ORDERS)
def test_another_picture_and_order_are_studied(demo, pixels, kind):
    demo.view.set_state({"choice": {"picture": 3, "kind": kind}})
    order = hide_order(demo.pictures[3], 8, kind=kind)
    shows(demo, pixels, masks_along(order, 5)[3], demo.view.study["sheet"], 3)


def test_a_brushed_mask_is_answered(demo, pixels):
    brushed = [1] * 10 + [0] * 54
    demo.view.set_state({"brushed": brushed})
    answer = demo.view.answer
    assert answer["mask"] == brushed
    pictures = pixels(answer["pictures"])
    assert pictures.shape == (64, 128, 3)
    for column, (name, score) in enumerate(zip(demo.tokenizers, answer["psnr"])):
        picture, alone = expected(demo, name, demo.mask)
        part = pictures[:, 64 * column : 64 * column + 64].astype(int)
        assert np.abs(part - picture).max() <= 1
        assert score == pytest.approx(alone, abs=1e-3)


def test_the_deeper_part_is_computed_while_it_is_open(demo):
    demo.view.set_state({"question": {"open": False, "step": 3, "brushed": []}})
    assert demo.view.deeper["titles"] == []
    demo.view.set_state({"question": {"open": True, "step": 3, "brushed": []}})
    assert demo.view.deeper["titles"] == [
        "edges (HOG), read off the tokens",
        "edges (HOG), of the whole picture",
    ]
    assert demo.step == 3


def upload(demo, content, length=None):
    length = len(content) if length is None else length
    sent = {"name": "<b>x", "length": length, "content": memoryview(content), "serial": 1}
    demo.view.set_state({"upload": sent})


def test_ones_own_picture_is_studied_and_what_is_none_is_said(demo, pixels):
    file = io.BytesIO()
    colours = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(colours).save(file, "PNG")
    upload(demo, file.getvalue())
    assert demo.view.choice["picture"] == OWN
    assert np.array_equal(pixels(demo.view.study["original"]), colours)
    demo.view.set_state({"choice": {"picture": OWN, "kind": "block"}})
    assert np.array_equal(pixels(demo.view.study["original"]), colours)
    before = demo.view.study
    upload(demo, b"", UPLOAD_LIMIT + 1)
    assert "<b>x has 8 MB" in demo.view.message  # the page shows it as text
    assert demo.view.study is before


def test_a_still_holds_the_whole_state(demo):
    text = demo.still()
    assert len(text) < 2e6
    state = json.loads(re.search(r"<script type='application/json'[^>]*>(.*?)</script>", text)[1])
    assert base64.b64decode(state["study"]["sheet"]["base64"]) == demo.view.study["sheet"]
    assert state["step"] == 2
    assert "<img alt='' src='data:image/png;base64," in text


def test_each_move_of_the_page_renews_what_is_stored(demo, monkeypatch):
    moves = []
    monkeypatch.setattr(demo, "moved", lambda: moves.append((demo.step, demo.kind)))
    demo.view.set_state({"step": 4})
    demo.view.set_state({"choice": {"picture": 1, "kind": "block"}})
    demo.view.set_state({"brushed": [1] * 64})
    assert moves == [(4, "scattered"), (4, "block"), (4, "block")]


def test_tokenizers_that_cut_images_otherwise_are_refused(small_images):
    other = override(TOKENIZERS["test"], {"patch_size": 16})
    with pytest.raises(ValueError, match=r"one image size and patch size, not \(64, 8\) and"):
        MaskDemo(Tokenizer(TOKENIZERS["test"]), Tokenizer(other), small_images)
