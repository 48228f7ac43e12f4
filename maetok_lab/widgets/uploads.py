"""A reader's own picture, from the bytes of an upload to an image; each problem is one line."""

import numpy as np
import torch

from maetok_lab.data.readers import (
    BrokenImageError,
    TooLargeError,
    UnknownKindError,
    center_crop,
    read_rgb,
)
from maetok_lab.pictures import from_uint8

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000  # a few hundred MB when decoded


def read_upload(
    content: bytes, *, name: str, length: int, limit: int, image_size: int
) -> torch.Tensor:
    """The middle square of an uploaded picture. -> (3, image_size, image_size) in [-1, 1]

    Raises ValueError, in words for the person who uploaded it, for a file over `limit` bytes, one
    of more than 64 million pixels, and one that is no picture.
    """
    if length > limit:
        raise ValueError(
            f"{name} has {length / 1e6:.0f} MB;"
            f" a picture of at most {limit / 1e6:.0f} MB can be uploaded"
        )
    # the same reading and cropping as a data set's own images, of fewer kinds and pixels
    try:
        square = read_rgb(
            content,
            crop=lambda image: center_crop(image, image_size),
            formats=FORMATS,
            most_pixels=MAX_PIXELS,
        )
    except UnknownKindError:
        raise ValueError(
            f"{name} is no picture that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF)"
        ) from None
    except TooLargeError as problem:
        raise ValueError(f"{name} has {problem}") from None
    except BrokenImageError:
        raise ValueError(f"{name} is a damaged picture: it cannot be read to its end") from None
    return from_uint8(torch.from_numpy(np.array(square)).permute(2, 0, 1))
