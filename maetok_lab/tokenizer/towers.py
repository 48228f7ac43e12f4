"""The two transformers of a tokenizer: patches to latent tokens, and latent tokens to patches.

The second is used for pixels and, shallower, for every auxiliary target (paper section 3.1; what
the paper leaves open is as in the released code).
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from maetok_lab.layers.grid import (
    AxialRope2d,
    MixedRope2d,
    Rotation,
    grid_positions,
    grid_size,
    pad_rotation,
    sincos_2d,
    take_rotation,
)
from maetok_lab.layers.norm import DropPath, LayerScale, make_norm
from maetok_lab.layers.transformer import Attention, BlockStack, Mlp, check_memory
from maetok_lab.tokenizer.config import Grid, TokenizerConfig, TowerConfig

# ---- Blocks ----


class PlainBlock(nn.Module):
    """ViT's pre-norm block; LayerScale as in DINOv2, whose skeleton the released encoder has."""

    def __init__(self, tower: TowerConfig, *, drop_path: float, layer_scale: float | None = None):
        super().__init__()
        width = tower.width
        self.norm1 = make_norm("layernorm", width)
        self.norm2 = make_norm("layernorm", width)
        self.attn = Attention(width, tower.num_heads)
        self.mlp = Mlp(width, 4 * width)
        self.ls1 = nn.Identity()
        self.ls2 = nn.Identity()
        if layer_scale:
            self.ls1 = LayerScale(width, layer_scale)
            self.ls2 = LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """x (B, S, D) -> (B, S, D); `rotation` turns queries and keys."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rotation)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Modulation(nn.Module):
    """Shifts and scales for normalised latent positions, from the raw latents (release: "MoVQ")."""

    def __init__(self, config: TokenizerConfig, width: int, *, chunks: int):
        super().__init__()
        self.chunks = chunks
        self.scale_init = config.modulation_init
        self.linear = nn.Linear(config.latent_dim, chunks * width)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Zero weights, zero shifts, scales at `modulation_init`."""
        self.linear.weight.zero_()
        # chunks alternate: shift, scale, shift, scale
        self.linear.bias.zero_().view(self.chunks, -1)[1::2] = self.scale_init

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """latents (B, N, C) -> (shift, scale, ...), each (B, N, D)"""
        return self.linear(nn.functional.silu(latents)).chunk(self.chunks, dim=-1)


