"""One picture of any kind becomes 8-bit RGB of the wanted size, or is named as broken."""

import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from maetok_lab.data import readers
from maetok_lab.data.images import open_images
from maetok_lab.data.readers import (
    BrokenImageError,
    TooLargeError,
    UnknownKindError,
    center_crop,
    pad_square,
    read_rgb,
    scale_crop,
)
from maetok_lab.widgets.uploads import read_upload

ROOT = Path(__file__).parents[2]


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


# What would take far more memory or time than its file lets think ---------------------------------

LITTLE_MEMORY = """
import io, resource, sys
import numpy as np
from PIL import Image
from maetok_lab.data.readers import CROPS, read_rgb, scale_crop

def limit(megabytes):
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (megabytes << 20),) * 2)

def packed(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
"""


def run_in_little_memory(code: str) -> str:
    """What a program prints, of which `limit(megabytes)` says how much memory it may still take."""
    command = [sys.executable, "-c", LITTLE_MEMORY + code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return ended.stdout or ended.stderr


def test_a_line_of_pixels_takes_no_more_memory_than_its_own_and_the_crops():
    printed = run_in_little_memory("""
lines = [packed(Image.new("L", size, 7)) for size in ((65535, 1), (1, 65535), (1000000, 1))]
limit(150)
for line in lines:
    image = read_rgb(line)
    cut = [crop(image, 256) for crop in CROPS.values()]
    cut.append(scale_crop(image, 256, scale=0.8, down=1, across=0.3))
    print(*{picture.size for picture in cut}, cut[0].getpixel((128, 128)))
""")
    assert printed == "(256, 256) (7, 7, 7)\n" * 3


@pytest.mark.parametrize("kind", ["deep", "clear"])
def test_16_bits_and_transparency_take_at_most_three_times_the_memory_of_rgb(kind):
    # 16 million pixels: 64 MB as Pillow holds them
    printed = run_in_little_memory(f"""
images = {{"deep": Image.fromarray(np.full((4000, 4000), 25700, np.uint16)),
          "clear": Image.new("RGBA", (4000, 4000), (9, 9, 9, 0))}}
file = packed(images["{kind}"])
del images
limit(250)
print(read_rgb(file).getpixel((3999, 3999)))
""")
    assert printed == {"deep": "(100, 100, 100)\n", "clear": "(255, 255, 255)\n"}[kind]


@pytest.mark.parametrize("size", [(640, 7), (7, 640), (2000, 1), (1, 2000)])
def test_what_is_cut_first_is_what_is_cut_last(size, monkeypatch):
    across = np.add.outer(np.arange(size[1]), 3 * np.arange(size[0])) / 12
    image = Image.fromarray((127 + 120 * np.sin(across)).astype(np.uint8)).convert("RGB")
    cut = [crop(image, 24) for crop in (center_crop, pad_square)]
    cut += [scale_crop(image, 24, scale=0.81, down=d, across=1 - d) for d in (0, 0.3, 1)]
    monkeypatch.setattr(readers, "_WIDEST", 0)
    monkeypatch.setattr(readers, "_PADDED", 0)
    first = [crop(image, 24) for crop in (center_crop, pad_square)]
    first += [scale_crop(image, 24, scale=0.81, down=d, across=1 - d) for d in (0, 0.3, 1)]
    for number, (a, b) in enumerate(zip(cut, first)):
        difference = np.abs(np.asarray(a, int) - np.asarray(b, int))
        if number == 1:  # padded: the line itself lies up to a pixel elsewhere
            assert b.size == (24, 24)
        else:
            assert difference.max() <= 3


@pytest.mark.parametrize("size", [(40, 30), (64, 1), (3, 190)])
def test_ordinary_pictures_have_adms_pixels(size):
    image = picture(3, size)
    # guided-diffusion's center_crop_arr, in its own words
    expected = image
    while min(*expected.size) >= 2 * 8:
        expected = expected.resize(tuple(x // 2 for x in expected.size), Image.Resampling.BOX)
    scale = 8 / min(*expected.size)
    shape = tuple(round(x * scale) for x in expected.size)
    expected = np.array(expected.resize(shape, Image.Resampling.BICUBIC))
    top = (expected.shape[0] - 8) // 2
    left = (expected.shape[1] - 8) // 2
    assert np.array_equal(center_crop(image, 8), expected[top : top + 8, left : left + 8])


def test_strips_give_what_the_whole_gives(monkeypatch):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 17, 4), np.uint8))
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (31, 17), np.uint16))
    palette = rgba.convert("RGB").quantize(11)
    files = [png(rgba), png(rgba.convert("LA")), png(deep), saved(deep, "TIFF")]
    files += [saved(palette, "PNG", transparency=3), saved(deep, "PNG", transparency=77)]
    whole = [np.asarray(read_rgb(file)) for file in files]
    monkeypatch.setattr(readers, "_STRIP", 40)
    for file, pixels in zip(files, whole):
        assert np.array_equal(read_rgb(file), pixels)


