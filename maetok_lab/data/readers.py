"""One picture from a file or bytes to 8-bit RGB of a size (Pillow).

Everything odd about picture files ends here, and nobody else opens one. Reading a picture takes at
most about 25 bytes of memory a pixel (43 in a column of single ones); cutting it takes up to 16
more, or 270 MB.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError, features

# by how pictures are called; those that this Pillow cannot open are in UNREAD
_KINDS = {
    ".avif": "avif",
    ".bmp": None,
    ".gif": None,
    ".jfif": "jpg",
    ".jp2": "jpg_2000",
    ".jpe": "jpg",
    ".jpeg": "jpg",
    ".jpg": "jpg",
    ".pbm": None,
    ".pgm": None,
    ".png": "zlib",
    ".ppm": None,
    ".tif": None,
    ".tiff": None,
    ".webp": "webp",
}
_PLUGINS = (".heic", ".heif")  # of Pillow, where a person installed and registered one
_OTHERS = (".cr2", ".dng", ".exr", ".jxl", ".nef", ".psd", ".svg", ".tga")
SUFFIXES = frozenset(
    [suffix for suffix, feature in _KINDS.items() if feature is None or features.check(feature)]
    + [suffix for suffix in _PLUGINS if suffix in Image.registered_extensions()]
)
UNREAD = frozenset([*_KINDS, *_PLUGINS, *_OTHERS]) - SUFFIXES

# A kind that is not named here is never opened: Pillow has 43, of which one starts Ghostscript.
FORMATS = sorted({Image.registered_extensions()[suffix] for suffix in SUFFIXES})
MOST_PIXELS = 178_956_970  # of one picture, and of all that are decoded at once; Pillow's own limit
MOST_BYTES = 1_500_000_000  # of a file: so many pixels, of 8 bytes, are in no larger one
_JPEG = b"\xff\xd8"  # how one begins
_MOST_PARTS = 100  # scans of one, or pieces of its EXIF; there are about ten at most
_STRIP = 1 << 22  # pixels that are converted at a time where that takes several times their size
_WIDEST = 64  # times a crop's own pixels, to which a picture is enlarged before it is cut
_PADDED = 1 << 26  # pixels of a square around a picture, or four times the picture's

_TURNS = {  # EXIF's orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_BITS_A_SAMPLE = 258  # TIFF's tags
_PHOTOMETRIC = 262
_TILE_WIDTH = 322
_TILE_HEIGHT = 323


class BrokenImageError(ValueError):
    """A file or row that cannot be read as a picture."""


class UnknownKindError(BrokenImageError):
    """A file that is no picture of a kind that is read, as far as its head says."""


class TooLargeError(BrokenImageError):
    """A picture of more pixels, or a file of more bytes, than are read."""


class _Room:
    """Pixels that may be in memory at once: threads that decode wait until theirs have room."""

    def __init__(self, pixels: int):
        self.pixels = pixels
        self._free = pixels
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for room, and give it back in the end; a larger picture waits to be the only one."""
        pixels = min(pixels, self.pixels)
        with self._freed:
            self._freed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._free += pixels
                self._freed.notify_all()


_ROOM = _Room(MOST_PIXELS)
# a worker process begins with no picture, whatever threads of its parent were decoding
os.register_at_fork(after_in_child=lambda: _ROOM.__init__(MOST_PIXELS))


def read_rgb(
    file: Path | str | bytes | None,
    *,
    at_least: int | None = None,
    crop: Callable[[Image.Image], Image.Image] | None = None,
    formats: Collection[str] = FORMATS,
    most_pixels: int = MOST_PIXELS,
) -> Image.Image:
    """Read a picture of any mode as RGB on white, turned as its EXIF says, then cut by `crop`.

    Of an animation it is the first frame. `at_least` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of
    its size, with no side under so many pixels. Raises BrokenImageError, whose message is one line
    that says why.
    """
    # a Parquet row may hold no picture
    if file is None:
        raise BrokenImageError("no image bytes")
    try:
        with _opened(file, formats, most_pixels) as image:
            image.seek(0)  # the first frame
            pixels = _check_header(image, most_pixels)
            if at_least is not None:
                image.draft(None, (at_least, at_least))
                pixels = image.width * image.height
            # what a crop needs besides is in that room too
            with _ROOM.take(pixels):
                picture, orientation = _decoded(image)
                picture = upright(picture, orientation)
                return picture if crop is None else crop(picture)
    except BrokenImageError:
        raise
    except MemoryError as error:
        raise BrokenImageError("MemoryError: there is no room for its pixels") from error
    # Pillow's decoders raise many kinds of error for damaged files (struct.error, IndexError, ...),
    # so the kind goes into the message
    except Exception as error:
        raise BrokenImageError(_in_one_line(error)) from error


