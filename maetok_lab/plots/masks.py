"""Pictures of masked images and of what is predicted of them: uint8 arrays for widgets, and one figure of them all."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.masks import MaskStudy
from maetok_lab.pictures import to_uint8
from maetok_lab.plots.curves import MARKERS, PALETTE, axes, colours_for, finish
from maetok_lab.plots.images import show_sheet

HIDDEN = (205, 200, 195)  # the grey of hidden patches; the artwork has no such colour
COLUMN_LABELS = {"psnr": "PSNR, dB", "perceptual": "perceptual distance"}
ERROR_LIMIT = 0.6  # mean absolute error that is drawn brightest, so that two maps can be compared


def picture_of(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> uint8 (H, W, 3)"""
    return to_uint8(image).movedim(0, -1).cpu().numpy()


def masked_picture(image: Tensor, mask: Tensor, patch_size: int) -> np.ndarray:
    """An image with its hidden patches in grey. image (3, H, W), mask (patches,) -> uint8 (H, W, 3)"""
    down, across = image.shape[-2] // patch_size, image.shape[-1] // patch_size
    hidden = (
        mask.cpu()
        .view(down, across)
        .repeat_interleave(patch_size, 0)
        .repeat_interleave(patch_size, 1)
        .numpy()
    )
    return np.where(hidden[..., None], np.uint8(HIDDEN), picture_of(image))


def heat_picture(values: Tensor, *, limit: float | None = None) -> np.ndarray:
    """Values (h, w), from 0 to `limit` (their largest if it is not given), dark to bright. -> uint8 (h, w, 3)"""
    limit = float(values.max()) if limit is None else limit
    level = (values.float().cpu() / max(limit, 1e-12)).clamp(0, 1).mul(255).round().long().numpy()
    return _colours()[level]


