"""Measures of latents that lie on a grid, as images do; learnable tokens have none of them.

`grid_measures` is the table of all. Cosines are between tokens of length 1, `steps` are
|rows| + |columns| between two tokens. Positions alone raise LDS, CDS and SRSS: patch tokens of a
tokenizer that was never trained score high.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from maetok_lab.analysis.definitions import definition
from maetok_lab.analysis.labelled import ROUNDING
from maetok_lab.analysis.preprocess import as_rows, take_rows
from maetok_lab.analysis.spectra import (
    Estimate,
    Grid,
    NoValue,
    as_grid,
    high_frequency_share,
    mean_ratio,
    spectrum_divergence,
)
from maetok_lab.device import wide

Encode = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> latents (B, h w, C)
NO_GRID = "tokens have no place on the image: learnable ones, or a tokenizer that names no grid"
WHITE = 0.98  # of [-1, 1]: a pixel with a colour below that is foreground
HELD = 1 << 24  # cosines of pairs that are held at once
NOTHING = Estimate(math.nan, math.nan)
# By entry: its measure, and the settings that it is taken with.
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sec_0.25": ("sec", {"share": 0.25}),
    "sec_0.5": ("sec", {"share": 0.5}),
    "lds": ("lds", {"far": 6}),
    "cds": ("cds", {"steps": 8}),
    "srss": ("srss", {"far": 6}),
    "rmsc": ("rmsc", {}),
    "esm_kl": ("esm_kl", {"delta": 1.0}),
    "equivariance_rotation": ("equivariance", {"turns": [1, 2, 3]}),
    "equivariance_scale": ("equivariance", {"scales": [0.5, 0.75]}),
}


def grid_of(tokenizer: Any) -> Grid | None:
    """(h, w) of the tokens of raw pixels, of a diffusers grid, and of our own tokenizers whose
    latents are the patches' own. None where there is no grid, for the reason `NO_GRID`.
    """
    config = getattr(tokenizer, "config", None)
    if getattr(config, "latent_tokens", "") == "patches":
        return config.grid
    return getattr(tokenizer, "grid", None)


def grid_measures(
    latents: Any,
    grid: Grid | None,
    *,
    images: Tensor | None = None,
    encode: Encode | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """All grid measures of latents (n, h w, C): index `entry`, columns `value, error, reason`.

    Channels are normalised first. `images` (n, 3, H, W) are the latents' own, `encode` is the
    tokenizer's. Without a value it is NaN, for the `reason`. `.attrs` has definitions. Raises
    ValueError for another number of tokens, NaN, and fewer than two images.
    """
    latents = as_rows(latents)
    tokens = None if grid is None else _normalised_tokens(latents, grid)
    count = latents.shape[0]
    if images is not None and len(images) != count:
        raise ValueError(f"`images` must be those of the {count} latents, not {len(images)}")

    # what each entry is measured by, where there is a grid
    measures = {
        "sec": partial(high_frequency_share, tokens, grid),
        "lds": partial(local_similarity, tokens, grid),
        "cds": partial(similarity_decay, tokens, grid),
        "srss": partial(region_similarity, tokens, grid, images),
        "rmsc": partial(spatial_contrast, tokens),
        "esm_kl": partial(spectrum_divergence, tokens, images, grid),
        "equivariance": partial(equivariance, encode, images, grid, batch_size=batch_size),
    }
    rows, definitions = [], {}
    for entry, (measure, settings) in ENTRIES.items():
        result = NOTHING
        reason = _missing(measure, grid, images, encode)
        try:
            if not reason:
                result = measures[measure](**settings)
        except NoValue as problem:  # this grid is too small, say
            reason = str(problem)
        rows.append({"entry": entry, **dataclasses.asdict(result), "reason": reason})
        definitions[entry] = definition(measure, images=count, **settings)
    table = pd.DataFrame(rows).set_index("entry")
    table.attrs = {"grid": grid, "definitions": definitions}
    return table


def _missing(measure: str, grid: Any, images: Any, encode: Any) -> str:
    """Why a measure cannot be taken of what was given; "" where it can."""
    if grid is None:
        return NO_GRID
    if images is None and measure in ("srss", "esm_kl", "equivariance"):
        return "needs the latents' images: give `images`"
    if encode is None and measure == "equivariance":
        return "needs the tokenizer: give its `encode`"
    return ""


def _normalised_tokens(latents: Any, grid: Grid) -> Tensor:
    """All latents in float64, each channel of mean 0 and std 1; one that is constant is 0."""
    tokens = wide(take_rows(latents, torch.arange(latents.shape[0])))
    as_grid(tokens, grid)  # checks the number of tokens
    if len(tokens) < 2:
        raise ValueError("grid measures need two images or more: take more latents")
    if not tokens.isfinite().all():
        raise ValueError("latents hold NaN or infinite values")
    mean, std = channel_scale(tokens)
    return (tokens - mean) / std


def channel_scale(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (n, N, C); infinite if it is constant."""
    mean = tokens.mean(dim=(0, 1))
    std = tokens.std(dim=(0, 1), correction=0)
    return mean, torch.where(std > ROUNDING * tokens.abs().amax(dim=(0, 1)), std, torch.inf)


