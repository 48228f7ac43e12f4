"""Pictures show the protocol's pixels (sheets themselves: tests/plots/test_images.py)."""

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.pictures import from_uint8, image_grid, save_png, to_uint8


def test_uint8_survives_the_way_to_minus_one_one_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)
    assert to_uint8(torch.tensor([-9.0, 9.0, 0.5 / 127.5 - 1])).tolist() == [0, 255, 0]


def test_bf16_images_and_images_with_gradients_are_drawn_too():
    assert to_uint8(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).tolist() == [255, 255]


def test_an_image_takes_its_place_in_the_sheet():
    images = torch.linspace(-1, 1, 3 * 3 * 4 * 4).view(3, 3, 4, 4)
    sheet = image_grid(images, columns=2, padding=1, background=0)
    assert sheet.shape == (11, 11, 3)
    assert np.array_equal(sheet[6:10, 1:5], to_uint8(images[2]).permute(1, 2, 0))
    assert (sheet[6:, 6:] == 128).all()


def test_a_picture_that_cannot_be_encoded_leaves_no_file(tmp_path):
    with pytest.raises(TypeError, match="save_png wants uint8"):
        save_png(tmp_path / "x.png", np.zeros((2, 2, 3)))
    assert not list(tmp_path.iterdir())
    save_png(tmp_path / "x.png", np.full((2, 2, 3), 7, np.uint8), scale=2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.full((4, 4, 3), 7))


@pytest.mark.parametrize("rounding", ["uint8", "truncated"])
def test_bytes_stay_what_they_were(rounding):
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_uint8(from_uint8(levels), rounding).equal(levels)
