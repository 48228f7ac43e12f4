"""Which patches are hidden while training: `draw_mask` draws how many and where.

A mask is (B, patches) bool, True = hidden. One ratio counts for a whole batch; where its patches
are is each image's own.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Generator, Tensor

STD = 0.25  # of the normal distribution that ratios are drawn from (release)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How many patches a batch hides, and where. The defaults are the paper's 40 to 60 %."""

    # of a batch. "truncated_normal" is the release's: around `high`, with std 0.25, cut to
    # [low, high]. "linear" falls from `high` to `low` over the training (paper: decoder tuning)
    ratio: Literal["none", "truncated_normal", "uniform", "linear"] = "truncated_normal"
    # least ratio; equal to `high` for a fixed one. Below 0: what is drawn there hides nothing
    low: float = 0.4
    # largest ratio, below 1
    high: float = 0.6
    # single patches, or one rectangle, filled up with single ones
    kind: Literal["random", "block"] = "random"

    def __post_init__(self):
        if not -1 < self.low <= self.high < 1 or self.high < 0:
            raise ValueError(
                "mask ratios need -1 < low <= high and 0 <= high < 1, "
                f"not low {self.low}, high {self.high}"
            )


def draw_mask(
    config: MaskingConfig,
    batch_size: int,
    grid: tuple[int, int],
    *,
    progress: float = 0.0,
    generator: Generator,
) -> Tensor | None:
    """The mask of one training batch, (B, patches), or None where nothing is hidden.

    Every image hides ceil(patches * ratio). `progress`: see `draw_ratio`.
    """
    ratio = draw_ratio(config, progress=progress, generator=generator)
    if ratio <= 0:
        return None
    draw = {"random": random_mask, "block": block_mask}[config.kind]
    return draw(batch_size, grid, ratio, generator=generator)


def draw_ratio(config: MaskingConfig, *, progress: float, generator: Generator) -> float:
    """A batch's mask ratio. `progress` in [0, 1] is the share of training that is behind it."""
    if config.ratio == "none":
        return 0.0
    if config.ratio == "linear":
        return config.high + (config.low - config.high) * progress
    u = torch.rand((), generator=generator).item()
    if config.ratio == "uniform" or config.low == config.high:
        return config.low + (config.high - config.low) * u

    # The inverse of the normal's distribution function, between its values at `low` and at `high`,
    # its centre (the release calls scipy's truncnorm).
    floor = 0.5 * (1 + math.erf((config.low - config.high) / STD / math.sqrt(2)))
    quantile = torch.tensor(floor + u * (0.5 - floor), dtype=torch.float64)
    return config.high + STD * torch.special.ndtri(quantile).item()


def random_mask(
    batch_size: int, grid: tuple[int, int], ratio: float, *, generator: Generator
) -> Tensor:
    """Hide ceil(patches * ratio) patches of each image, in an order of its own. -> (B, patches)"""
    order = torch.rand(batch_size, math.prod(grid), generator=generator)
    return hide_first(order, _count(order.shape[1], ratio))


def block_mask(
    batch_size: int, grid: tuple[int, int], ratio: float, *, generator: Generator
) -> Tensor:
    """Hide a rectangle, and single patches up to ceil(patches * ratio). -> (B, patches)"""
    down, across = grid
    order = torch.rand(batch_size, down, across, generator=generator)
    area = _count(down * across, ratio)
    for image_order in order:
        # aspect 1/2 to 2, evenly in its logarithm; rounding down never makes it too large
        aspect = 2 ** (2 * torch.rand((), generator=generator).item() - 1)
        height = min(down, max(1, math.isqrt(int(area * aspect))))
        width = min(across, max(1, area // height))
        top = int(torch.randint(down - height + 1, (), generator=generator))
        left = int(torch.randint(across - width + 1, (), generator=generator))
        image_order[top : top + height, left : left + width] -= 1  # below all others: hidden first
    return hide_first(order.flatten(1), area)


def hide_first(order: Tensor, count: int) -> Tensor:
    """True for the `count` places with the smallest numbers. order (B, N) -> (B, N) bool"""
    return order.argsort(dim=1).argsort(dim=1) < count


def _count(patches: int, ratio: float) -> int:
    # 1e-9: 0.55 * 100 is 55.00000000000001 in floating point, and must hide 55
    return math.ceil(patches * ratio - 1e-9)
