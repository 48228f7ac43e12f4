"""The two transformers of a tokenizer: one turns patches into latent tokens, one turns latent tokens into patch features.

The second is used for pixels and, shallower, for every auxiliary target (paper section 3.1; released code for the details).
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import nn

from maetok_lab.layers.attention import head_width
from maetok_lab.layers.norm import make_norm
from maetok_lab.layers.patches import grid_size
from maetok_lab.layers.positions import (
    AxialRope2d,
    MixedRope2d,
    Rotation,
    grid_positions,
    pad_rotation,
    sincos_2d,
    take_rotation,
)
from maetok_lab.tokenizer.blocks import ModulatedBlock, Modulation, PlainBlock

Positions = Literal["rope", "ape", "rope+ape"]
RopeKind = Literal["axial", "mixed"]
Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Size of one transformer. `drop_path` rises linearly over depth to this rate."""

    width: int
    depth: int
    num_heads: int
    positions: Positions = "rope"
    rope: RopeKind = "axial"
    drop_path: float = 0.0

    def __post_init__(self):
        head_width(self.width, self.num_heads)
        if self.depth < 0:
            raise ValueError(f"depth must be 0 or more, not {self.depth}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), not {self.drop_path}")


def drop_path_rates(config: TowerConfig) -> list[float]:
    """Stochastic depth of each block: from 0 linearly to `drop_path`."""
    return [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]


class GridPositions(nn.Module):
    """Where patches are: an absolute embedding, rotations, or both, for any grid that the choice allows."""

    def __init__(self, config: TowerConfig, grid: Grid, *, class_token: bool, theta: float):
        super().__init__()
        self.grid, self.class_token = grid, class_token
        rope = {"axial": AxialRope2d, "mixed": MixedRope2d}[config.rope]
        head_dim = config.width // config.num_heads
        self.rope = (
            rope(config.depth, config.num_heads, head_dim, theta=theta)
            if "rope" in config.positions
            else None
        )
        if "ape" in config.positions:
            table = sincos_2d(*grid_positions(*grid), config.width)
            self.absolute = nn.Parameter(
                torch.cat([torch.zeros(int(class_token), config.width), table])[None]
            )
        else:
            self.absolute = None

    def embed(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Add the absolute embedding to (class and) patch tokens, if there is one. (B, S, D) -> (B, S, D)"""
        if self.absolute is None:
            return x
        if grid != self.grid:
            raise ValueError(
                f"this tokenizer has learned absolute positions for a grid of {self.grid}, so it cannot take {grid}; "
                'positions="rope" works at any size'
            )
        return x + self.absolute

    def rotations(self, grid: Grid, *, after: int, depth: int) -> list[Rotation | None]:
        """One rotation a layer for the sequence [class, patches, `after` unrotated tokens]; None without RoPE."""
        if self.rope is None:
            return [None] * depth
        device = next(iter([*self.rope.parameters(), *self.rope.buffers()])).device
        rotations = self.rope(*grid_positions(*grid, device=device))
        return [pad_rotation(rotation, int(self.class_token), after) for rotation in rotations]


class PatchEncoder(nn.Module):
    """Patches and learnable latent tokens in, latent tokens (or, without learnable ones, patch tokens) out.

    Sequence: [class token, patch tokens, latent tokens]. Hidden patches become one learned mask token before positions are
    added ("replace", SimMIM), or leave the sequence ("drop", MAE: faster).
    """

    def __init__(
        self,
        config: TowerConfig,
        *,
        patch_size: int,
        grid: Grid,
        num_latent_tokens: int | None,
        class_token: bool,
        layer_scale: float | None,
        theta: float,
        masked: Literal["replace", "drop"],
        latent_init: Literal["normal", "grid"],
    ):
        super().__init__()
        width = config.width
        self.patch_size, self.masked = patch_size, masked
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.class_token = (
            nn.Parameter(torch.empty(1, 1, width).normal_(std=1e-6)) if class_token else None
        )
        self.positions = GridPositions(config, grid, class_token=class_token, theta=theta)
        if num_latent_tokens:
            self.latent_tokens = nn.Parameter(
                torch.empty(1, num_latent_tokens, width).normal_(std=0.02)
            )
            positions = latent_positions(num_latent_tokens, width, grid, latent_init)
            self.latent_positions = nn.Parameter(positions)
        else:
            self.latent_tokens = None
        rates = drop_path_rates(config)
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.num_heads, drop_path=rate, layer_scale=layer_scale)
            for rate in rates
        )
        self.norm = make_norm("layernorm", width)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1], mask (B, patches) bool, True = hidden -> (B, N, width)"""
        grid = grid_size(*images.shape[-2:], self.patch_size)
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, patches, D)
        patches = x.shape[1]
        if mask is not None:
            if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
                raise ValueError(
                    f"mask must be bool {tuple(x.shape[:2])}, not {mask.dtype} {tuple(mask.shape)}"
                )
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.positions.embed(x, grid)
        first_latent = x.shape[1]
        if self.latent_tokens is not None:
            x = torch.cat(
                [x, (self.latent_tokens + self.latent_positions).expand(len(x), -1, -1)], dim=1
            )
        rotations = self.positions.rotations(
            grid, after=x.shape[1] - first_latent, depth=len(self.blocks)
        )
        if mask is not None and self.masked == "drop":
            kept = self._visible(mask, x.shape[1], first_latent - patches)
            x = torch.take_along_dim(x, kept[..., None], dim=1)
            rotations = [rotation and take_rotation(rotation, kept) for rotation in rotations]
        for block, rotation in zip(self.blocks, rotations):
            x = block(x, rotation)
        latents = (
            x[:, -self.latent_tokens.shape[1] :]
            if self.latent_tokens is not None
            else x[:, first_latent - patches :]
        )
        return self.norm(latents)

    def _visible(self, mask: torch.Tensor, length: int, before: int) -> torch.Tensor:
        """Places in the sequence of every token that is not hidden: (B, S'). All images must hide the same number."""
        hidden = mask.sum(1)
        if (hidden != hidden[0]).any():
            counts = sorted(set(hidden.tolist()))
            raise ValueError(
                f'masked="drop" needs the same number of hidden patches in every image of a batch, not {counts}'
            )
        full = mask.new_zeros(len(mask), length)
        full[:, before : before + mask.shape[1]] = mask
        return full.int().argsort(dim=1, stable=True)[:, : length - int(hidden[0])]