@functools.cache
def _colours() -> np.ndarray:
    """256 colours from dark to bright that any kind of colour vision puts in this order."""
    try:
        from matplotlib import colormaps
    except ImportError as problem:
        raise ImportError(
            "pictures of values need matplotlib: pip install 'maetok-lab[notebooks]'"
        ) from problem
    return (colormaps["cividis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def hog_picture(descriptors: Tensor, grid: tuple[int, int], *, glyph: int = 24) -> np.ndarray:
    """HOG as strokes along the edges, white on black: each bin's length is its largest magnitude over the channels.

    descriptors (patches, 27 n^2), as `tokenizer.targets.hog` gives them -> uint8 (h, w, 3), `glyph` pixels a cell
    """
    down, across = grid
    n = round((descriptors.shape[1] / 27) ** 0.5)
    cells = (
        descriptors.float().cpu().view(down, across, 3, 9, n, n).amax(2)
    )  # (down, across, 9, n, n)
    strengths = cells.permute(0, 3, 1, 4, 2).reshape(down * n, across * n, 9).clamp(0, 1).numpy()
    drawn = np.einsum("hwk,kpq->hpwq", strengths, _strokes(glyph)).clip(0, 1)
    return np.repeat(
        (drawn.reshape(down * n * glyph, -1) * 255).round().astype(np.uint8)[..., None], 3, -1
    )


@functools.cache
def _strokes(size: int) -> np.ndarray:
    """One stroke an orientation bin, through the middle of a cell and at right angles to the gradient. -> (9, size, size)

    A bin is an angle a with gradient (x, y) = (sin a, cos a): see `targets.hog`, which takes atan2(gx, gy).
    """
    middle = np.arange(size) - (size - 1) / 2
    y, x = middle[:, None], middle[None, :]
    angles = (np.arange(9)[:, None, None] + 0.5) * np.pi / 9
    across = np.abs(x * np.sin(angles) + y * np.cos(angles))  # distance from the stroke's line
    return np.clip(1.2 - across, 0, 1) * (np.hypot(x, y) < 0.48 * size)


def component_pictures(
    reference: Tensor, *features: Tensor, grid: tuple[int, int]
) -> list[np.ndarray]:
    """The first three principal components of features as red, green and blue, all on the axes and scale of `reference`.

    reference and each of features (patches, width) -> uint8 (down, across, 3) each
    """
    mean = reference.float().mean(0)
    _, _, directions = torch.linalg.svd(reference.float() - mean, full_matrices=False)
    directions = directions[:3]
    directions = directions * directions.sum(1, keepdim=True).sign()  # svd's sign is arbitrary
    spread = ((reference.float() - mean) @ directions.T).abs().amax(0).clamp(min=1e-9)
    scores = [((each.float() - mean) @ directions.T / spread).clamp(-1, 1) for each in features]
    pictures = [
        torch.nn.functional.pad(score, (0, 3 - score.shape[1])).view(*grid, 3) for score in scores
    ]
    return [to_uint8(picture).cpu().numpy() for picture in pictures]


def target_pictures(study: MaskStudy, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What each auxiliary decoder sees, beside its target, by name: `hog: predicted`, `hog: target`, ...

    HOG as strokes, features as their first three principal components (those of the target). -> uint8 (h, w, 3) each
    """
    pictures = {}
    for name, target in study.targets.items():
        seen = study.seen[name]
        if name == "hog":
            pair = [hog_picture(seen, grid), hog_picture(target, grid)]
        else:
            pair = component_pictures(target, seen, target, grid=grid)
        pictures |= {f"{name}: predicted": pair[0], f"{name}: target": pair[1]}
    return pictures


def plot_ratio_curve(
    curve: pd.DataFrame,
    *,
    point: Mapping[str, float] | None = None,
    column: str = "psnr",
    ax: Any = None,
) -> Any:
    """A column of `ratio_curve` against the share that is hidden, and `point` ({"hidden": ..., column: ...}) as a ring -> Axes"""
    ax = axes(ax, size=(4.2, 3.0))
    ax.plot(
        curve["hidden"],
        curve[column],
        "o-",
        color=PALETTE[0],
        markersize=3,
        label="held-out images",
    )
    if f"{column}_error" in curve:
        error = curve[f"{column}_error"]
        ax.fill_between(
            curve["hidden"],
            curve[column] - error,
            curve[column] + error,
            color=PALETTE[0],
            alpha=0.2,
        )
    if point is not None:
        ax.plot(
            point["hidden"],
            point[column],
            "o",
            color=PALETTE[1],
            markersize=9,
            fillstyle="none",
            label="this image",
        )
    ax.set_xlabel("share of patches hidden")
    ax.set_ylabel(COLUMN_LABELS.get(column, column))
    return finish(ax)


def plot_ratio_curves(
    curves: Mapping[str, pd.DataFrame], *, columns: Sequence[str] = ("psnr", "perceptual")
) -> Any:
    """Several `ratio_curve`s by name, one colour and marker each, one panel a column that they have -> Figure"""
    columns = [column for column in columns if all(column in curve for curve in curves.values())]
    figure = axes(None, size=(4.6 * len(columns), 3.2)).figure
    figure.clear()
    colours = colours_for(curves)
    for place, column in enumerate(columns, start=1):
        ax = figure.add_subplot(1, len(columns), place)
        for marker, (name, curve) in zip(MARKERS, curves.items()):
            ax.plot(
                curve["hidden"],
                curve[column],
                color=colours[name],
                marker=marker,
                markersize=4,
                label=name,
            )
        ax.set_xlabel("share of patches hidden")
        ax.set_ylabel(COLUMN_LABELS.get(column, column))
        finish(ax)
    return figure


def plot_token_map(values: Tensor, *, label: str, ax: Any = None) -> Any:
    """One row a latent token, one column a patch, with a colour bar. values (N, patches) -> Axes"""
    ax = axes(ax, size=(5.6, 3.0))
    drawn = ax.imshow(
        values.float().cpu().numpy(), cmap="cividis", vmin=0, aspect="auto", interpolation="nearest"
    )
    ax.figure.colorbar(drawn, ax=ax, label=label)
    ax.set_xlabel("patch, row by row")
    ax.set_ylabel("latent token")
    return ax


def plot_tokens(values: Tensor, *, label: str = "moved, std", ax: Any = None) -> Any:
    """One bar a latent token. values (N,) -> Axes"""
    ax = axes(ax, size=(4.2, 3.0))
    ax.bar(np.arange(len(values)), values.float().cpu().numpy(), color=PALETTE[0])
    ax.set_xlabel("latent token")
    ax.set_ylabel(label)
    return finish(ax)


def plot_mask_study(
    study: MaskStudy, grid: tuple[int, int], *, curve: pd.DataFrame | None = None
) -> Any:
    """The static twin of the mask studio: the image, what was hidden, what came out, what the decoders see -> Figure"""
    patch_size = study.image.shape[-2] // grid[0]
    pictures = {
        "image": picture_of(study.image),
        f"seen ({study.hidden:.0%} hidden)": masked_picture(study.image, study.mask, patch_size),
        f"reconstruction, {study.psnr:.1f} dB": picture_of(study.reconstruction),
        f"error, 0 to {ERROR_LIMIT:g}": heat_picture(study.error, limit=ERROR_LIMIT),
        **target_pictures(study, grid),
    }
    lines = 1 + (len(pictures) + 3) // 4
    figure = axes(None, size=(10.4, 2.7 * lines)).figure
    figure.clear()
    cells = figure.add_gridspec(lines, 4)
    for position, (title, pixels) in enumerate(pictures.items()):
        ax = figure.add_subplot(cells[position // 4, position % 4])
        show_sheet(pixels, ax=ax).set_title(title, fontsize="small")
    if curve is not None:
        point = {"hidden": study.hidden, "psnr": study.psnr}
        plot_ratio_curve(curve, point=point, ax=figure.add_subplot(cells[-1, :2]))
    plot_tokens(study.moved, ax=figure.add_subplot(cells[-1, 2:]))
    return figure
