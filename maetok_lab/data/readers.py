"""One picture from a file or bytes to 8-bit RGB of a size (Pillow).

Everything odd about picture files ends here.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError, features

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


class BrokenImageError(ValueError):
    """A file or row that cannot be read as a picture."""


def read_rgb(file: Path | str | bytes | None, *, at_least: int | None = None) -> Image.Image:
    """Read a picture of any mode as RGB on white, turned as its EXIF says.

    Of an animation it is the first frame. `at_least` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of
    its size, with no side under so many pixels. Raises BrokenImageError, whose message says why.
    """
    # a Parquet row may hold no picture
    if file is None:
        raise BrokenImageError("no image bytes")
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    try:
        with Image.open(file) as image:
            image.seek(0)  # the first frame
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()  # a TIFF is turned by this
            _say_profile(image)
            return upright(to_rgb(image), _orientation(image))
    # its own text would hold a path, or an address in memory
    except UnidentifiedImageError as error:
        raise BrokenImageError("no picture of a kind that can be read") from error
    # Pillow's decoders raise many kinds of error for damaged files (struct.error, IndexError, ...),
    # so the kind goes into the message
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: transparency goes on white, 12-bit and 16-bit grey is scaled.

    Raises ValueError for 32-bit pixels.
    """
    if image.mode == "F" or _bits(image) == 32:
        raise ValueError(
            "32-bit grey pixels have no agreed range; save the picture with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values {grey.min()}..{grey.max()} are not 16-bit")
        most = 4095 if _bits(image) == 12 else 65535
        # Pillow's own conversion would clip at 255
        scaled = ((grey * 255 + most // 2) // most).clip(max=255)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # white is zero
            scaled = 255 - scaled
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            scaled[grey == transparent] = 255
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.has_transparency_data:  # of palettes too
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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
    """Crop the middle square as ADM does, after the short side became size (see `shrink`)."""
    image = shrink(image, size)
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


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
    image = shrink(image, round(size / scale))
    top = min(int(down * (image.height - size + 1)), image.height - size)
    left = min(int(across * (image.width - size + 1)), image.width - size)
    return image.crop((left, top, left + size, top + size))


def shrink(image: Image.Image, short: int) -> Image.Image:
    """Resize so that the short side is `short`, as ADM does: box-halve first, then bicubic."""
    # bicubic alone would alias where a picture shrinks a lot
    while min(image.size) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = short / min(image.size)
    shape = (max(short, round(image.width * factor)), max(short, round(image.height * factor)))
    return image.resize(shape, Image.Resampling.BICUBIC)


def pad_square(image: Image.Image, size: int) -> Image.Image:
    """Keep the whole picture: centre it on a white square, then Lanczos (antialiased) to size."""
    side = max(image.size)
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