def modulate_latents(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * scale + shift at the last N positions, the latents'; the patches before them as they are.

    x (B, patches + N, D), shift and scale (B, N, D) -> (B, patches + N, D)
    """
    patches = x.shape[1] - shift.shape[1]
    # scale, not DiT's 1 + scale: as released
    latents = torch.addcmul(shift, x[:, patches:], scale)
    return torch.cat([x[:, :patches], latents.to(x.dtype)], dim=1)


class ModulatedBlock(nn.Module):
    """Decoder block: norms without weights; the latents set scale and shift at their positions."""

    def __init__(self, config: TokenizerConfig, tower: TowerConfig, *, drop_path: float):
        super().__init__()
        width = tower.width
        self.norm1 = make_norm("layernorm", width, affine=False)
        self.norm2 = make_norm("layernorm", width, affine=False)
        self.attn = Attention(width, tower.num_heads)
        self.mlp = Mlp(width, 4 * width)
        self.modulation = Modulation(config, width, chunks=4)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, latents: Tensor, rotation: Rotation | None) -> Tensor:
        """x (B, patches + N, D), latents (B, N, C) -> (B, patches + N, D)"""
        shift_attn, scale_attn, shift_mlp, scale_mlp = self.modulation(latents)
        h = modulate_latents(self.norm1(x), shift_attn, scale_attn)
        x = x + self.drop_path(self.attn(h, rotation))
        h = modulate_latents(self.norm2(x), shift_mlp, scale_mlp)
        return x + self.drop_path(self.mlp(h))


def drop_path_rates(tower: TowerConfig) -> list[float]:
    """Stochastic depth of each block: from 0 linearly to `drop_path`."""
    return [tower.drop_path * i / max(tower.depth - 1, 1) for i in range(tower.depth)]


# ---- Positions ----


class GridPositions(nn.Module):
    """Where patches are: an absolute embedding, rotations, or both."""

    def __init__(self, tower: TowerConfig, grid: Grid, *, class_token: bool, theta: float):
        super().__init__()
        self.grid = grid
        self.depth = tower.depth
        self.before = int(class_token)  # tokens in front of the patches

        # rotations of queries and keys in every block
        self.rope = None
        if "rope" in tower.positions:
            rope = {"axial": AxialRope2d, "mixed": MixedRope2d}[tower.rope]
            head_dim = tower.width // tower.num_heads
            self.rope = rope(tower.depth, tower.num_heads, head_dim, theta=theta)

        # learned, but starting as sines; a class token's position starts at zero
        self.absolute = None
        if "ape" in tower.positions:
            table = sincos_2d(*grid_positions(*grid), tower.width)
            table = torch.cat([torch.zeros(self.before, tower.width), table])
            self.absolute = nn.Parameter(table[None])

    def embed(self, x: Tensor, grid: Grid) -> Tensor:
        """Add the absolute embedding to class and patch tokens. (B, S, D) -> (B, S, D)"""
        if self.absolute is None:
            return x
        if grid != self.grid:
            raise ValueError(
                f"this tokenizer has learned absolute positions for a grid of {self.grid}, "
                f'so it cannot take {grid}; positions="rope" works at any size'
            )
        return x + self.absolute

    def rotations(
        self, grid: Grid, *, after: int, device: torch.device | None = None
    ) -> list[Rotation | None]:
        """One a block for [class, patches, `after` latents]: only patches turn. None: no RoPE."""
        if self.rope is None:
            return [None] * self.depth
        rotations = self.rope(*grid_positions(*grid, device=device))
        return [pad_rotation(rotation, self.before, after) for rotation in rotations]


def latent_positions(config: TokenizerConfig, width: int) -> Tensor:
    """Initial positions of the latent tokens, as `config.latent_init` says. -> (1, N, width)"""
    count = config.num_latent_tokens
    if config.latent_init == "normal":
        return nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02)

    # "grid" gives each latent a home among the patches, so that attention is local from the first
    # step on; short trainings leave their plateau sooner (ours, not the paper's).
    divisors = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    down = max(divisors)  # the squarest grid of `count` places
    across = count // down
    rows, columns = grid_positions(down, across)
    rows = (rows + 0.5) * config.grid[0] / down - 0.5
    columns = (columns + 0.5) * config.grid[1] / across - 0.5
    return sincos_2d(rows, columns, width)[None]


# ---- Towers ----


class PatchEncoder(BlockStack):
    """Images to latent tokens. The sequence is [class token, patches, latent tokens].

    With latent_tokens="patches" there are no latent tokens, and the patches come out.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        tower = config.encoder
        check_memory(tower.width, tower.depth)
        width = tower.width
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))

        # DINOv2's class token came into the release with its skeleton; it is no output.
        self.class_token = None
        if config.class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=1e-6))
        self.positions = GridPositions(
            tower, config.grid, class_token=config.class_token, theta=config.rope_theta
        )

        # learned tokens that gather the image; they have positions of their own (paper: "1D APE")
        self.latent_tokens = None
        if config.latent_tokens == "learnable":
            tokens = torch.empty(1, config.num_latent_tokens, width)
            self.latent_tokens = nn.Parameter(tokens.normal_(std=0.02))
            self.latent_positions = nn.Parameter(latent_positions(config, width))

        self.blocks = nn.ModuleList()
        for rate in drop_path_rates(tower):
            block = PlainBlock(tower, drop_path=rate, layer_scale=config.layer_scale)
            self.blocks.append(block)
        self.norm = make_norm("layernorm", width)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], mask (B, patches) bool, True = hidden -> (B, N, D)"""
        grid = grid_size(*images.shape[-2:], self.config.patch_size)
        patches = math.prod(grid)
        if mask is not None:
            if mask.shape != (len(images), patches) or mask.dtype != torch.bool:
                raise ValueError(
                    f"mask must be bool {(len(images), patches)}, "
                    f"not {mask.dtype} {tuple(mask.shape)}"
                )
            # where hidden patches leave, only sequences of one length go together
            counts = mask.sum(1)
            if self.config.masked == "drop" and (counts != counts[0]).any():
                return self.by_count(images, mask, counts)

        # Hidden patches become the mask token before positions are added: it knows where it is.
        x = self.embed_patches(images)  # (B, patches, D)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)

        # The class token comes in front, latent tokens come behind; both are never hidden.
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.positions.embed(x, grid)
        num_latents = 0
        if self.latent_tokens is not None:
            latents = self.latent_tokens + self.latent_positions
            x = torch.cat([x, latents.expand(len(x), -1, -1)], dim=1)
            num_latents = latents.shape[1]
        rotations = self.positions.rotations(grid, after=num_latents, device=x.device)

        # MAE's way: what is hidden leaves the sequence, which makes the step cheaper.
        if mask is not None and self.config.masked == "drop":
            places = visible_places(mask, before=self.positions.before, after=num_latents)
            x = torch.take_along_dim(x, places[..., None], dim=1)
            if self.positions.rope is not None:
                rotations = [take_rotation(rotation, places) for rotation in rotations]

        # Only the end of the sequence comes out: latent tokens, or patches where there are none.
        for block, rotation in zip(self.blocks, rotations):
            x = self.run_block(block, x, rotation)
        return self.norm(x[:, -(num_latents or patches) :])

    def by_count(self, images: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        """`forward` for masks that hide `counts` (B,) patches, which differ. -> (B, N, D)"""
        parts = []
        places = []
        for count in counts.unique():
            rows = (counts == count).nonzero()[:, 0]
            places.append(rows)
            parts.append(self(images[rows], mask[rows]))
        return torch.cat(parts)[torch.cat(places).argsort()]

    def embed_patches(self, images: Tensor) -> Tensor:
        """The convolution `patch_embed`. images (B, 3, H, W) -> (B, patches, D)"""
        # As patches do not overlap it is a linear layer, which a CPU does in a quarter of the time.
        size = self.config.patch_size
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=size, q=size)
        weight = self.patch_embed.weight.flatten(1)
        return nn.functional.linear(patches, weight, self.patch_embed.bias)


def visible_places(mask: Tensor, *, before: int, after: int) -> Tensor:
    """Where the tokens stand that are not hidden, `before` and `after` the patches too.

    mask (B, patches), each row with as many hidden -> (B, S')
    """
    # a stable sort leaves visible places (0) in their order and moves hidden ones (1) to the end
    whole = nn.functional.pad(mask, (before, after)).int()
    return whole.argsort(dim=1, stable=True)[:, : whole.shape[1] - int(mask[0].sum())]


class LatentDecoder(BlockStack):
    """Latent tokens to one feature vector a patch: [class token, mask tokens, latent tokens].

    The mask tokens, one a patch, read the latents by attention (paper section 3.1). A tower of
    depth 0 is one linear map over tokens and channels instead (Table 1d, "linear").
    """

    def __init__(
        self,
        config: TokenizerConfig,
        tower: TowerConfig,
        *,
        modulation: bool,
        class_token: bool = False,
    ):
        super().__init__()
        check_memory(tower.width, tower.depth)
        width = tower.width
        self.from_latents = nn.Linear(config.latent_dim, width)
        self.to_patches = None
        if tower.depth == 0:  # the same map over tokens for every channel
            self.to_patches = nn.Linear(config.num_latent_tokens, math.prod(config.grid))
            return
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        # SoftVQ's release has one, which its decoder's skeleton, DINOv2's, brought along
        self.class_token = None
        if class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=1e-6))
        self.positions = GridPositions(
            tower, config.grid, class_token=class_token, theta=config.rope_theta
        )
        self.latent_positions = nn.Parameter(latent_positions(config, width))

        self.blocks = nn.ModuleList()
        for rate in drop_path_rates(tower):
            if modulation:
                self.blocks.append(ModulatedBlock(config, tower, drop_path=rate))
            else:
                scale = config.decoder_layer_scale
                self.blocks.append(PlainBlock(tower, drop_path=rate, layer_scale=scale))
        self.norm = make_norm("layernorm", width, affine=not modulation)

        # Nothing uses these weights: the release modulates the last norm too, but at the latents'
        # positions, which are not read. They stay because checkpoints hold them, because the seeded
        # draws of what comes after them depend on them, and for the released format.
        self.norm_modulation = None
        if modulation:
            self.norm_modulation = Modulation(config, width, chunks=2)

    def forward(self, latents: Tensor, grid: Grid) -> Tensor:
        """latents (B, N, C) -> (B, patches, D)"""
        x = self.from_latents(latents)
        patches = math.prod(grid)
        if self.to_patches is not None:
            if patches != self.to_patches.out_features:
                raise ValueError(
                    f"a decoder of depth 0 gives {self.to_patches.out_features} patches, "
                    f"so it cannot give {grid}"
                )
            return self.to_patches(x.transpose(1, 2)).transpose(1, 2)

        # The mask tokens differ by their positions only; latents have learned ones of their own.
        mask_tokens = self.mask_token.expand(len(x), patches, -1)
        if self.class_token is not None:
            mask_tokens = torch.cat([self.class_token.expand(len(x), -1, -1), mask_tokens], dim=1)
        mask_tokens = self.positions.embed(mask_tokens, grid)
        latent_tokens = x + self.latent_positions
        rotations = self.positions.rotations(grid, after=x.shape[1], device=x.device)
        # Under autocast, too, what the blocks add to is of the parameters' precision, as released:
        # in bf16 it would lose a little at every block.
        x = torch.cat([mask_tokens, latent_tokens.to(mask_tokens.dtype)], dim=1)

        for block, rotation in zip(self.blocks, rotations):
            if isinstance(block, ModulatedBlock):
                x = self.run_block(block, x, latents, rotation)
            else:
                x = self.run_block(block, x, rotation)
        # LayerNorm works position by position, so what is no patch is cut off before it
        before = self.positions.before
        return self.norm(x[:, before : before + patches])


# ---- Weights ----


def init_weights(module: nn.Module) -> None:
    """ViT's truncated normal for linear layers, with zero biases; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        # 0.02 at ViT-Base's 768 inputs, more for fewer: activations start alike at every width
        nn.init.trunc_normal_(module.weight, std=0.02 * math.sqrt(768 / module.in_features))
        nn.init.zeros_(module.bias)
    elif hasattr(module, "reset"):
        # children come first: what starts elsewhere (Modulation, Refine) resets itself afterwards
        module.reset()
