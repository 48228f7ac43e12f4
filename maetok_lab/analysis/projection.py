"""Maps of latents by UMAP, t-SNE or PCA, with their quality (the paper's figures 4 and 9).

The paper states neither classes nor counts nor parameters of its maps; here all are in `.attrs`. A
map shows neighbourhoods at best: trustworthiness says how well, and kNN accuracy in the map and
before it says what was lost.
"""

import atexit
import dataclasses
import itertools
import math
import shutil
import sys
import tempfile
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.spatial import procrustes
from torch import Tensor

from maetok_lab.analysis.preprocess import (
    Reducer,
    as_rows,
    check_latents,
    data_hash,
    first_of_copies,
    fit_reducer,
    take_rows,
)
from maetok_lab.config import to_json
from maetok_lab.cores import one_thread
from maetok_lab.hints import check_choice
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

Method = Literal["umap", "pca", "tsne"]
QUALITY_ROWS = 2000  # silhouette and trustworthiness take all pairs of at most so many rows
MAP_NEIGHBOURS = 10  # for kNN accuracy and trustworthiness


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """How a map was made."""

    method: Method = "umap"  # the paper's
    seed: int = 0  # of the rows and of the method
    max_rows: int = 20_000  # of more latents so many random ones are drawn
    pca_dimensions: int = 50  # kept before UMAP or t-SNE, as is usual for both
    neighbours: int = 15  # UMAP's n_neighbors, t-SNE's perplexity
    min_dist: float = 0.1  # UMAP's alone: how close points may lie on the map

    def __post_init__(self):
        check_choice(self.method, get_args(Method), "method")
        if self.max_rows < 10 or self.pca_dimensions < 2 or self.neighbours < 2:
            came = f"{self.max_rows}, {self.pca_dimensions}, {self.neighbours}"
            raise ValueError(
                f"need max_rows >= 10, pca_dimensions >= 2 and neighbours >= 2, not {came}"
            )


@dataclasses.dataclass(frozen=True)
class Projection:
    """A fitted map, on which more latents of the same kind can be placed."""

    frame: pd.DataFrame  # a row a point; settings and quality in `.attrs`
    data: str  # hash of the latents
    settings: ProjectionSettings
    reducer: Reducer  # flattened latents -> principal components
    mapper: Any  # those -> the map: UMAP's or t-SNE's object, None for PCA

    def transform(self, latents: Any) -> pd.DataFrame:
        """Where other latents (m, ...) lie on this map: columns x, y. TypeError for t-SNE."""
        if self.settings.method == "tsne":
            raise TypeError("t-SNE has no transform for new latents; use umap or pca")
        points = self.reducer.transform(latents).cpu().numpy()
        if self.mapper is not None:
            points = self.mapper.transform(points.astype(np.float32))
        return pd.DataFrame(points[:, :2], columns=["x", "y"]).astype(float)


def project(
    latents: Any, *, labels: Tensor | None = None, stability: bool = False, **settings: Any
) -> pd.DataFrame:
    """The `frame` of `fit_projection`: columns x, y, row (and label); quality in `.attrs`."""
    return fit_projection(latents, labels=labels, stability=stability, **settings).frame


def fit_projection(
    latents: Any, *, labels: Tensor | None = None, stability: bool = False, **settings: Any
) -> Projection:
    """Flatten, PCA to 50 dimensions, then UMAP (seeded, one thread), t-SNE or nothing more.

    latents (n, ...), labels (n,); `settings` are fields of `ProjectionSettings`. Raises ValueError
    for NaN or too few latents, ImportError without umap-learn.
    """
    settings = ProjectionSettings(**settings)
    latents = as_rows(latents)
    rows = _draw_rows(latents.shape[0], settings)
    latents = take_rows(latents, rows)
    if labels is not None:
        labels = _checked_labels(labels, rows)
    hashes = check_latents(latents)
    data = data_hash(hashes)
    # the last bit of a sum decides where a point of a map comes to lie
    with one_thread():
        reducer = _fit_pca(latents, settings)
        scores = reducer.transform(latents).cpu().numpy()
        points, mapper = _embed_distinct(
            scores, first_of_copies(latents, hashes), settings, settings.seed
        )

    # `row` says which latents a map of part of them is made of
    frame = pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "row": rows.numpy()})
    if labels is not None:
        frame["label"] = labels.numpy()
    quality = {"explained": reducer.explained}
    quality |= map_quality(points, scores, labels, seed=settings.seed)
    if stability:
        # does another seed give another map?
        maps = [points]
        for seed in (settings.seed + 1, settings.seed + 2):
            maps.append(
                _embed_distinct(scores, first_of_copies(latents, hashes), settings, seed)[0]
            )
        quality["disparity"] = _disparity(maps)
    frame.attrs = {"settings": to_json(settings), "data": data, "quality": quality}
    return Projection(frame, data, settings, reducer, mapper)


# Steps --------------------------------------------------------------------------------------------


def _draw_rows(count: int, settings: ProjectionSettings) -> Tensor:
    """Which of `count` latents are mapped, in order: (rows,)."""
    if count <= settings.max_rows:
        return torch.arange(count)
    random = generator(settings.seed, "projection", "rows")
    return torch.randperm(count, generator=random)[: settings.max_rows].sort().values