# Cosines by distance ------------------------------------------------------------------------------


def correlogram(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean cosine of each image's tokens 0, 1, 2, ... steps apart, and how many pairs are so.

    tokens (n, h w, C) -> (n, h + w - 1), (h + w - 1,)
    """
    steps = _steps(grid).to(tokens.device).flatten()
    pairs = torch.bincount(steps)
    sums = []
    for cosines in _cosines(tokens):
        empty = cosines.new_zeros(len(cosines), len(pairs))
        sums.append(empty.index_add_(1, steps, cosines.flatten(1)))
    return torch.cat(sums) / pairs, pairs


def _steps(grid: Grid) -> Tensor:
    """Steps between all pairs of tokens, (h w, h w)."""
    rows, columns = torch.cartesian_prod(*map(torch.arange, grid)).T
    return (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()


def _cosines(tokens: Tensor) -> Iterator[Tensor]:
    """Cosines of all pairs (b, N, N), of as many images at a time as have room."""
    unit = functional.normalize(tokens, dim=-1)
    for part in unit.split(_images_at_once(tokens)):
        yield part @ part.mT


def _images_at_once(tokens: Tensor) -> int:
    return max(1, HELD // tokens.shape[1] ** 2)


def local_similarity(tokens: Tensor, grid: Grid, far: int = 6) -> Estimate:
    """LDS: mean cosine of neighbours in a row or column, less that of tokens `far` steps apart or
    more. tokens (n, h w, C) -> [-2, 2]; raises NoValue where none are.
    """
    cosines, pairs = correlogram(tokens, grid)
    _check_steps(grid, far)
    distant = cosines[:, far:] @ pairs[far:].to(cosines) / pairs[far:].sum()
    return mean_ratio(cosines[:, 1] - distant)


def similarity_decay(tokens: Tensor, grid: Grid, steps: int = 8) -> Estimate:
    """CDS: the mean cosine lost a step, by least squares over 1, ..., `steps` steps.

    tokens (n, h w, C); on a small grid over as many as there are. Raises NoValue for less than 2.
    """
    _check_steps(grid, 2)
    cosines = correlogram(tokens, grid)[0][:, 1 : steps + 1]
    x = torch.arange(cosines.shape[1]).to(cosines)
    x = x - x.mean()
    return mean_ratio(-(cosines @ x) / x.square().sum())


def _check_steps(grid: Grid, steps: int) -> None:
    if sum(grid) - 2 < steps:
        raise NoValue(f"no two tokens of a {grid[0]} x {grid[1]} grid are {steps} steps apart")


def spatial_contrast(tokens: Tensor) -> Estimate:
    """RMSC: how far an image's unit tokens are from their mean, root mean square; in [0, 1]."""
    unit = functional.normalize(tokens, dim=-1)
    squares = (unit - unit.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return mean_ratio(squares.mean(dim=1).sqrt())


# Foreground and background ------------------------------------------------------------------------


def foreground_of(images: Tensor, grid: Grid) -> Tensor:
    """Tokens over half of whose pixels are not white: (n, 3, H, W) -> (n, h w) bool.

    Exact for the shipped emoji, which stand on white.
    """
    coloured = (images < WHITE).any(dim=1, keepdim=True).float()
    return functional.adaptive_avg_pool2d(coloured, grid).flatten(1) > 0.5


def region_similarity(tokens: Tensor, grid: Grid, images: Tensor, far: int = 6) -> Estimate:
    """SRSS: mean cosine of a foreground token to neighbours in the foreground, less that to tokens
    of the background `far` steps away or more.

    tokens (n, h w, C); a mean over an image's foreground tokens that have both, then over images.
    """
    inside = foreground_of(images, grid).to(tokens.device)
    steps = _steps(grid).to(tokens.device)
    contrasts = []
    for cosines, own in zip(_cosines(tokens), inside.split(_images_at_once(tokens))):
        near = (steps == 1) & own[:, None]
        distant = (steps >= far) & ~own[:, None]
        # without any such pair 0 / 0 is NaN, and the token has no part in the mean
        contrast = (cosines * near).sum(dim=2) / near.sum(dim=2)
        contrast -= (cosines * distant).sum(dim=2) / distant.sum(dim=2)
        contrasts.append(torch.where(own, contrast, torch.nan).nanmean(dim=1))
    of_images = torch.cat(contrasts)
    of_images = of_images[of_images.isfinite()]
    if not len(of_images):
        raise NoValue(
            f"no image has neighbours in its foreground and white background {far} steps away"
        )
    return mean_ratio(of_images)


# Images that are moved ----------------------------------------------------------------------------


@torch.inference_mode()
def equivariance(
    encode: Encode,
    images: Tensor,
    grid: Grid,
    *,
    turns: Sequence[int] = (),
    scales: Sequence[float] = (),
    batch_size: int = 64,
) -> Estimate:
    """E |encode(T x) - T encode(x)|^2 / E |T encode(x)|^2 over images (n, 3, H, W) and all T.

    T turns by quarters of a circle, or scales bilinearly: the small image lies amid its repeated
    edges, for tokenizers take one size. Channels are normalised as those of encode(x). Tokens that
    have no relation score 2.
    """
    moves = [_turn(grid, quarters) for quarters in turns]
    moves += [_shrink(grid, tuple(images.shape[-2:]), scale) for scale in scales]

    def encoded(pictures: Tensor) -> Tensor:
        return torch.cat([wide(encode(part)) for part in pictures.split(batch_size)])

    # sums over a moved image's tokens, all moves together
    tokens = encoded(images)
    mean, std = channel_scale(tokens)
    own = as_grid((tokens - mean) / std, grid)  # (n, C, h, w)
    tops = bottoms = torch.zeros(len(own)).to(own)
    for move_image, move_latents, place in moves:
        moved = as_grid((encoded(move_image(images)) - mean) / std, grid)[place]
        expected = move_latents(own)
        tops = tops + (moved - expected).square().sum(dim=(1, 2, 3))
        bottoms = bottoms + expected.square().sum(dim=(1, 2, 3))
    return mean_ratio(tops, bottoms)


# What is done to an image, to its grid of latents (n, C, h, w), and where that is to be found.
Move = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], tuple[Any, ...]]


