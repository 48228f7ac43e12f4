"""Which patches are hidden while training: how many (one ratio a batch) and where. mask (B, patches) bool, True = hidden."""

import dataclasses
import math
from typing import Literal

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """`ratio` "truncated_normal" is the paper's: location `high`, scale 0.25, cut to [low, high]; the mean of 0.4-0.6 is 0.505.

    "uniform" draws between low and high; "linear" falls from `high` to `low` over training (decoder tuning: 0.6 to 0). A
    fixed ratio is low = high. `kind` "random" hides single patches, "block" one rectangle and what is missing at random.
    """

    ratio: Literal["none", "truncated_normal", "uniform", "linear"] = "truncated_normal"
    low: float = 0.4
    high: float = 0.6
    kind: Literal["random", "block"] = "random"

    def __post_init__(self):
        if not 0 <= self.low <= self.high < 1:
            raise ValueError(
                f"mask ratios need 0 <= low <= high < 1, not low {self.low}, high {self.high}"
            )


def draw_ratio(config: MaskingConfig, *, progress: float, generator: torch.Generator) -> float:
    """The batch's mask ratio. `progress` in [0, 1] is the share of training done, which "linear" follows."""
    if config.ratio == "none":
        return 0.0
    if config.ratio == "linear":
        return config.high + (config.low - config.high) * progress
    u = torch.rand((), generator=generator).item()
    if config.ratio == "uniform" or config.low == config.high:
        return config.low + (config.high - config.low) * u
    # Inverse of the normal's distribution function between its values at low and high (release: scipy's truncnorm).
    floor = _normal_cdf((config.low - config.high) / 0.25)
    return config.high + 0.25 * _normal_quantile(floor + u * (0.5 - floor))


def draw_mask(
    config: MaskingConfig,
    batch_size: int,
    grid: tuple[int, int],
    *,
    progress: float = 0.0,
    generator: torch.Generator,
) -> torch.Tensor | None:
    """A mask for one batch, or None when nothing is hidden. Every image hides ceil(patches * ratio) patches. -> (B, patches)"""
    ratio = draw_ratio(config, progress=progress, generator=generator)
    if ratio == 0:
        return None
    place = {"random": random_mask, "block": block_mask}[config.kind]
    return place(batch_size, grid, ratio, generator=generator)


def random_mask(
    batch_size: int, grid: tuple[int, int], ratio: float, *, generator: torch.Generator
) -> torch.Tensor:
    """ceil(patches * ratio) hidden patches in an order of each image's own. -> (B, patches)"""
    return _hide_first(torch.rand(batch_size, math.prod(grid), generator=generator), ratio)


def block_mask(
    batch_size: int, grid: tuple[int, int], ratio: float, *, generator: torch.Generator
) -> torch.Tensor:
    """A rectangle somewhere in the image (aspect 1/2 to 2) and, to reach ceil(patches * ratio), patches around it."""
    down, across = grid
    order = torch.rand(batch_size, down, across, generator=generator)
    area = _count(down * across, ratio)
    for scores in order:
        aspect = 2 ** (2 * torch.rand((), generator=generator).item() - 1)
        height = min(down, max(1, math.isqrt(int(area * aspect))))
        width = min(across, max(1, area // height))
        top = int(torch.randint(down - height + 1, (), generator=generator))
        left = int(torch.randint(across - width + 1, (), generator=generator))
        scores[top : top + height, left : left + width] -= 1  # before all others
    return _hide_first(order.flatten(1), ratio)


def _hide_first(order: torch.Tensor, ratio: float) -> torch.Tensor:
    return order.argsort(dim=1).argsort(dim=1) < _count(order.shape[1], ratio)


def _count(patches: int, ratio: float) -> int:
    # 1e-9: 0.55 * 100 is 55.00000000000001 in floating point, and must hide 55.
    return math.ceil(patches * ratio - 1e-9)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _normal_quantile(p: float) -> float:
    return torch.special.ndtri(torch.tensor(p, dtype=torch.float64)).item()
