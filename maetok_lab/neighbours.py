"""The nearest rows of a set, by all distances: for metrics, probes, maps and the search for copies."""

import dataclasses
import math

import torch
from torch import Tensor

from maetok_lab.device import wide

CHUNK = 1024  # rows whose distances to all others exist at a time


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Of each row its nearest ones, nearest first: their numbers and distances, both (n, k)."""

    indices: Tensor
    distances: Tensor


def nearest_neighbours(
    rows: Tensor, others: Tensor | None = None, *, neighbours: int, cosine: bool = False
) -> Neighbours:
    """The `neighbours` (k) rows of `others` that are nearest to each row, in float64.

    (n, d), (m, d) -> (n, k). Without `others`, the nearest other rows of the same set. Distances are
    Euclidean, or minus the cosine for rows of length 1. Raises ValueError for too few `others`.
    """
    same_set = others is None
    rows = wide(rows)
    others = rows if same_set else wide(others)
    available = len(others) - same_set
    if not 1 <= neighbours <= available or rows.shape[1:] != others.shape[1:]:
        raise ValueError(
            f"need 1 to {available} neighbours of rows of one width, not {neighbours} "
            f"of {tuple(rows.shape)} and {tuple(others.shape)}"
        )
    # by a matrix product, which rounds more; the distances of near copies within a set do not bear it
    mode = "donot_use_mm_for_euclid_dist" if same_set else "use_mm_for_euclid_dist_if_necessary"
    indices, distances = [], []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        if cosine:
            distance = -(chunk @ others.T)  # (chunk, m)
        else:
            distance = torch.cdist(chunk, others, compute_mode=mode)
        if same_set:
            distance.diagonal(start).fill_(math.inf)
        nearest = distance.topk(neighbours, largest=False)
        indices.append(nearest.indices)
        distances.append(nearest.values)
    return Neighbours(torch.cat(indices), torch.cat(distances))