def test_large_pictures_are_not_decoded_at_once(monkeypatch):
    monkeypatch.setattr(readers, "_ROOM", readers._Room(2000))
    at_work = []
    most = []
    to_rgb = readers.to_rgb

    def slow(image):
        at_work.append(image.width * image.height)
        most.append(sum(at_work))
        time.sleep(0.02)
        at_work.remove(image.width * image.height)
        return to_rgb(image)

    monkeypatch.setattr(readers, "to_rgb", slow)
    files = [png(picture(0, size)) for size in [(40, 20), (70, 70), (10, 10), (40, 24)] * 4]
    with ThreadPoolExecutor(8) as pool:
        sizes = [image.size for image in pool.map(read_rgb, files)]
    assert sizes == [(40, 20), (70, 70), (10, 10), (40, 24)] * 4
    assert max(most) == 4900  # more than there is room for: alone
    assert 2 * 800 <= max(total for total in most if total != 4900) <= 2000


def test_a_forked_process_has_room_though_its_parent_was_decoding():
    file = png(picture(0))
    with readers._ROOM.take(readers.MOST_PIXELS):
        child = os.fork()
        if not child:
            os._exit(0 if read_rgb(file).size == (40, 30) else 1)
        for _ in range(200):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.05)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("it waits for room that nobody gives back")
    assert status == 0


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last pass, of 16 bytes, comes again and again."""
    jpeg = saved(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * count + jpeg[-2:]


def test_a_jpeg_of_endless_scans_or_pieces_of_exif_is_refused(tmp_path):
    assert read_rgb(many_scans(20)).size == (64, 64)
    with pytest.raises(BrokenImageError, match=r"^a JPEG of 5\d+ scans; at most 100 are read$"):
        read_rgb(many_scans(5000))
    (tmp_path / "a.png").write_bytes(many_scans(5000))
    with pytest.raises(BrokenImageError, match=r"^a JPEG of 5\d+ scans"):
        read_rgb(tmp_path / "a.png")
    piece = b"\xff\xe1\0\x0aExif\0\0II"
    jpeg = saved(corner(), "JPEG")
    assert read_rgb(jpeg[:2] + piece * 3 + jpeg[2:]).size == (32, 16)
    with pytest.raises(BrokenImageError, match="a JPEG of 9000 pieces of EXIF"):
        read_rgb(jpeg[:2] + piece * 9000 + jpeg[2:])


def test_a_small_tiff_with_a_huge_tile_is_refused():
    tags = [
        (256, 10),
        (257, 10),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 40000),
        (323, 40000),
    ]
    data = zlib.compress(bytes(1000))
    tags += [(324, 8), (325, len(data))]
    data += bytes(len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    with pytest.raises(TooLargeError, match="at most 178 million can be opened"):
        read_rgb(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_files_and_pictures_that_are_too_large_are_refused_with_the_limit(tmp_path, monkeypatch):
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    file = png(picture(0))
    sums = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    huge = file[:16] + header + sums + file[33:]
    with pytest.raises(TooLargeError, match=r"^too many pixels; at most 178 million can be"):
        read_rgb(huge)
    with pytest.raises(TooLargeError, match=r"^40 x 30 pixels; at most 0 million can be opened$"):
        read_rgb(file, most_pixels=1000)
    with open(tmp_path / "a.bmp", "wb") as sparse:
        sparse.truncate(3_000_000_000)
    with pytest.raises(TooLargeError, match=r"^3.0 GB; a picture's file has at most 1.5 GB$"):
        read_rgb(tmp_path / "a.bmp")


def test_every_failure_is_one_line(monkeypatch):
    def fail(problem):
        def crop(image):
            raise problem

        return crop

    with pytest.raises(BrokenImageError, match=r"^MemoryError: there is no room for its pixels$"):
        read_rgb(png(corner()), crop=fail(MemoryError()))
    with pytest.raises(BrokenImageError, match=r"^RuntimeError: first$"):
        read_rgb(png(corner()), crop=fail(RuntimeError("first\nsecond")))
    with pytest.raises(BrokenImageError, match=r"^RecursionError: damaged$"):
        read_rgb(png(corner()), crop=fail(RecursionError()))


def test_a_line_of_pixels_among_pictures_is_read_and_one_without_room_is_named(
    tmp_path, monkeypatch
):
    for number in range(13):
        path = tmp_path / ("train" if number else "val") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number).save(path)
    Image.new("L", (65535, 1)).save(tmp_path / "train" / "line.png")
    assert len(open_images(tmp_path, image_size=64)) == 13

    def short_of_memory(image):
        if image.width == 65535:
            raise MemoryError
        return image.convert("RGB")

    monkeypatch.setattr(readers, "to_rgb", short_of_memory)
    with pytest.warns(UserWarning, match=r"broken image: train/line.png: MemoryError: there is no"):
        assert len(open_images(tmp_path, image_size=64)) == 12


# Only documented kinds are opened -----------------------------------------------------------------

SCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
%%EndComments
9 9 moveto
"""


