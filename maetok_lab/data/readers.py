"""One picture from a file or bytes to 8-bit RGB of a size (Pillow).

Everything odd about picture files ends here.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


class BrokenImageError(ValueError):
    """A file or row that cannot be read as a picture; the message names it."""


def read_rgb(file: Path | str | bytes | None, *, name: str | None = None) -> Image.Image:
    """Read a picture of any mode as RGB on white, turned as its EXIF says.

    Of an animation it is the first frame. `name` stands for the file in messages. Raises
    BrokenImageError.
    """
    # a Parquet row may hold no picture
    if file is None:
        raise BrokenImageError(f"{name}: no image bytes")
    if isinstance(file, bytes):
        name = name or f"{len(file)} bytes"
        file = io.BytesIO(file)
    try:
        with Image.open(file) as image:
            image.seek(0)  # the first frame
            return to_rgb(ImageOps.exif_transpose(image))
    # Pillow's decoders raise many kinds of error for damaged files (struct.error, IndexError, ...),
    # so the kind goes into the message
    except Exception as error:
        name = name or file
        raise BrokenImageError(f"{name}: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: transparency goes on white, 16-bit grey is scaled.

    Raises ValueError for 32-bit pixels.
    """
    if image.mode == "F":
        raise ValueError(
            "32-bit float pixels have no agreed range; save the picture with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values {grey.min()}..{grey.max()} are not 16-bit")
        # Pillow's own conversion would clip at 255
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:  # of palettes too
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop the middle square as ADM does, after the short side became size (see `shrink`)."""
    image = shrink(image, size)
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


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


CROPS = {"center": center_crop, "pad": pad_square}
RESIZES = {"center": "box halving, then bicubic", "pad": "Lanczos"}
