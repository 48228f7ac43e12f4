"""Two-dimensional maps of latents by UMAP, t-SNE or PCA, with numbers beside the picture (the paper's figures 4 and 9).

The paper states neither classes nor counts nor parameters of its maps; here all are in `.attrs`. A map shows
neighbourhoods at best: trustworthiness says how well, and kNN accuracy in the map and before it says what was lost.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.preprocess import Reducer, as_rows, check_latents, data_hash, fit_reducer
from maetok_lab.config import to_json
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.rng import generator

Method = Literal["umap", "pca", "tsne"]
QUALITY_ROWS = 2000  # silhouette and trustworthiness take all pairs of at most so many rows
MAP_NEIGHBOURS = 10  # for kNN accuracy and trustworthiness


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """How a map was made. `neighbours` is UMAP's n_neighbors, or t-SNE's perplexity; `min_dist` is UMAP's alone."""

    method: Method = "umap"
    seed: int = 0
    max_rows: int = 20_000
    pca_dimensions: int = 50
    neighbours: int = 15
    min_dist: float = 0.1

    def __post_init__(self):
        if self.method not in ("umap", "pca", "tsne"):
            raise ValueError(
                f"unknown method {self.method!r}; choose one of ['pca', 'tsne', 'umap']"
            )
        if self.max_rows < 10 or self.pca_dimensions < 2 or self.neighbours < 2:
            came = f"{self.max_rows}, {self.pca_dimensions}, {self.neighbours}"
            raise ValueError(
                f"need max_rows >= 10, pca_dimensions >= 2 and neighbours >= 2, not {came}"
            )


@dataclasses.dataclass(frozen=True)
class Projection:
    """A fitted map: its `frame`, the `data` hash of its latents, and `transform` for more latents like them."""

    frame: pd.DataFrame
    data: str
    settings: ProjectionSettings
    reducer: Reducer
    mapper: Any

    def transform(self, latents: Any) -> pd.DataFrame:
        """Where other latents lie on this map: (m, ...) -> columns x, y. Raises TypeError for t-SNE, which cannot."""
        if self.settings.method == "tsne":
            raise TypeError("t-SNE has no transform for new latents; use umap or pca")
        scores = self.reducer.transform(as_rows(latents)).cpu().numpy()
        points = (
            scores[:, :2]
            if self.mapper is None
            else self.mapper.transform(scores.astype(np.float32))
        )
        return pd.DataFrame(points, columns=["x", "y"]).astype(float)


def project(
    latents: Any, *, labels: Tensor | None = None, stability: bool = False, **settings: Any
) -> pd.DataFrame:
    """The `frame` of `fit_projection`: columns x, y, row (and label); quality and settings in `.attrs`."""
    return fit_projection(latents, labels=labels, stability=stability, **settings).frame


def fit_projection(
    latents: Any, *, labels: Tensor | None = None, stability: bool = False, **settings: Any
) -> Projection:
    """Flatten, PCA to 50 dimensions, then UMAP (one thread, seeded), t-SNE or nothing more.

    latents (n, ...), labels (n,) -> Projection. `settings` are the fields of `ProjectionSettings`; of more than
    `max_rows` a random `max_rows` are taken, and `row` says which. `.frame.attrs["quality"]` holds trustworthiness and
    explained variance, with labels also kNN accuracy (in the map and before) and silhouette, with `stability` the mean
    Procrustes disparity in [0, 1] between maps of three seeds. Raises ValueError for NaN, constant or too few latents,
    and ImportError where umap-learn is not installed.
    """
    settings = ProjectionSettings(**settings)
    latents = as_rows(latents)
    rows = _chosen_rows(latents.shape[0], settings)
    latents = latents[rows.to(latents.device) if isinstance(latents, Tensor) else rows.numpy()]
    if labels is not None:
        labels = _checked_labels(labels, rows)
    data = data_hash(check_latents(latents))
    reducer = _fit_pca(latents, settings)
    scores = reducer.transform(latents).cpu().numpy()
    points, mapper = _embed(scores, settings, settings.seed)
    frame = pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "row": rows.numpy()})
    if labels is not None:
        frame["label"] = labels.numpy()
    quality = {"explained": reducer.explained} | map_quality(
        points, scores, labels, seed=settings.seed
    )
    if stability:
        others = [_embed(scores, settings, settings.seed + more)[0] for more in (1, 2)]
        quality["disparity"] = _disparity([points, *others])
    frame.attrs = {"settings": to_json(settings), "data": data, "quality": quality}
    return Projection(frame, data, settings, reducer, mapper)


def map_quality(
    points: np.ndarray, scores: np.ndarray, labels: Tensor | None = None, *, seed: int = 0
) -> dict[str, float]:
    """What a map (n, 2) keeps of scores (n, d): trustworthiness in [0, 1], and with labels (n,) class structure.

    knn_accuracy and knn_accuracy_before are leave-one-out votes of 10 neighbours in the map and in the scores;
    silhouette, in [-1, 1], is the map's. All on at most 2,000 random rows.
    """
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import silhouette_score

    chosen = torch.randperm(len(points), generator=generator(seed, "projection", "quality"))[
        :QUALITY_ROWS
    ].numpy()
    points, scores = points[chosen], scores[chosen]
    near = min(MAP_NEIGHBOURS, (len(points) - 1) // 2)
    quality = {"trustworthiness": float(trustworthiness(scores, points, n_neighbors=near))}
    if labels is not None:
        labels = labels.numpy()[chosen]
        quality["knn_accuracy"] = _knn_accuracy(points, labels, near)
        quality["knn_accuracy_before"] = _knn_accuracy(scores, labels, near)
        several = 1 < len(np.unique(labels)) < len(labels)
        quality["silhouette"] = float(silhouette_score(points, labels)) if several else float("nan")
    return quality


def _chosen_rows(count: int, settings: ProjectionSettings) -> Tensor:
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
    everything = fit_reducer(latents, variance=1.0, standardise=False)
    kept = min(settings.pca_dimensions, everything.dimensions)
    if kept < 2:
        raise ValueError("the latents vary along one line only; there is no map of them")
    return dataclasses.replace(
        everything, components=everything.components[:kept], scale=everything.scale[:kept]
    )


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
        try:
            from umap import UMAP
        except ImportError as problem:
            raise ImportError(
                "UMAP maps need umap-learn: pip install 'maetok-lab[notebooks]'"
            ) from problem
        # a seeded UMAP runs on one thread; said here, it does not warn
        mapper = UMAP(
            n_neighbors=min(settings.neighbours, len(scores) - 1),
            min_dist=settings.min_dist,
            random_state=seed,
            n_jobs=1,
        )
    return np.asarray(mapper.fit_transform(scores), dtype=float), mapper


def _knn_accuracy(points: np.ndarray, labels: np.ndarray, neighbours: int) -> float:
    nearest = nearest_neighbours(torch.from_numpy(points), neighbours=neighbours).indices
    votes = torch.from_numpy(labels[nearest.numpy()]).mode(dim=1).values.numpy()
    return float((votes == labels).mean())


def _disparity(maps: list[np.ndarray]) -> float:
    """Mean Procrustes disparity between maps (n, 2): 0 if they differ by shift, scale and rotation alone, at most 1."""
    unit = [(m - m.mean(0)) / np.linalg.norm(m - m.mean(0)) for m in maps]
    pairs = [(a, b) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    return float(
        np.mean([1 - np.linalg.svd(a.T @ b, compute_uv=False).sum() ** 2 for a, b in pairs])
    )
