"""One picture of any kind becomes 8-bit RGB of the wanted size, or is named as broken."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

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


# What is odd about picture files ------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner() -> Image.Image:
    """A black picture, 32 wide and 16 high, whose upper left quarter is white."""
    image = Image.new("RGB", (32, 16))
    image.paste("white", (0, 0, 16, 8))
    return image


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("number", range(1, 9))
def test_every_orientation_is_undone_in_every_kind_of_file(kind, number):
    actual = read_rgb(saved(corner(), kind, exif=oriented(number)))
    # where the white quarter is in a picture that is to be turned like that
    turned = {5: (16, 32), 6: (16, 32), 7: (16, 32), 8: (16, 32)}.get(number, (32, 16))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1)}
    across, down = corners.get(number, (0, 1))
    width, height = turned
    assert actual.size == turned
    place = (width * (1 + 2 * across) // 4, height * (1 + 2 * down) // 4)
    assert min(actual.getpixel(place)) > 200
    opposite = (width * (3 - 2 * across) // 4, height * (3 - 2 * down) // 4)
    assert max(actual.getpixel(opposite)) < 50


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_or_odd_exif_costs_no_picture(exif):
    assert read_rgb(saved(corner(), "JPEG", exif=exif)).size == (32, 16)
    for number in (0, 9, 600):
        assert read_rgb(saved(corner(), "JPEG", exif=oriented(number))).size == (32, 16)


def test_an_orientation_in_xmp_alone_counts():
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
        'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    assert read_rgb(saved(corner(), "JPEG", xmp=xmp.encode())).size == (16, 32)


def test_grey_of_12_bits_is_scaled_by_12_and_of_32_is_refused():
    ramp = np.array([[0, 1606, 4095]], dtype=np.uint16)
    twelve = tiff_of_12_bits(ramp)
    assert np.asarray(read_rgb(twelve))[0, :, 0].tolist() == [0, 100, 255]
    for mode, kind in (("I", np.int32), ("F", np.float32)):
        image = Image.fromarray(np.array([[0, 200]], dtype=kind), mode=None)
        assert image.mode == mode
        with pytest.raises(BrokenImageError, match="32-bit grey pixels have no agreed range"):
            read_rgb(saved(image, "TIFF"))


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """An uncompressed grey TIFF; two 12-bit samples are three bytes, rows are padded."""
    height, width = values.shape
    rows = b""
    for row in values.tolist():
        bits = "".join(f"{value:012b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(rows))]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
                       for tag, value in tags)  # fmt: skip
    start = 8 + len(rows)
    header = b"II*\0" + struct.pack("<I", start)
    return header + rows + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def test_transparent_16_bit_grey_is_on_white():
    grey = Image.fromarray(np.array([[300, 25700]], dtype=np.uint16))
    actual = read_rgb(saved(grey, "PNG", transparency=300))
    assert np.asarray(actual)[0, :, 0].tolist() == [255, 100]


def test_a_colour_profile_that_is_not_srgb_is_said_to_be_ignored():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = read_rgb(saved(corner(), "PNG", icc_profile=srgb))
    other = srgb.replace(b"s\0R\0G\0B\0", b"W\0i\0d\0e\0").replace(b"sRGB", b"Wide")
    with pytest.warns(UserWarning, match="colour profile .* of some pictures is ignored"):
        actual = read_rgb(saved(corner(), "PNG", icc_profile=other))
    assert np.array_equal(actual, plain)
