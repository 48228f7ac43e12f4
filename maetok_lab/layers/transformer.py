"""The two halves of a transformer block (attention, by torch's fused kernel, and MLPs), and stacks.

timm's Mlp has the same tensors and gives the same bits, but importing timm takes longer than torch
itself, and the models need it for nothing else.
"""

from typing import Any, Literal

import psutil
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from maetok_lab.layers.grid import Rotation, rotate

# Up to so many tokens a CPU attends in bf16 by plain products: 1.3 to 2 times as fast, forward and
# backward, as the fused kernel in float32. More would keep too many scores.
PLAIN_TOKENS = 512
MOST_SIZE = 65_536  # tokens, their channels, pixels a side
MOST_BLOCKS = 1000  # of one transformer, and
MOST_PARAMETERS = 10**11  # ten times what anybody diffuses with: more is a slip of the pen


def check_size(width: int, depth: int, num_heads: int) -> None:
    """ValueError for a transformer that cannot be made; says how many parameters it would have."""
    for name, value, least in (
        ("width", width, 1),
        ("depth", depth, 0),
        ("num_heads", num_heads, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
    head_width(width, num_heads)
    if depth > MOST_BLOCKS or least_parameters(width, depth) > MOST_PARAMETERS:
        raise ValueError(
            f"{_size(width, depth)}; at most {MOST_BLOCKS:,} blocks and "
            f"{MOST_PARAMETERS:,} parameters can be asked for"
        )


def check_memory(width: int, depth: int) -> None:
    """ValueError for a transformer that this machine cannot hold; on "meta" it holds any."""
    memory = psutil.virtual_memory().total
    on_meta = torch.get_default_device().type == "meta"
    if 4 * least_parameters(width, depth) > memory and not on_meta:
        raise ValueError(f"{_size(width, depth)}; this machine has {memory / 1e9:,.1f} GB")


def least_parameters(width: int, depth: int) -> int:
    """Parameters of plain blocks: 4 squares of the width for attention, 8 for the MLP."""
    return 12 * width**2 * depth


def _size(width: int, depth: int) -> str:
    count = least_parameters(width, depth)
    return (
        f"a transformer of width {width:,} and depth {depth:,} has {count:,} parameters or more "
        f"({4 * count / 1e9:,.1f} GB)"
    )


def head_width(width: int, num_heads: int) -> int:
    """width / num_heads; ValueError when heads do not divide the width."""
    if width % num_heads:
        raise ValueError(f"{num_heads} heads do not divide the width {width}")
    return width // num_heads


class BlockStack(nn.Module):
    """A module with transformer blocks, which keeps of each what its backward pass needs, or with
    `recompute` only what goes in: that pass then runs the block once more.
    """

    recompute = False

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """`block(*inputs)`."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def recompute_blocks(module: nn.Module) -> None:
    """Have every stack of blocks in `module` recompute them: a third more work, far less memory."""
    for part in module.modules():
        if isinstance(part, BlockStack):
            part.recompute = True


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v, with biases.

    `qk_norm` normalises q and k per head, which keeps large models stable in bf16.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        head_dim = head_width(width, num_heads)
        self.qkv = nn.Linear(width, 3 * width)  # q, k and v of all heads, in this order
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()
        if qk_norm:
            self.q_norm = nn.RMSNorm(head_dim, eps=1e-6)
            self.k_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """x (B, S, D) -> (B, S, D); `rotation` turns q and k (see `layers.grid`)."""
        qkv = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.num_heads)
        q, k, v = qkv  # each (B, heads, S, head_dim)
        # under autocast a norm may give float32, but the fused kernel wants one dtype
        q = self.q_norm(q).to(v.dtype)
        k = self.k_norm(k).to(v.dtype)
        if rotation is not None:
            q = rotate(q, rotation)
            k = rotate(k, rotation)
        return self.proj(rearrange(attend(q, k, v), "b h s d -> b s (h d)"))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v in v's dtype. q, k, v (B, heads, S, head_dim) -> as v"""
    if v.device.type != "cpu" or v.dtype == torch.float32:
        return scaled_dot_product_attention(q, k, v)
    # On the CPU the fused kernel's bf16 backward pass takes three to ten times as long as float32's
    # (torch 2.13), and plain products less than that.
    if k.shape[-2] <= PLAIN_TOKENS:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, S, S)
        return scores.softmax(-1) @ v
    with torch.autocast("cpu", enabled=False):
        attended = scaled_dot_product_attention(q.float(), k.float(), v.float())
    return attended.to(v.dtype)


class Mlp(nn.Module):
    """Linear, GELU, Linear. `approximate` "none" is ViT's exact GELU, "tanh" DiT's and SiT's."""

    def __init__(self, width: int, hidden: int, *, approximate: Literal["none", "tanh"] = "none"):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwiGLU(nn.Module):
    """Linear(SiLU(gate) * value), LightningDiT's; as many weights as `Mlp` at 2/3 of its hidden."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)  # gate and value in one product
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)
