"""Uploaded files become images, or one line that says what is wrong with them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.widgets.uploads import read_upload


def file(size=(40, 30), kind="PNG", mode="RGB", colour=(255, 0, 0)):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, kind)
    return stream.getvalue()


def read(content, **changes):
    return read_upload(
        content,
        **{"name": "cat.png", "length": len(content), "limit": 1 << 20, "image_size": 8} | changes,
    )


def test_a_picture_becomes_the_middle_square():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    stream = io.BytesIO()
    Image.fromarray(wide).save(stream, "PNG")
    image = read(stream.getvalue(), image_size=16)
    assert image.shape == (3, 16, 16)
    assert (image == 1).all()
    assert torch.equal(read(file(kind="BMP"))[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"0" * 40, b"%PDF-1.7"])
def test_no_picture_is_said_to_be_none(content):
    with pytest.raises(ValueError, match=r"^cat.png is no picture that can be read"):
        read(content)


def test_a_cut_off_picture_is_said_to_be_damaged():
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    with pytest.raises(ValueError, match="damaged"):
        read(stream.getvalue()[:3000])


def test_a_file_over_the_limit_is_refused_by_its_length_alone():
    with pytest.raises(ValueError, match=r"has 20 MB; a picture of at most 1 MB"):
        read(b"", length=20_000_000)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="has 9000 x 9000 pixels; at most 64 million"):
        read(file((9000, 9000), mode="1", colour=0))