def _turn(grid: Grid, quarters: int) -> Move:
    if grid[0] != grid[1]:
        raise NoValue(f"a grid of {grid[0]} x {grid[1]} is not square: it cannot be turned")
    turn = partial(torch.rot90, k=quarters, dims=(2, 3))
    return turn, turn, (...,)


def _shrink(grid: Grid, size: tuple[int, int], scale: float) -> Move:
    """The image made smaller in the middle of one of its size, by whole tokens on each side."""
    small = [int(tokens * scale) for tokens in grid]
    whole = all(tokens * scale == left for tokens, left in zip(grid, small))
    if not whole or size[0] % grid[0] or size[1] % grid[1]:
        raise NoValue(
            f"{scale:g} times {grid[0]} x {grid[1]} tokens are no whole ones, "
            f"or these no whole pixels of {size[0]} x {size[1]}"
        )
    patch = [pixels // tokens for pixels, tokens in zip(size, grid)]
    place = []
    margins = []  # in pixels, as `pad` takes them: those of the last axis first
    for tokens, left, side in zip(grid, small, patch):
        start = (tokens - left) // 2
        place.append(slice(start, start + left))
        margins = [start * side, (tokens - left - start) * side, *margins]
    resize = partial(functional.interpolate, mode="bilinear", align_corners=False)

    def canvas(images: Tensor) -> Tensor:
        inner = resize(images, size=[left * side for left, side in zip(small, patch)])
        return functional.pad(inner, margins, mode="replicate")

    return canvas, partial(resize, size=small), (..., *place)