@pytest.fixture
def started(monkeypatch):
    """The PostScript that reached Ghostscript."""
    programs = []

    def run(*arguments, **options):
        programs.append(arguments)
        return Image.new("RGB", (9, 9)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    return programs


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps"])
def test_postscript_reaches_no_program(tmp_path, started, name):
    (tmp_path / name).write_bytes(SCRIPT)
    for file in (tmp_path / name, SCRIPT):
        with pytest.raises(UnknownKindError, match=r"^no picture of a kind that can be read$"):
            read_rgb(file)
    with pytest.raises(ValueError, match=r"^a.jpg is no picture that can be read"):
        read_upload(SCRIPT, name="a.jpg", length=len(SCRIPT), limit=1 << 20, image_size=8)
    assert started == []


def test_postscript_among_pictures_is_a_broken_one(tmp_path, started):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "b.jpg")
    (tmp_path / "train" / "a.jpg").write_bytes(SCRIPT)
    with pytest.warns(UserWarning, match="broken image: train/a.jpg: no picture of a kind"):
        assert len(open_images(tmp_path, image_size=8)) == 1
    assert started == []


@pytest.mark.parametrize("kind", ["PCX", "TGA", "ICO", "SGI", "DDS", "IM", "MSP", "SPIDER"])
def test_a_kind_that_is_not_documented_is_no_picture(kind):
    image = Image.new({"MSP": "1", "SPIDER": "F"}.get(kind, "RGB"), (16, 16))
    with pytest.raises(UnknownKindError):
        read_rgb(saved(image, kind))


@pytest.mark.parametrize("kind", ["JPEG2000", "PPM", "AVIF"])
def test_an_upload_is_of_a_kind_that_its_message_names(kind):
    data = saved(Image.new("RGB", (16, 16)), kind)
    assert read_rgb(data).size == (16, 16)
    with pytest.raises(ValueError, match=r"^a is no picture that can be read \(PNG, JPEG, WebP"):
        read_upload(data, name="a", length=len(data), limit=1 << 20, image_size=8)


def test_only_the_readers_open_pictures():
    places = [*ROOT.glob("maetok_lab/**/*.py"), *ROOT.glob("data/*.py")]
    places += [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    assert len(places) > 100
    opening = {path for path in places if "Image.open(" in path.read_text(encoding="utf-8")}
    assert opening == {ROOT / "maetok_lab" / "data" / "readers.py"}
