"""Images to patches and back: pure reshaping, no weights."""

from einops import rearrange
from torch import Tensor


def grid_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Patches down and across; ValueError when the patch does not divide the image."""
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"patches of {patch_size} px do not divide an image of {height} x {width} px"
        )
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Row-major patches. (B, 3, H, W) -> (B, patches, patch_size^2 * 3)"""
    grid_size(*images.shape[-2:], patch_size)  # einops would refuse too, in other words
    # inside a patch the channel is fastest: the release's order
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify`; `grid` is patches down and across. -> (B, 3, H, W)"""
    h, w = grid
    sizes = {"h": h, "w": w, "p": patch_size, "q": patch_size}
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", **sizes)