def _opened(
    file: Path | str | bytes, formats: Collection[str], most_pixels: int
) -> ImageFile.ImageFile:
    """The picture with its head read. Raises UnknownKindError, TooLargeError, MemoryError."""
    try:
        length = len(file) if isinstance(file, bytes) else os.path.getsize(file)
        if length > MOST_BYTES:  # some kinds are read whole before they are decoded
            raise TooLargeError(
                f"{length / 1e9:.1f} GB; a picture's file has at most {MOST_BYTES / 1e9:.1f} GB"
            )
        if isinstance(file, bytes):
            data = file
        else:
            with open(file, "rb") as stream:
                data = stream.read(2)
                data += stream.read() if data == _JPEG else b""
        if data.startswith(_JPEG):
            _check_jpeg(data)
        file = io.BytesIO(data) if len(data) == length else file
        return Image.open(file, formats=tuple(formats))
    except (BrokenImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(_too_large("too many pixels", most_pixels)) from error
    # its own text would hold a path, or an address in memory
    except UnidentifiedImageError as error:
        raise UnknownKindError("no picture of a kind that can be read") from error
    except Exception as error:
        raise UnknownKindError(_in_one_line(error)) from error


def _check_jpeg(data: bytes) -> None:
    """BrokenImageError for what would take hours: a pass over all pixels in a few bytes, again
    and again, or EXIF in so many pieces, each of which copies those before.
    """
    # the head of a scan is short: its length begins with a zero
    for mark, name in ((b"\xff\xda\0", "scans"), (b"Exif\0\0", "pieces of EXIF")):
        count = data.count(mark)
        if count > _MOST_PARTS:
            raise BrokenImageError(f"a JPEG of {count} {name}; at most {_MOST_PARTS} are read")


def _in_one_line(error: Exception) -> str:
    text = (str(error).splitlines() or ["damaged"])[0]
    return f"{type(error).__name__}: {text}"


def _check_header(image: ImageFile.ImageFile, most_pixels: int) -> int:
    """How many pixels will be decoded.

    BrokenImageError for what a small file would make a long work of, before that begins.
    """
    width, height = image.size
    if not width * height:
        raise BrokenImageError(f"{width} x {height} pixels: there is none")
    # a TIFF's tiles may be far larger than the picture
    tags = getattr(image, "tag_v2", {})
    pixels = max(width * height, tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0))
    if pixels > most_pixels:
        raise TooLargeError(_too_large(f"{width} x {height} pixels", most_pixels))
    return pixels


def _too_large(size: str, most_pixels: int) -> str:
    return f"{size}; at most {most_pixels // 1_000_000} million can be opened"


