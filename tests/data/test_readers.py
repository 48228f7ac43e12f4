"""One picture of any kind becomes 8-bit RGB of the wanted size, or is named as broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maetok_lab.data.readers import BrokenImageError, center_crop, pad_square, read_rgb, scale_crop


def picture(seed: int, size=(40, 30)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_transparency_is_white_and_16_bits_are_scaled_and_exif_turns():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_rgb(png(clear)).getpixel((1, 1)) == (255, 255, 255)
    grey_alpha = Image.new("LA", (4, 4), (0, 128))
    assert read_rgb(png(grey_alpha)).getpixel((1, 1)) == (127, 127, 127)
    grey16 = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert np.asarray(read_rgb(png(grey16)))[0, :, 0].tolist() == [0, 100, 255]
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture(0, (40, 20)).save(buffer, "JPEG", exif=exif)
    assert read_rgb(buffer.getvalue()).size == (20, 40)
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG", quality=95)
    assert np.allclose(read_rgb(buffer.getvalue()).getpixel((4, 4)), (255, 0, 0), atol=6)


def test_a_16_bit_rgb_png_keeps_its_scale():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\0" + b"".join(value.to_bytes(2, "big") for value in (65535, 32896, 0))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert read_rgb(data).getpixel((0, 0)) == (255, 128, 0)


def test_why_a_picture_cannot_be_read_is_said_without_paths_and_addresses():
    with pytest.raises(BrokenImageError, match=r"^no picture of a kind that can be read$"):
        read_rgb(b"nothing")
    buffer = io.BytesIO()
    Image.new("F", (2, 2)).save(buffer, "TIFF")
    with pytest.raises(BrokenImageError, match="no agreed range"):
        read_rgb(buffer.getvalue())


@pytest.mark.parametrize("size", [(100, 30), (7, 50), (1, 1), (64, 64), (1, 300)])
def test_crops_are_square_and_central(size):
    image = picture(0, size)
    for crop in (center_crop, pad_square):
        assert crop(image, 16).size == (16, 16)
    stripes = Image.new("RGB", (96, 32), "red")
    stripes.paste("blue", (32, 0, 64, 32))
    assert np.asarray(center_crop(stripes, 16))[:, 2:-2].reshape(-1, 3).tolist() == [
        [0, 0, 255]
    ] * (16 * 12)
    assert pad_square(stripes, 48).getpixel((24, 2)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(100, 30), (7, 50), (1, 1), (40, 40)])
def test_a_scale_crop_has_its_size_wherever_it_lies(size):
    image = picture(0, size)
    for scale in (0.8, 0.93, 1.0):
        for down, across in ((0, 0), (0.999, 0.3), (1, 1)):
            assert scale_crop(image, 16, scale=scale, down=down, across=across).size == (16, 16)
    middle = scale_crop(image, 16, scale=1.0, down=0.499, across=0.499)
    assert np.array_equal(middle, center_crop(image, 16))


def test_a_scale_crop_shows_its_share_of_the_short_side_at_its_place():
    ramp = Image.fromarray(
        np.add.outer(np.arange(100), np.zeros(200)).astype(np.uint8)
    )  # the value is the row
    rows = [
        np.asarray(scale_crop(ramp, 80, scale=0.8, down=down, across=0)) for down in (0.0, 0.5, 1.0)
    ]
    assert [cropped[0, 0].item() for cropped in rows] == [0, 10, 20]
    assert [cropped[-1, 0].item() for cropped in rows] == [79, 89, 99]
    columns = Image.fromarray(np.add.outer(np.zeros(100), np.arange(200)).astype(np.uint8))
    assert [
        np.asarray(scale_crop(columns, 80, scale=0.8, down=0, across=a))[0, 0].item()
        for a in (0, 1)
    ] == [0, 120]
