"""Images as a grid of patches, and what tells a token where on it, or in a row, it is.

A rotation is a pair (cos, sin), each (heads or 1, S, head_dim / 2) or with a leading batch axis;
`rotate` applies it to adjacent channel pairs (2i, 2i + 1). Tokens that have no place on the grid
(class, latents) get cos 1 and sin 0.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]


# ---- images to patches and back: pure reshaping ----
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


def unpatchify(
    patches: Tensor, grid: tuple[int, int], patch_size: int, *, overlap: int = 0
) -> Tensor:
    """The inverse of `patchify`; `grid` is patches down and across. -> (B, 3, H, W)

    With `overlap` each patch is that many pixels larger on every side, and where patches meet one
    is faded into the other: (B, patches, (patch_size + 2 overlap)^2 * 3), float32.
    """
    h, w = grid
    if not overlap:
        sizes = {"h": h, "w": w, "p": patch_size, "q": patch_size}
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", **sizes)
    side = patch_size + 2 * overlap
    window = fading_window(patch_size, overlap, device=patches.device).flatten()[:, None]

    def add_up(columns: Tensor) -> Tensor:
        size = (h * patch_size, w * patch_size)
        return nn.functional.fold(columns, size, side, padding=overlap, stride=patch_size)

    columns = rearrange(patches.float(), "b n (s c) -> b c s n", s=side**2) * window
    # at the edges of the image no neighbour adds its share
    shares = add_up(window.expand(-1, h * w)[None])
    return add_up(columns.flatten(1, 2)) / shares


def fading_window(patch_size: int, overlap: int, *, device: torch.device | None = None) -> Tensor:
    """Shares of a patch in its pixels: 1 inside, falling to 0 over `2 overlap`; those of neighbours
    add up to 1. -> (patch_size + 2 overlap,) squared
    """
    ramp = torch.arange(2 * overlap, device=device) + 0.5
    rising = (torch.pi / 2 * ramp / (2 * overlap)).sin().square()
    inside = torch.ones(patch_size - 2 * overlap, device=device)
    line = torch.cat([rising, inside, rising.flip(0)])
    return line[:, None] * line


# ---- fixed tables, added to the tokens ----
def sincos_1d(positions: Tensor, width: int, *, base: float = 10000.0) -> Tensor:
    """Sine at even, cosine at odd channels, as the released SiT has it. (N,) -> (N, width)"""
    # float64: the table is made once, and powers in float32 would be wrong in their last bits
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = positions.double()[:, None] * base**-exponents
    waves = [angles.sin(), angles.cos()]
    return torch.stack(waves, dim=-1).flatten(1).float()


def sincos_2d(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Half of the channels for the row, half for the column; width divisible by 4.

    rows, columns (N,) -> (N, width)
    """
    # Wavelengths from 2 pi to 2 pi * base: 100 suits grids of tens of patches, where most channels
    # of ViT's 10000 would hardly turn.
    down = sincos_1d(rows, width // 2, base=100.0)
    across = sincos_1d(columns, width // 2, base=100.0)
    return torch.cat([down, across], dim=1)


def dit_sincos_2d(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """DiT's and MAE's table, base 10000: half of the channels for the column, half for the row.

    In each half sines come first, then cosines. rows, columns (N,) -> (N, width)
    """
    parts = []
    for positions in (columns, rows):
        waves = sincos_1d(positions, width // 2)
        parts += [waves[:, 0::2], waves[:, 1::2]]
    return torch.cat(parts, dim=1)


def grid_positions(
    height: int, width: int, *, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, row by row, as floats: two tensors (height * width,)."""
    index = torch.arange(height * width, device=device)
    return (index // width).float(), (index % width).float()


# ---- rotations of queries and keys ----
def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate adjacent channel pairs. x (B, heads, S, head_dim) -> the same shape and dtype"""
    cos, sin = rotation
    if x.device.type == "cpu":
        # The same as one product of complex numbers, in float32: five times as fast here, while
        # compilers for GPUs know no complex numbers.
        pairs = x.float().unflatten(-1, (-1, 2))  # (B, heads, S, head_dim / 2, 2)
        turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    # in x's own precision: in float32 this took a third of a bf16 tokenizer's time
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return pairs.flatten(-2)


def pad_rotation(rotation: Rotation, before: int, after: int) -> Rotation:
    """The same rotation with `before` and `after` unrotated tokens around it."""
    cos, sin = rotation
    pad = (0, 0, before, after)  # of the token axis, the second to last
    cos = nn.functional.pad(cos, pad, value=1.0)
    return cos, nn.functional.pad(sin, pad)


def take_rotation(rotation: Rotation, index: Tensor) -> Rotation:
    """Of each image only some tokens, such as the visible patches.

    index (B, S') -> cos and sin (B, heads or 1, S', head_dim / 2)
    """
    cos, sin = rotation
    # indexing with (B, S') leaves the heads in front of the batch
    cos = cos[:, index].transpose(0, 1)
    return cos, sin[:, index].transpose(0, 1)


class AxialRope2d(nn.Module):
    """Fixed 2-D RoPE, shared by heads and layers.

    The first half of the pairs turns with the column, the second with the row.
    """

    def __init__(self, depth: int, num_heads: int, head_dim: int, *, theta: float = 10.0):
        super().__init__()
        self.depth = depth
        self.register_buffer("frequencies", _magnitudes(head_dim, theta), persistent=False)

    def forward(self, rows: Tensor, columns: Tensor) -> list[Rotation]:
        """rows, columns (S,) -> for each layer cos and sin (1, S, head_dim / 2)"""
        across = columns[:, None] * self.frequencies
        down = rows[:, None] * self.frequencies
        angles = torch.cat([across, down], dim=1)[None]
        return [(angles.cos(), angles.sin())] * self.depth


class MixedRope2d(nn.Module):
    """Learnable 2-D RoPE of RoPE-ViT ("mixed"), as in the release: a direction for every pair.

    `freqs` (2, depth, num_heads * head_dim / 2): index 0 multiplies the column, 1 the row. It
    belongs to the parameters without weight decay.
    """

    def __init__(self, depth: int, num_heads: int, head_dim: int, *, theta: float = 10.0):
        super().__init__()
        self.num_heads = num_heads
        magnitudes = _magnitudes(head_dim, theta)
        # one random angle a head: its pairs start along it, and at right angles to it
        angle = torch.rand(depth, num_heads, 1) * 2 * torch.pi
        right = angle + torch.pi / 2
        along_x = torch.cat([magnitudes * angle.cos(), magnitudes * right.cos()], -1)
        along_y = torch.cat([magnitudes * angle.sin(), magnitudes * right.sin()], -1)
        directions = [along_x.flatten(1), along_y.flatten(1)]
        self.freqs = nn.Parameter(torch.stack(directions))

    def forward(self, rows: Tensor, columns: Tensor) -> list[Rotation]:
        """rows, columns (S,) -> for each layer cos and sin (num_heads, S, head_dim / 2), float32"""
        freqs = self.freqs.float().unflatten(-1, (self.num_heads, -1))
        f_x, f_y = freqs.unsqueeze(-2)  # each (depth, heads, 1, pairs)
        angles = columns[:, None] * f_x + rows[:, None] * f_y
        return list(zip(angles.cos(), angles.sin()))


def _magnitudes(head_dim: int, theta: float) -> Tensor:
    """Radians a patch of each pair, from 1 down to 1 / theta. -> (head_dim / 4,)"""
    if head_dim % 4:
        raise ValueError(f"2-D RoPE needs a head width divisible by 4, not {head_dim}")
    return theta ** (-torch.arange(0, head_dim, 4) / head_dim)


class Rope1d(nn.Module):
    """Fixed 1-D RoPE of a token sequence, shared by heads and layers (LightningDiT)."""

    def __init__(self, head_dim: int):
        super().__init__()
        # not persistent, here and above: a constant, which no file of weights needs
        frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """positions (S,) -> cos and sin (1, S, head_dim / 2)"""
        angles = (positions[:, None] * self.frequencies)[None]
        return angles.cos(), angles.sin()