def _checked_labels(labels: Tensor, rows: Tensor) -> Tensor:
    labels = torch.as_tensor(labels).cpu()
    if labels.ndim != 1 or len(labels) <= int(rows.max()):
        raise ValueError(f"labels must be (n,), one a latent, not {tuple(labels.shape)}")
    return labels[rows]


def _fit_pca(latents: Any, settings: ProjectionSettings) -> Reducer:
    """PCA to at most `pca_dimensions`; not standardised: distances stay those of latents."""
    full = fit_reducer(latents, variance=1.0, standardise=False)
    dimensions = min(settings.pca_dimensions, full.dimensions)
    if dimensions < 2:
        raise ValueError("the latents vary along one line only; there is no map of them")
    return dataclasses.replace(
        full, components=full.components[:dimensions], scale=full.scale[:dimensions]
    )


def _embed_distinct(
    scores: np.ndarray, first: Tensor, settings: ProjectionSettings, seed: int
) -> tuple[np.ndarray, Any]:
    """`_embed` of distinct scores, each copy (see `first_of_copies`) at the place of its first.

    With copies a seeded UMAP is another map every time.
    """
    distinct, place = first.unique(return_inverse=True)
    points, mapper = _embed(scores[distinct.numpy()], settings, seed)
    return points[place.numpy()], mapper


def _embed(scores: np.ndarray, settings: ProjectionSettings, seed: int) -> tuple[np.ndarray, Any]:
    """Scores (n, d) -> map (n, 2) and the fitted mapper (None for PCA)."""
    if settings.method == "pca":
        return scores[:, :2], None
    scores = scores.astype(np.float32)
    if settings.method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(settings.neighbours, (len(scores) - 1) / 3)
        mapper = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
    else:
        first = "umap" not in sys.modules
        umap = _umap()
        if first:
            print("umap: it compiles for half a minute the first time", flush=True)
        # a seeded UMAP runs on one thread; said here, it does not warn
        neighbours = min(settings.neighbours, len(scores) - 1)
        mapper = umap.UMAP(
            n_neighbors=neighbours, min_dist=settings.min_dist, random_state=seed, n_jobs=1
        )
    return np.asarray(mapper.fit_transform(scores), dtype=float), mapper


def _umap() -> Any:
    """The module; its compiled functions are kept in a folder that can be written."""
    try:
        import umap
    except ImportError as problem:
        raise ImportError(
            "UMAP maps need umap-learn: pip install 'maetok-lab[notebooks]'"
        ) from problem
    except RuntimeError:
        # numba's, where neither beside the package nor in the home anything can be written
        import numba

        # a folder of this process alone: what lies in it is executed
        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, numba.config.CACHE_DIR, ignore_errors=True)
        import umap
    return umap


# Quality ------------------------------------------------------------------------------------------


def map_quality(
    points: np.ndarray, scores: np.ndarray, labels: Tensor | None = None, *, seed: int = 0
) -> dict[str, float]:
    """What a map (n, 2) keeps of scores (n, d), on at most 2,000 random rows.

    Trustworthiness in [0, 1]; with labels (n,) leave-one-out kNN accuracy in the map and before,
    and the map's silhouette in [-1, 1].
    """
    # scikit-learn takes a second to import, so only those who make a map import it
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import silhouette_score

    random = generator(seed, "projection", "quality")
    sample = torch.randperm(len(points), generator=random)[:QUALITY_ROWS].numpy()
    points = points[sample]
    scores = scores[sample]
    neighbours = min(MAP_NEIGHBOURS, (len(points) - 1) // 2)  # trustworthiness takes no more
    quality = {"trustworthiness": float(trustworthiness(scores, points, n_neighbors=neighbours))}
    if labels is not None:
        labels = labels.numpy()[sample]
        quality["knn_accuracy"] = _knn_accuracy(points, labels, neighbours)
        quality["knn_accuracy_before"] = _knn_accuracy(scores, labels, neighbours)
        quality["silhouette"] = math.nan
        if 1 < len(np.unique(labels)) < len(labels):  # else it is not defined
            quality["silhouette"] = float(silhouette_score(points, labels))
    return quality


def _knn_accuracy(points: np.ndarray, labels: np.ndarray, neighbours: int) -> float:
    """Leave-one-out vote of the nearest other points, in [0, 1]; NaN where there is one class."""
    if len(np.unique(labels)) < 2:
        return math.nan
    nearest = nearest_neighbours(torch.from_numpy(points), neighbours=neighbours).indices
    votes = torch.from_numpy(labels[nearest.numpy()]).mode(dim=1).values.numpy()
    return float((votes == labels).mean())


def _disparity(maps: list[np.ndarray]) -> float:
    """Mean Procrustes disparity of pairs of maps (n, 2), in [0, 1].

    0 if they differ by shift, scale, rotation and reflection alone.
    """
    pairs = itertools.combinations(maps, 2)
    return float(np.mean([procrustes(first, second)[2] for first, second in pairs]))
