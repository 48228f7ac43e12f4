"""Masked images and what is predicted of them: uint8 pictures, and one figure of them all."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import reduce, repeat
from torch import Tensor
from torch.nn.functional import pad

from maetok_lab.analysis.masks import MaskStudy
from maetok_lab.pictures import to_uint8
from maetok_lab.plots.curves import MARKERS, PALETTE, Tables, axes, colours_for, finish, new_figure
from maetok_lab.plots.images import show_sheet

CURVE, RING = PALETTE[:2]  # held-out images, and one image among them
HIDDEN = (205, 200, 195)  # the grey of hidden patches; the artwork has no such colour
COLUMN_LABELS = {"psnr": "PSNR, dB", "perceptual": "perceptual distance"}
PAIR = {"masked": "masked tokenizer", "plain": "plain autoencoder"}  # of equal budget
ERROR_LIMIT = 0.6  # mean absolute error that is drawn brightest, so that two maps can be compared


# Pictures: uint8 (H, W, 3) ----------------------------------------------------------------------


def picture_of(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> uint8 (H, W, 3)"""
    return to_uint8(image).movedim(0, -1).cpu().numpy()


def masked_picture(image: Tensor, mask: Tensor, patch_size: int) -> np.ndarray:
    """An image with its hidden patches in grey. image (3, H, W), mask (patches,) -> (H, W, 3)"""
    height, width = image.shape[-2:]
    patches = mask.cpu().numpy().reshape(height // patch_size, width // patch_size, 1)
    hidden = np.kron(patches, np.ones((patch_size, patch_size, 1), bool))  # (H, W, 1)
    return np.where(hidden, np.uint8(HIDDEN), picture_of(image))


def heat_picture(values: Tensor, *, limit: float | None = None) -> np.ndarray:
    """Values (h, w) from 0 to `limit`, their largest by default, dark to bright. -> (h, w, 3)"""
    if limit is None:
        limit = float(values.max())
    shares = (values.float() / max(limit, 1e-12)).clamp(0, 1)
    levels = shares.mul(255).round().long()
    return _colours()[levels.cpu().numpy()]


@functools.cache
def _colours() -> np.ndarray:
    """256 colours from dark to bright, in an order that any kind of colour vision sees."""
    try:
        from matplotlib import colormaps
    except ImportError as problem:
        raise ImportError(
            "pictures of values need matplotlib: pip install 'maetok-lab[notebooks]'"
        ) from problem
    colours = colormaps["cividis"](np.arange(256))[:, :3]  # without transparency
    return (colours * 255).round().astype(np.uint8)


def hog_picture(descriptors: Tensor, grid: tuple[int, int], *, glyph: int = 24) -> np.ndarray:
    """HOG as strokes along the edges, white on black: the longer, the larger the magnitude.

    descriptors (patches, 27 n^2) of `tokenizer.targets.hog` -> (h, w, 3), `glyph` pixels a cell
    """
    down, across = grid
    n = round((descriptors.shape[1] / 27) ** 0.5)  # cells a side of one patch
    # of the three colour channels the strongest magnitude counts
    magnitudes = descriptors.float().cpu().view(down, across, 3, 9, n, n)
    cells = reduce(magnitudes, "down across rgb k y x -> (down y) (across x) k", "max")
    # each cell shows its nine strokes on top of each other
    light = np.einsum("hwk,kyx->hywx", cells.clamp(0, 1).numpy(), _strokes(glyph))
    levels = (light.clip(0, 1) * 255).round().astype(np.uint8)
    return repeat(levels, "h y w x -> (h y) (w x) rgb", rgb=3)


@functools.cache
def _strokes(size: int) -> np.ndarray:
    """One stroke an orientation bin, through the middle of a cell. -> (9, size, size) in [0, 1]"""
    middle = np.arange(size) - (size - 1) / 2
    y = middle[:, None]
    x = middle[None, :]
    # a bin is an angle a, its gradient (x, y) = (sin a, cos a): `targets.hog` takes atan2(gx, gy);
    # the stroke runs at right angles to the gradient, along the edge
    angles = (np.arange(9)[:, None, None] + 0.5) * np.pi / 9
    distance = np.abs(x * np.sin(angles) + y * np.cos(angles))  # from the stroke's line
    return np.clip(1.2 - distance, 0, 1) * (np.hypot(x, y) < 0.48 * size)


def component_pictures(
    reference: Tensor, *features: Tensor, grid: tuple[int, int]
) -> list[np.ndarray]:
    """Features as red, green and blue: their first three principal components of `reference`.

    reference and each of features (patches, width) -> (down, across, 3) each, on one scale
    """
    reference = reference.float()
    # axes and scale are the reference's, so that pictures of one call can be compared
    mean = reference.mean(0)
    _, _, directions = torch.linalg.svd(reference - mean, full_matrices=False)
    directions = directions[:3]
    directions = directions * directions.sum(1, keepdim=True).sign()  # svd's sign is arbitrary
    spread = ((reference - mean) @ directions.T).abs().amax(0)

    # fewer patches than colours leave the last colours at their middle
    pictures = []
    for side in features:
        scores = (side.float() - mean) @ directions.T / spread.clamp(min=1e-9)
        colours = pad(scores.clamp(-1, 1), (0, 3 - scores.shape[1]))
        pictures.append(to_uint8(colours).view(*grid, 3).cpu().numpy())
    return pictures


def target_pictures(study: MaskStudy, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What each auxiliary decoder predicts, and its target: `hog: predicted`, `hog: target`, ...

    HOG as strokes, features as the first three principal components of the target. -> (h, w, 3)
    """
    pictures = {}
    for name, target in study.targets.items():
        sides = (study.predictions[name], target)
        if name == "hog":
            pair = [hog_picture(side, grid) for side in sides]
        else:
            pair = component_pictures(target, *sides, grid=grid)
        pictures |= {f"{name}: predicted": pair[0], f"{name}: target": pair[1]}
    return pictures


# Figures ----------------------------------------------------------------------------------------


def plot_ratio_curve(
    curve: pd.DataFrame, *, point: Mapping[str, float] | None = None, ax: Any = None
) -> Any:
    """PSNR of `ratio_curve` over the share that is hidden -> Axes.

    `point` ({"hidden": ..., "psnr": ...}) is drawn as a ring.
    """
    # the band is the standard error over images
    ax = axes(ax, size=(4.2, 3.0))
    hidden = curve["hidden"]
    psnr = curve["psnr"]
    ax.plot(hidden, psnr, "o-", color=CURVE, markersize=3, label="held-out images")
    if "psnr_error" in curve:
        error = curve["psnr_error"]
        ax.fill_between(hidden, psnr - error, psnr + error, color=CURVE, alpha=0.2)
    if point is not None:
        ring = {"color": RING, "markersize": 9, "fillstyle": "none", "label": "this image"}
        ax.plot(point["hidden"], point["psnr"], "o", **ring)
    return _finish_ratios(ax, "psnr")


def plot_ratio_curves(curves: Tables) -> Any:
    """Several `ratio_curve`s by name, one colour each, a panel for each number -> Figure.

    A number that one of the curves lacks has no panel.
    """
    columns = [
        column for column in COLUMN_LABELS if all(column in curve for curve in curves.values())
    ]
    figure = new_figure(4.6 * len(columns), 3.2)
    colours = colours_for(curves)
    # a panel each, side by side
    for place, column in enumerate(columns, start=1):
        ax = figure.add_subplot(1, len(columns), place)
        for marker, (name, curve) in zip(MARKERS, curves.items()):
            style = {"color": colours[name], "marker": marker, "markersize": 4}
            ax.plot(curve["hidden"], curve[column], label=name, **style)
        _finish_ratios(ax, column)
    return figure


def _finish_ratios(ax: Any, column: str) -> Any:
    ax.set_xlabel("share of patches hidden")
    ax.set_ylabel(COLUMN_LABELS[column])
    return finish(ax)


def plot_token_map(values: Tensor, *, label: str, ax: Any = None) -> Any:
    """One row a latent token, one column a patch, with a colour bar. values (N, patches) -> Axes"""
    ax = axes(ax, size=(5.6, 3.0))
    style = {"cmap": "cividis", "vmin": 0, "aspect": "auto", "interpolation": "nearest"}
    image = ax.imshow(values.tolist(), **style)
    ax.figure.colorbar(image, ax=ax, label=label)
    ax.set_xlabel("patch, row by row")
    ax.set_ylabel("latent token")
    return ax


def plot_tokens(values: Tensor, *, ax: Any = None) -> Any:
    """How far each latent token moved, one bar a token. values (N,) -> Axes"""
    ax = axes(ax, size=(4.2, 3.0))
    ax.bar(range(len(values)), values.tolist(), color=CURVE)
    ax.set_xlabel("latent token")
    ax.set_ylabel("moved, std")
    return finish(ax)


def plot_mask_study(
    study: MaskStudy, grid: tuple[int, int], *, curve: pd.DataFrame | None = None
) -> Any:
    """The static twin of the mask studio: what was hidden, what came out, and why -> Figure"""
    patch_size = study.image.shape[-2] // grid[0]
    pictures = {
        "image": picture_of(study.image),
        f"seen ({study.hidden:.0%} hidden)": masked_picture(study.image, study.mask, patch_size),
        f"reconstruction, {study.psnr:.1f} dB": picture_of(study.reconstruction),
        f"error, 0 to {ERROR_LIMIT:g}": heat_picture(study.error, limit=ERROR_LIMIT),
        **target_pictures(study, grid),
    }

    # lines of four pictures, and one line for the two diagrams
    lines = math.ceil(len(pictures) / 4) + 1
    figure = new_figure(10.4, 2.7 * lines)
    cells = figure.add_gridspec(lines, 4)
    for position, (title, pixels) in enumerate(pictures.items()):
        ax = figure.add_subplot(cells[divmod(position, 4)])
        show_sheet(pixels, ax=ax).set_title(title, fontsize="small")
    if curve is not None:
        point = {"hidden": study.hidden, "psnr": study.psnr}
        left = figure.add_subplot(cells[-1, :2])
        plot_ratio_curve(curve, point=point, ax=left)
    right = figure.add_subplot(cells[-1, 2:])
    plot_tokens(study.moved, ax=right)
    return figure


def plot_mask_pair(
    image: Tensor,
    mask: Tensor,
    results: Mapping[str, tuple[np.ndarray, float]],
    *,
    hidden: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    trained_ratios: tuple[float, float],
) -> Any:
    """The static twin of the mask demo: four pictures, and PSNR over the share hidden -> Figure

    `results` are picture (H, W, 3) and PSNR of each tokenizer under `mask`; `curves` PSNR at the
    shares `hidden`.
    """
    patch_size = round((image.shape[-2] * image.shape[-1] / len(mask)) ** 0.5)
    share = float(mask.float().mean())
    pictures = {
        "original": picture_of(image),
        f"what both see: {share:.0%} hidden": masked_picture(image, mask, patch_size),
    }
    for name, (pixels, score) in results.items():
        pictures[f"{PAIR[name]}: {score:.1f} dB"] = pixels
    figure = new_figure(11.2, 5.2)
    cells = figure.add_gridspec(2, 4, height_ratios=(3, 2.6))
    for position, (title, pixels) in enumerate(pictures.items()):
        ax = figure.add_subplot(cells[0, position])
        show_sheet(pixels, ax=ax).set_title(title, fontsize="medium")

    # both curves, and where the mask of the pictures lies on them
    ax = figure.add_subplot(cells[1, :])
    for colour, (name, curve) in zip(PALETTE, curves.items()):
        ax.plot(hidden, curve, color=colour, label=PAIR[name])
        ax.plot(share, results[name][1], "o", color=colour, markersize=9, fillstyle="none")
    ax.axvspan(*trained_ratios, color=PALETTE[0], alpha=0.1, label="hidden in its training")
    return _finish_ratios(ax, "psnr").figure
