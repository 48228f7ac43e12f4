"""Images to patches and back: pure reshaping, no weights."""

import torch
from einops import rearrange


def grid_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Patches down and across; ValueError when the patch does not divide the image."""
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"patches of {patch_size} px do not divide an image of {height} x {width} px"
        )
    return height // patch_size, width // patch_size


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Row-major patches, channel fastest inside (the release's order). (B, 3, H, W) -> (B, patches, patch_size^2 * 3)"""
    grid_size(*images.shape[-2:], patch_size)
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: torch.Tensor, grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """The inverse of `patchify`. (B, patches, patch_size^2 * 3) -> (B, 3, H, W)"""
    return rearrange(
        patches,
        "b (h w) (p q c) -> b c (h p) (w q)",
        h=grid[0],
        w=grid[1],
        p=patch_size,
        q=patch_size,
    )