class LatentDecoder(nn.Module):
    """Latent tokens in, one feature vector a patch out: mask tokens attend to the latents (paper section 3.1).

    Sequence: [patches mask tokens, latent tokens]. With depth 0 it is one linear map over tokens and channels.
    """

    def __init__(
        self,
        config: TowerConfig,
        *,
        latent_dim: int,
        num_latent_tokens: int,
        grid: Grid,
        theta: float,
        modulation: bool,
        scale_init: float,
        latent_init: Literal["normal", "grid"],
    ):
        super().__init__()
        width = config.width
        self.from_latents = nn.Linear(latent_dim, width)
        if config.depth == 0:
            self.to_patches = nn.Linear(num_latent_tokens, math.prod(grid))
            return
        self.to_patches = None
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.positions = GridPositions(config, grid, class_token=False, theta=theta)
        self.latent_positions = nn.Parameter(
            latent_positions(num_latent_tokens, width, grid, latent_init)
        )
        rates = drop_path_rates(config)
        if modulation:
            self.blocks = nn.ModuleList(
                ModulatedBlock(
                    width,
                    config.num_heads,
                    latent_dim=latent_dim,
                    drop_path=rate,
                    scale_init=scale_init,
                )
                for rate in rates
            )
            self.norm = make_norm("layernorm", width, affine=False)
            self.norm_modulation = Modulation(latent_dim, width, chunks=2, scale_init=scale_init)
        else:
            self.blocks = nn.ModuleList(
                PlainBlock(width, config.num_heads, drop_path=rate, layer_scale=None)
                for rate in rates
            )
            self.norm = make_norm("layernorm", width)
            self.norm_modulation = None

    def forward(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        """latents (B, N, C) -> (B, patches, width)"""
        x = self.from_latents(latents)
        if self.to_patches is not None:
            if math.prod(grid) != self.to_patches.out_features:
                raise ValueError(
                    f"a decoder of depth 0 gives {self.to_patches.out_features} patches, so it cannot give {grid}"
                )
            return self.to_patches(x.transpose(1, 2)).transpose(1, 2)
        patches = math.prod(grid)
        queries = self.positions.embed(self.mask_token.expand(len(x), patches, -1), grid)
        rotations = self.positions.rotations(grid, after=x.shape[1], depth=len(self.blocks))
        x = torch.cat([queries.to(x.dtype), (x + self.latent_positions).to(x.dtype)], dim=1)
        for block, rotation in zip(self.blocks, rotations):
            x = block(x, latents, patches, rotation) if self.norm_modulation else block(x, rotation)
        # Norm and modulation act on each token alone, and only patch positions are read: the latents' own last
        # modulation (kept for the released format) changes nothing that leaves this function.
        return self.norm(x[:, :patches])


def latent_positions(
    count: int, width: int, grid: Grid, init: Literal["normal", "grid"]
) -> torch.Tensor:
    """Initial embedding of latent tokens, (1, count, width): N(0, 0.02), or sines at places spread evenly over the image.

    "grid" gives each latent a home among the patches, so that attention is local from the first step on; short trainings
    leave their plateau sooner (the paper and the release use "normal").
    """
    if init == "normal":
        return nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02)
    down = max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)
    rows, columns = grid_positions(down, count // down)
    rows, columns = (
        (rows + 0.5) * grid[0] / down - 0.5,
        (columns + 0.5) * grid[1] / (count // down) - 0.5,
    )
    return sincos_2d(rows, columns, width)[None]
