"""A map of latents to walk on: where each image lies and all that is known of it; what a selection has in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.fitting import fit_gmm
from maetok_lab.analysis.preprocess import as_rows
from maetok_lab.analysis.projection import Method, Projection, fit_projection
from maetok_lab.data.images import ImageSource
from maetok_lab.protocols import AnyTokenizer

REAL = "real"
RECORDS = ("category", "style", "subcategory")


@dataclasses.dataclass(frozen=True)
class LatentAtlas:
    """`frame` has a row a point: x, y, `run` ("real", or an overlay's name), `row` (which latent of that run), `class`, the
    images' records (category, style, ...), and `component` of a mixture. `latents` are the runs' latents by name.
    """

    frame: pd.DataFrame
    projection: Projection
    latents: dict[str, Any]

    def latent(self, point: int) -> Tensor:
        """The latent (N, C) of a point, raw."""
        place = self.frame.iloc[point]
        return as_rows(self.latents[place["run"]])[torch.tensor([int(place["row"])])][0].float()


def make_atlas(
    latents: Any,
    source: ImageSource,
    *,
    method: Method = "pca",
    overlays: Mapping[str, Any] | None = None,
    components: int = 8,
    seed: int = 0,
    max_rows: int = 50_000,
) -> LatentAtlas:
    """Map the latents of `source`'s images (a `LatentDataset`, or raw (n, N, C)), and put overlays on the same map.

    `overlays` are raw latents of the same tokenizer by name, such as a run's generated ones; `components` Gaussians are
    fitted to the (at most 50) principal components, 0 fits none. Raises ValueError for latents and images that differ in
    number, and what `fit_projection` raises.
    """
    if as_rows(latents).shape[0] != len(source):
        raise ValueError(f"{len(latents)} latents for {len(source)} images")
    overlays = dict(overlays or {})
    projection = fit_projection(
        latents, labels=source.labels, method=method, seed=seed, max_rows=max_rows
    )
    frame = projection.frame.drop(columns="label").assign(run=REAL)
    frame["class"] = np.asarray(source.class_names)[projection.frame["label"]]
    records = getattr(source, "records", None)
    for column in RECORDS:
        if records is not None and column in records:
            frame[column] = records[column].to_numpy()[frame["row"]].astype(str)
    parts = [frame]
    for name, more in overlays.items():
        points = projection.transform(more)
        parts.append(points.assign(row=np.arange(len(points)), run=name))
    frame = pd.concat(parts, ignore_index=True)
    if components:
        frame["component"] = _components(projection, latents, frame, overlays, components, seed)
    known = [column for column in frame.columns if column not in ("x", "y", "row")]
    frame[known] = frame[known].fillna("not known")
    return LatentAtlas(frame, projection, {REAL: latents, **overlays})


def _components(
    projection: Projection,
    latents: Any,
    frame: pd.DataFrame,
    overlays: Mapping[str, Any],
    components: int,
    seed: int,
) -> list[str]:
    """The most probable Gaussian of each point, fitted to the real ones."""
    rows = torch.tensor(frame.loc[frame["run"] == REAL, "row"].tolist())
    scores = projection.reducer.transform(as_rows(latents)[rows])
    components = min(components, len(scores) // 2)
    mixture = fit_gmm(scores, components, restarts=1, seed=seed)
    found = [
        mixture.predict(scores),
        *(mixture.predict(projection.reducer.transform(as_rows(z))) for z in overlays.values()),
    ]
    width = len(str(components))
    return [f"component {index + 1:0{width}}" for index in torch.cat(found).tolist()]


def class_counts(frame: pd.DataFrame, column: str = "class") -> pd.DataFrame:
    """How many points of a selection each class has, most first -> columns `column`, `count`, `share`"""
    counts = frame[column].value_counts().rename_axis(column).reset_index(name="count")
    return counts.assign(share=counts["count"] / max(len(frame), 1))


def mean_image(source: ImageSource, rows: Tensor, *, limit: int = 512) -> Tensor:
    """The mean of the images of these rows, of `limit` of them spread over all if they are more. rows (n,) -> (3, H, W)"""
    if not len(rows):
        raise ValueError("there is no mean of no images")
    kept = rows[torch.linspace(0, len(rows) - 1, min(len(rows), limit)).long()]
    return source.batch(kept)[0].mean(0)


@torch.inference_mode()
def decode_between(
    tokenizer: AnyTokenizer, first: Tensor, second: Tensor, *, steps: int = 9
) -> Tensor:
    """Images on the straight line between two latents (N, C), both ends among them. -> (steps, 3, H, W)"""
    if steps < 2:
        raise ValueError(f"a line needs at least its two ends, not {steps} steps")
    share = torch.linspace(0, 1, steps, device=first.device)[:, None, None]
    return tokenizer.decode(torch.lerp(first[None], second[None], share)).float().clamp(-1, 1)
