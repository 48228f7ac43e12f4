"""What reading pictures gives, and which of them are best read together."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from maetok_lab.pictures import from_uint8


class Blocks(NamedTuple):
    """Images that lie together in their files, and are best read together."""

    number: Tensor  # (n,) of each image's block
    at_once: int  # so many blocks are held


@dataclass(frozen=True, eq=False)
class Pictures:
    """What `ImageSource.read` gives."""

    pixels: Tensor  # (B, 3, H, W) uint8
    indices: Tensor  # (B,) of the pictures themselves: not the request's where one was broken
    broken: tuple[str, ...] = ()  # a message for each that could not be read

    @property
    def images(self) -> Tensor:
        """As float32 in [-1, 1]. -> (B, 3, H, W)"""
        return from_uint8(self.pixels)
