"""The nearest rows of a set, exactly: for metrics, probes, maps and the search for copies.

On a CPU a product in float32 picks the few points that can be among the nearest, and those are
measured in float64. What float32 cannot decide, by a bound of its rounding, is measured again.
"""

import dataclasses
import math

import torch
from torch import Tensor

from maetok_lab.device import wide

CHUNK = 1024  # rows at a time: their distances to all points are held at once
HELD = 1 << 27  # distances at most: 1 GB
SPARE = 2  # points measured beyond the k nearest: with them float32 leaves few rows undecided
BLOCK = 256  # products in float32 are added up in sums of so many, which bounds their rounding
FEWEST = 1 << 20  # distances from which on picking in float32 pays


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
    size = max(1, min(CHUNK, HELD // len(points)))
    candidates = None
    if not cosine and _pays(rows, points):
        count = min(neighbours + SPARE, available)
        if same_set:
            candidates = _candidates_of_set(rows, count, size)
        else:
            candidates = _candidates_of(rows, points, count, size)

    # distances are measured, those to the candidates, or to all points
    indices, distances = [], []
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        own = torch.arange(len(rows))[chunk].to(rows.device) if same_set else None
        if candidates is None:
            nearest = _measured(rows[chunk], points, neighbours, own, cosine)
        else:
            nearest = _among(candidates.part(chunk), rows[chunk], points, neighbours, own)
        indices.append(nearest.indices)
        distances.append(nearest.distances)
    return Neighbours(torch.cat(indices), torch.cat(distances))


def near_each_other(
    x: Tensor, y: Tensor, x_radius: Tensor, y_radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Which rows of x lie within the radius of some row of y, and which of y within one of x's.

    float64 (n, d), (m, d), radii (n,), (m,) -> bool (n,), (m,)
    """
    if not _pays(x, y):
        return _near(x, y, y_radius), _near(y, x, x_radius)
    # the least of squared distance - squared radius, for every row of either side
    estimate = _Estimate(y)
    x_squares, y_squares = x_radius.square().float(), y_radius.square().float()
    x_least, x_bounds = [], []
    y_least = torch.full_like(y_squares, math.inf)
    for chunk, squares in zip(x.split(CHUNK), x_squares.split(CHUNK)):
        apart, bound = estimate(chunk)
        x_least.append((apart - y_squares).amin(dim=1))
        x_bounds.append(bound)
        y_least = torch.minimum(y_least, (apart - squares[:, None]).amin(dim=0))
    bounds = torch.cat(x_bounds)
    x_near = _decided(torch.cat(x_least), bounds, x, y, y_radius)
    return x_near, _decided(y_least, bounds.max(), y, x, x_radius)


def _decided(least: Tensor, bound: Tensor, rows: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """Which rows lie within a radius, (n,): `least` says it where it is beyond its bound from 0."""
    near = least + bound <= 0
    undecided = ~near & ~(least - bound > 0)  # NaN of an overflow too
    near[undecided] = _near(rows[undecided], points, radius)
    return near


def _near(rows: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """Which rows (n, d) lie within the radius (m,) of some point (m, d), in float64: (n,)."""
    near = [rows.new_zeros(0, dtype=torch.bool)]
    for chunk in rows.split(CHUNK):
        near.append((torch.cdist(chunk, points) <= radius).any(dim=1))
    return torch.cat(near)


def _measured(
    rows: Tensor, points: Tensor, neighbours: int, own: Tensor | None, cosine: bool = False
) -> Neighbours:
    """All distances in float64; `own` (b,) are the rows' own indices, which are left out."""
    if cosine:
        apart = -(rows @ points.T)  # (b, m)
    else:
        # A matrix product is fast, but rounds away the small distances of near copies. A set's
        # dimension (analysis.geometry) is computed from just those: inside one set, no product.
        mode = "use_mm_for_euclid_dist_if_necessary"
        if own is not None:
            mode = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(rows, points, compute_mode=mode)
    if own is not None:
        apart.scatter_(1, own[:, None], math.inf)
    nearest = apart.topk(neighbours, largest=False)
    return Neighbours(nearest.indices, nearest.values)


# Picked by float32 --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Of each of n rows the f points that are nearest by an estimate in float32."""

    indices: Tensor  # (n, f)
    estimates: Tensor  # (n, f), of squared distances, in rising order
    bounds: Tensor  # (n,), how far the estimates of a row can be off

    def part(self, rows: slice) -> "_Candidates":
        """Those of some rows."""
        return _Candidates(self.indices[rows], self.estimates[rows], self.bounds[rows])


def _candidates_of(rows: Tensor, points: Tensor, count: int, size: int) -> _Candidates:
    """The `count` points nearest to each row, `size` rows at a time."""
    estimate = _Estimate(points)
    estimates, indices, bounds = [], [], []
    for chunk in rows.split(size):
        apart, bound = estimate(chunk)
        nearest = apart.topk(count, largest=False)
        estimates.append(nearest.values)
        indices.append(nearest.indices)
        bounds.append(bound)
    return _Candidates(torch.cat(indices), torch.cat(estimates), torch.cat(bounds))


def _candidates_of_set(points: Tensor, count: int, size: int) -> _Candidates:
    """The same inside one set, where each pair is estimated once."""
    estimate = _Estimate(points)
    estimates = torch.full((len(points), count), math.inf)
    indices = torch.zeros(estimates.shape, dtype=torch.long)
    bounds = torch.empty(len(points))

    def merge(rows: slice, apart: Tensor, first: int) -> None:
        """Take in some rows' squared distances to the points from `first` on."""
        nearest = apart.topk(min(count, apart.shape[1]), largest=False)
        both = torch.cat([estimates[rows], nearest.values], dim=1)
        nearest_of_both = both.topk(count, largest=False)
        places = torch.cat([indices[rows], nearest.indices + first], dim=1)
        estimates[rows] = nearest_of_both.values
        indices[rows] = places.gather(1, nearest_of_both.indices)

    for start in range(0, len(points), size):
        stop = min(start + size, len(points))
        apart, bounds[start:stop] = estimate.inside(start, stop)
        apart.diagonal().fill_(math.inf)
        merge(slice(start, stop), apart, start)
        if stop < len(points):  # what is far from these rows is as far the other way
            merge(slice(stop, None), apart[:, stop - start :].T, start)
    return _Candidates(indices, estimates, bounds)


def _among(
    candidates: _Candidates, rows: Tensor, points: Tensor, neighbours: int, own: Tensor | None
) -> Neighbours:
    """The nearest candidates by distances in float64; of all points where these cannot say."""
    distances = torch.empty(candidates.indices.shape, dtype=torch.float64)
    for column, indices in enumerate(candidates.indices.unbind(dim=1)):
        distances[:, column] = torch.linalg.vector_norm(rows - points[indices], dim=1)
    nearest = distances.topk(neighbours, largest=False)
    indices, distances = candidates.indices.gather(1, nearest.indices), nearest.values

    # What was not measured is no nearer than the last estimate, less what rounding may have added.
    decided = candidates.estimates[:, -1] - candidates.bounds >= distances[:, -1].square()
    if not decided.all():
        rest = (~decided).nonzero()[:, 0]
        again = _measured(rows[rest], points, neighbours, None if own is None else own[rest])
        indices[rest] = again.indices
        distances[rest] = again.distances
    return Neighbours(indices, distances)


class _Estimate:
    """Squared distances to points in float32, with a bound of their rounding."""

    def __init__(self, points: Tensor):
        self.centre = points.mean(dim=0)  # lengths from here are the shortest
        self.points = (points - self.centre).float()
        self.squares = _squares(self.points)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (b, d) -> estimates (b, m), and for each row how far they can be off (b,)."""
        rows = (rows - self.centre).float()
        return self._apart(rows, _squares(rows), slice(None))

    def inside(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The same of the points start .. stop - 1, to those from `start` on."""
        rows = slice(start, stop)
        return self._apart(self.points[rows], self.squares[rows], slice(start, None))

    def _apart(self, rows: Tensor, squares: Tensor, others: slice) -> tuple[Tensor, Tensor]:
        apart = squares[:, None] + self.squares[others]
        blocks = zip(rows.split(BLOCK, dim=1), self.points[others].split(BLOCK, dim=1))
        for part, points in blocks:
            apart.addmm_(part, points.T, alpha=-2)
        # Each rounding is 2^-24 of at most |row|^2 + |point|^2: those of one block's sum, one a
        # block, and a few of single numbers. The last term is for numbers near float32's end.
        roundings = BLOCK + rows.shape[1] / BLOCK + 32
        return apart, roundings * 2.0**-24 * (squares + self.squares.max()) + 1e-30


def _squares(rows: Tensor) -> Tensor:
    """Squared lengths of float32 rows (n, d), added up like the products: (n,)."""
    parts = [torch.linalg.vecdot(part, part) for part in rows.split(BLOCK, dim=1)]
    return torch.stack(parts).sum(dim=0)


def _pays(rows: Tensor, points: Tensor) -> bool:
    """Whether float32 is to pick: on a CPU, whose products in float32 are what they say."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return rows.device.type == "cpu" and exact and len(rows) * len(points) >= FEWEST