def _decoded(image: ImageFile.ImageFile) -> tuple[Image.Image, int]:
    """The pixels as RGB and how they lie by EXIF; the file's own pixels are let go of."""
    image.load()  # a TIFF is turned by this
    _say_profile(image)
    pixels = to_rgb(image)
    orientation = _orientation(image)
    image.im = None
    return pixels, orientation


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: transparency goes on white, 12-bit and 16-bit grey is scaled.

    Raises ValueError for 32-bit pixels.
    """
    if image.mode == "F" or _bits(image) == 32:
        raise ValueError(
            "32-bit grey pixels have no agreed range; save the picture with 8 or 16 bits"
        )
    is_deep = image.mode.startswith("I")
    if not is_deep and not image.has_transparency_data:  # of palettes too
        return image.convert("RGB")
    # strip by strip: on the way to RGB a pixel takes several times its bytes
    most = 4095 if _bits(image) == 12 else 65535
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    pixels = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if is_deep:
            strip = _scaled_grey(strip, most, white_is_zero)
        else:
            strip = strip.convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip)
        pixels.paste(strip.convert("RGB"), (0, top))
    return pixels


def _scaled_grey(image: Image.Image, most: int, white_is_zero: bool) -> Image.Image:
    """Grey of up to 16 bits, 0 to `most`, as 8-bit grey: Pillow's conversion would clip at 255."""
    grey = np.asarray(image).astype(np.int32)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"grey values {grey.min()}..{grey.max()} are not 16-bit")
    scaled = ((grey * 255 + most // 2) // most).clip(max=255)
    if white_is_zero:
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[grey == transparent] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture as its EXIF orientation (1 to 8) says; any other number leaves it."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """What EXIF or XMP says; 1 where they are damaged: the pixels are good all the same."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _bits(image: Image.Image) -> int | None:
    """Bits of a TIFF's grey sample; None for other kinds, whose mode says it."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_A_SAMPLE)
    return bits[0] if bits and len(bits) == 1 else None


def _say_profile(image: Image.Image) -> None:
    """Warn, once for each kind, of a colour profile that is not sRGB: it is not applied.

    Nor do ADM and torch-fidelity apply it: with it, no score would be comparable.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return
    try:
        name = ImageCms.getProfileDescription(io.BytesIO(profile)).strip()
    except (ImageCms.PyCMSError, OSError):
        name = "that cannot be read"
    if "srgb" not in name.lower() and image.mode in ("RGB", "RGBA", "CMYK"):
        warnings.warn(
            f"the colour profile {name} of some pictures is ignored: their pixels are read as"
            " sRGB, as everybody's scores are computed; convert the files if colours matter",
            stacklevel=2,
        )


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop the middle square as ADM does, after the short side became size (see `_halved`)."""
    image = _halved(image, size)
    width, height = _shape(image, size)
    return _cut(image, (width, height), (width - size) // 2, (height - size) // 2, size)


def fast_center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square in one bicubic step, of the part that is shown alone.

    Not ADM's pixels: a level or two from them, more for JPEGs that were decoded smaller.
    """
    side = min(image.size)
    left = (image.width - side) / 2
    top = (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def scale_crop(
    image: Image.Image, size: int, *, scale: float, down: float, across: float
) -> Image.Image:
    """Crop a square whose side is `scale` (0, 1] of the short side.

    `down` and `across` in [0, 1] say where it lies.
    """
    # The release trains on this crop, with scale drawn from 0.8 to 1 (ADM's random crop); the paper
    # says centre crop.
    short = round(size / scale)
    image = _halved(image, short)
    width, height = _shape(image, short)
    top = min(int(down * (height - size + 1)), height - size)
    left = min(int(across * (width - size + 1)), width - size)
    return _cut(image, (width, height), left, top, size)


def _halved(image: Image.Image, short: int) -> Image.Image:
    """Half a picture until its short side is under twice `short`: ADM's first step.

    Bicubic alone would alias where a picture shrinks a lot.
    """
    while min(image.size) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _shape(image: Image.Image, short: int) -> tuple[int, int]:
    """Width and height of the picture once its short side is `short`: ADM's second step."""
    factor = short / min(image.size)
    return max(short, round(image.width * factor)), max(short, round(image.height * factor))


def _cut(image: Image.Image, shape: tuple[int, int], left: int, top: int, size: int) -> Image.Image:
    """A square of the picture that was resized (bicubic) to `shape`."""
    width, height = shape
    if width * height <= max(_WIDEST * size**2, image.width * image.height):
        image = image.resize(shape, Image.Resampling.BICUBIC)
        return image.crop((left, top, left + size, top + size))
    # A line of 65535 x 1 would become 16 million pixels wide. The square alone is the same up to a
    # rounding of its place.
    across = image.width / width
    down = image.height / height
    right = min((left + size) * across, image.width)
    bottom = min((top + size) * down, image.height)
    box = (left * across, top * down, right, bottom)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def pad_square(image: Image.Image, size: int) -> Image.Image:
    """Keep the whole picture: centre it on a white square, then Lanczos (antialiased) to size."""
    side = max(image.size)
    # a line is resized before it has a square around it: that would have the square of its pixels
    if side**2 > max(4 * image.width * image.height, _PADDED):
        shape = (max(1, image.width * size // side), max(1, image.height * size // side))
        image = image.resize(shape, Image.Resampling.LANCZOS)
        side = size
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    if side == size:
        return square
    return square.resize((size, size), Image.Resampling.LANCZOS)


CROPS = {"center": center_crop, "center-fast": fast_center_crop, "pad": pad_square}
RESIZES = {
    "center": "box halving, then bicubic",
    "center-fast": "JPEG at a fraction, then bicubic",
    "pad": "Lanczos",
}
