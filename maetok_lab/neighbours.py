"""The nearest rows of a set, exactly: for metrics, probes, maps and the search for copies."""

import dataclasses
import math

import torch
from torch import Tensor

from maetok_lab.device import wide

CHUNK = 1024  # rows at a time: their distances to all points are held at once
HELD = 1 << 27  # distances at most: 1 GB


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The k nearest points of each of n rows, nearest first."""

    indices: Tensor  # (n, k), into the points
    distances: Tensor  # (n, k)


def nearest_neighbours(
    rows: Tensor, points: Tensor | None = None, *, neighbours: int, cosine: bool = False
) -> Neighbours:
    """The k points that are nearest to each row, in float64: (n, d), (m, d) -> (n, k).

    Without `points`, the nearest other rows of the same set. Distances are Euclidean, or minus the
    cosine for rows of length 1. Raises ValueError where there are fewer than k = `neighbours`.
    """
    same_set = points is None
    rows = wide(rows)
    points = rows if same_set else wide(points)
    available = len(points) - same_set
    if not 1 <= neighbours <= available or rows.shape[1:] != points.shape[1:]:
        raise ValueError(
            f"need 1 to {available} neighbours of rows of one width, not {neighbours} "
            f"of {tuple(rows.shape)} and {tuple(points.shape)}"
        )
    # A matrix product is fast, but rounds away the small distances of near copies. A set's
    # dimension (analysis.geometry) is computed from just those: inside one set, no product.
    mode = "donot_use_mm_for_euclid_dist" if same_set else "use_mm_for_euclid_dist_if_necessary"
    indices, distances = [], []
    size = max(1, min(CHUNK, HELD // len(points)))
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        if cosine:
            apart = -(chunk @ points.T)  # (chunk, m)
        else:
            apart = torch.cdist(chunk, points, compute_mode=mode)
        if same_set:
            apart.diagonal(start).fill_(math.inf)
        nearest = apart.topk(neighbours, largest=False)
        indices.append(nearest.indices)
        distances.append(nearest.values)
    return Neighbours(torch.cat(indices), torch.cat(distances))
