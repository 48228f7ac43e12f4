"""A map of latents to walk on: where each image lies, what it is, what a selection shares."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.decoding import finite_psnr
from maetok_lab.analysis.fitting import GmmProtocol, fit_gmm
from maetok_lab.analysis.preprocess import as_rows, take_rows
from maetok_lab.analysis.projection import Method, Projection, fit_projection
from maetok_lab.data.images import ImageSource
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.path import velocity_loss
from maetok_lab.inference import device_of
from maetok_lab.progress import track
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator

REAL = "real"  # the run of the source's own latents
RECORDS = ("category", "style", "subcategory")  # columns of a source's records that a map shows


@dataclasses.dataclass(frozen=True)
class LatentAtlas:
    """A map, and for each of its points the image, its class and its latent."""

    # A row a point: x, y, `run` ("real", or an overlay's name), `row` (which latent of that run),
    # `class`, the images' records, and `component` of a mixture.
    frame: pd.DataFrame
    projection: Projection
    latents: dict[str, Any]  # the runs' latents, by name

    def latent(self, point: int) -> Tensor:
        """The latent (N, C) of a point, raw."""
        place = self.frame.iloc[point]
        row = torch.tensor([int(place["row"])])
        return take_rows(self.latents[place["run"]], row)[0].float()


def make_atlas(
    latents: Any,
    source: ImageSource,
    *,
    method: Method = "pca",
    overlays: Mapping[str, Any] | None = None,
    components: int = 8,
    seed: int = 0,
    max_rows: int = 50_000,
    projection: Projection | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
) -> LatentAtlas:
    """Map the latents of a source's images (a `LatentDataset` or raw (n, N, C)), and overlays.

    `overlays` are more raw latents by name, such as generated ones; `projection` is a map that is
    there already; `values` are numbers of each image by name. Raises ValueError where latents and
    images or values differ in number, and what `fit_projection` raises.
    """
    if as_rows(latents).shape[0] != len(source):
        raise ValueError(
            f"{len(latents)} latents for {len(source)} images; "
            "give the images that the latents were encoded from"
        )
    overlays = dict(overlays or {})
    for name, column in (values or {}).items():
        if len(column) != len(source):
            raise ValueError(f"{len(column)} values of {name!r} for {len(source)} images")
    if projection is None:
        projection = fit_projection(
            latents, labels=source.labels, method=method, seed=seed, max_rows=max_rows
        )

    # The real points, with class and records of their images.
    real = projection.frame.drop(columns="label").assign(run=REAL)
    real["class"] = np.asarray(source.class_names)[projection.frame["label"]]
    records = getattr(source, "records", None)
    for column in RECORDS:
        if records is not None and column in records:
            real[column] = records[column].to_numpy()[real["row"]].astype(str)

    for name, column in (values or {}).items():
        real[name] = np.asarray(column, float)[real["row"]]

    # The overlays' points, of whose images nothing is known.
    parts = [real]
    for name, overlay in overlays.items():
        points = projection.transform(overlay)
        parts.append(points.assign(row=np.arange(len(points)), run=name))
    frame = pd.concat(parts, ignore_index=True)
    if components:
        rows = torch.tensor(real["row"].tolist())
        runs = [take_rows(latents, rows), *overlays.values()]
        frame["component"] = _components(projection, runs, components, seed)
    facts = frame.columns.difference(["x", "y", "row", *(values or {})])
    frame[facts] = frame[facts].fillna("not known")
    return LatentAtlas(frame, projection, {REAL: latents, **overlays})


def _components(projection: Projection, runs: list[Any], components: int, seed: int) -> list[str]:
    """The most probable Gaussian of each latent of all runs; they are fitted to the first run.

    In the principal components from which the map was made (at most 50), not in the map.
    """
    scores = [projection.reducer.transform(latents) for latents in runs]
    components = min(components, len(scores[0]) // 2)
    mixture = fit_gmm(scores[0], components, GmmProtocol(restarts=1, seed=seed))
    width = len(str(components))
    indices = torch.cat([mixture.predict(points) for points in scores])
    return [f"component {index + 1:0{width}}" for index in indices.tolist()]


# Numbers that colour a map ------------------------------------------------------------------------


@torch.inference_mode()
def decoded_psnr(
    latents: Any, source: ImageSource, tokenizer: AnyTokenizer, *, batch_size: int = 64
) -> Tensor:
    """PSNR in dB of what each image's latent decodes to. -> (n,)"""
    device = device_of(tokenizer)
    scores = []
    for rows in track(torch.arange(len(source)).split(batch_size), "batches decoded"):
        images = source.batch(rows)[0].to(device)
        decoded = tokenizer.decode(take_rows(latents, rows).float().to(device))
        scores.append(finite_psnr(decoded, images).cpu())
    return torch.cat(scores)


@torch.inference_mode()
def velocity_losses(
    model: DiffusionTransformer,
    latents: Tensor,
    labels: Tensor,
    *,
    times: int = 8,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Velocity loss of each latent (n, N, C), normalised as the model takes it. -> (n,)

    Means over `times` times, evenly between 0 and 1, each with one noise for all latents.
    """
    device = device_of(model)
    total = torch.zeros(len(latents))
    for step in track(range(times), "velocity losses, times"):
        random = generator(seed, "velocity losses", step)
        noise = torch.randn(latents.shape[1:], generator=random)
        for rows in torch.arange(len(latents)).split(batch_size):
            t = torch.full((len(rows),), (step + 0.5) / times)
            same = noise.expand(len(rows), *noise.shape)
            part = (latents[rows].to(device), labels[rows].to(device))
            trained = {"path": model.trained_path, "prediction": model.trained_prediction}
            losses = velocity_loss(model, *part, t=t, noise=same, **trained)
            total[rows] += losses.cpu() / times
    return total


# A selection, a line ------------------------------------------------------------------------------


def class_counts(frame: pd.DataFrame, column: str = "class") -> pd.DataFrame:
    """Points of each class in a selection, most first -> columns `column`, `count`, `share`."""
    counts = frame[column].value_counts().rename_axis(column).reset_index(name="count")
    return counts.assign(share=counts["count"] / max(len(frame), 1))


def mean_image(source: ImageSource, rows: Tensor, *, limit: int = 512) -> Tensor:
    """Mean image (3, H, W) of rows (n,), or of `limit` of them, spread evenly, if they are more.

    Raises ValueError without rows.
    """
    if not len(rows):
        raise ValueError("a mean image needs at least one row, and none was selected")
    places = torch.linspace(0, len(rows) - 1, min(len(rows), limit)).long()
    return source.batch(rows[places])[0].mean(0)


@torch.inference_mode()
def decode_between(
    tokenizer: AnyTokenizer, first: Tensor, second: Tensor, *, steps: int = 9
) -> Tensor:
    """Images on the straight line between two latents (N, C), with both ends: (steps, 3, H, W)."""
    if steps < 2:
        raise ValueError(f"a line needs at least its two ends, not {steps} steps")
    share = torch.linspace(0, 1, steps, device=first.device)[:, None, None]
    latents = torch.lerp(first[None], second[None], share)
    return tokenizer.decode(latents).float().clamp(-1, 1)
