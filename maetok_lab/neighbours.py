"""The nearest rows of a set, exactly: for metrics, probes, maps and the search for copies.

Distances are lengths of differences in float64: a matrix product would round away those of near
copies. On a CPU a product in float32, less a bound of its rounding, says which points can be among
the nearest. What it cannot decide is measured whole.
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
LARGEST = 1e15  # number that is left to float32
DIRECT = "donot_use_mm_for_euclid_dist"  # of torch.cdist: lengths of differences


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
    fits = rows.ndim == points.ndim == 2 and rows.shape[1] == points.shape[1] and len(rows)
    if not fits or not 1 <= neighbours <= available:
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

    # for each row the least squared distance - squared radius, and whose that is
    estimate = _Estimate(y)
    x_squares, y_squares = (
        (radius.square() * (1 + 2.0**-22)).float() for radius in (x_radius, y_radius)
    )
    of_x = []
    y_least = torch.full_like(y_squares, math.inf)
    y_nearest = torch.zeros(len(y), dtype=torch.long)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        apart = estimate(x[rows])
        of_x.append((apart - y_squares).min(dim=1))
        least = (apart - x_squares[rows, None]).min(dim=0)
        y_nearest = torch.where(least.values < y_least, least.indices + start, y_nearest)
        y_least = torch.minimum(least.values, y_least)
    x_least = torch.cat([least.values for least in of_x])
    x_nearest = torch.cat([least.indices for least in of_x])
    return _decided(x_least, x_nearest, x, y, y_radius), _decided(
        y_least, y_nearest, y, x, x_radius
    )


def _decided(
    least: Tensor, nearest: Tensor, rows: Tensor, points: Tensor, radius: Tensor
) -> Tensor:
    """Which rows lie within a radius, (n,): by the point `nearest` first, where that can be."""
    possible = least <= 0
    near = possible & (_lengths(points[nearest].sub_(rows)) <= radius[nearest])
    undecided = possible & ~near
    near[undecided] = _near(rows[undecided], points, radius)
    return near


def _near(rows: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """Which rows (n, d) lie within the radius (m,) of some point (m, d): (n,)."""
    near = [rows.new_zeros(0, dtype=torch.bool)]
    for chunk in rows.split(CHUNK):
        near.append((torch.cdist(chunk, points, compute_mode=DIRECT) <= radius).any(dim=1))
    return torch.cat(near)


def _measured(
    rows: Tensor, points: Tensor, neighbours: int, own: Tensor | None, cosine: bool = False
) -> Neighbours:
    """By all distances; `own` (b,) are the rows' own indices, which are left out."""
    if cosine:
        apart = -(rows @ points.T)  # (b, m)
    else:
        apart = torch.cdist(rows, points, compute_mode=DIRECT)
    if own is not None:
        apart.scatter_(1, own[:, None], math.inf)
    nearest = apart.topk(neighbours, largest=False)
    return Neighbours(nearest.indices, nearest.values)


def _lengths(differences: Tensor) -> Tensor:
    """(n, d) -> (n,)"""
    return torch.linalg.vector_norm(differences, dim=1)


# Picked by float32 --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Of each of n rows the f points that may be nearest, by their least possible distance."""

    indices: Tensor  # (n, f)
    squares: Tensor  # (n, f), the least that squared distances can be, in rising order

    def part(self, rows: slice) -> "_Candidates":
        """Those of some rows."""
        return _Candidates(self.indices[rows], self.squares[rows])


def _candidates_of(rows: Tensor, points: Tensor, count: int, size: int) -> _Candidates:
    """The `count` points nearest to each row, `size` rows at a time."""
    estimate = _Estimate(points)
    squares, indices = [], []
    for chunk in rows.split(size):
        nearest = estimate(chunk).topk(count, largest=False)
        squares.append(nearest.values)
        indices.append(nearest.indices)
    return _Candidates(torch.cat(indices), torch.cat(squares))


def _candidates_of_set(points: Tensor, count: int, size: int) -> _Candidates:
    """The same inside one set, where each pair is estimated once."""
    estimate = _Estimate(points)
    squares = torch.full((len(points), count), math.inf)
    indices = torch.zeros(squares.shape, dtype=torch.long)

    def merge(rows: slice, apart: Tensor, first: int) -> None:
        """Take in some rows' squared distances to the points from `first` on."""
        nearest = apart.topk(min(count, apart.shape[1]), largest=False)
        both = torch.cat([squares[rows], nearest.values], dim=1)
        nearest_of_both = both.topk(count, largest=False)
        places = torch.cat([indices[rows], nearest.indices + first], dim=1)
        squares[rows] = nearest_of_both.values
        indices[rows] = places.gather(1, nearest_of_both.indices)

    for start in range(0, len(points), size):
        stop = min(start + size, len(points))
        apart = estimate.inside(start, stop)
        apart.diagonal().fill_(math.inf)
        merge(slice(start, stop), apart, start)
        if stop < len(points):  # what is far from these rows is as far the other way
            merge(slice(stop, None), apart[:, stop - start :].T, start)
    return _Candidates(indices, squares)


def _among(
    candidates: _Candidates, rows: Tensor, points: Tensor, neighbours: int, own: Tensor | None
) -> Neighbours:
    """The nearest candidates; of all points where these cannot say."""
    distances = torch.empty(candidates.indices.shape, dtype=torch.float64)
    for column, indices in enumerate(candidates.indices.unbind(dim=1)):
        distances[:, column] = _lengths(points[indices].sub_(rows))
    nearest = distances.topk(neighbours, largest=False)
    indices, distances = candidates.indices.gather(1, nearest.indices), nearest.values

    # no other point can be nearer than the last candidate's least possible distance
    decided = candidates.squares[:, -1] >= distances[:, -1].square()
    if not decided.all():
        open_rows = (~decided).nonzero()[:, 0]
        own = None if own is None else own[open_rows]
        again = _measured(rows[open_rows], points, neighbours, own)
        indices[open_rows] = again.indices
        distances[open_rows] = again.distances
    return Neighbours(indices, distances)


class _Estimate:
    """The least that squared distances to points can be, by products in float32."""

    def __init__(self, points: Tensor):
        self.centre = points.mean(dim=0)  # lengths from here are the shortest
        self.points = (points - self.centre).float()
        self.squares = self._squares(self.points)

    def __call__(self, rows: Tensor) -> Tensor:
        """rows (b, d) -> (b, m)"""
        rows = (rows - self.centre).float()
        return self._apart(rows, self._squares(rows), slice(None))

    def inside(self, start: int, stop: int) -> Tensor:
        """The points start .. stop - 1, to those from `start` on."""
        rows = slice(start, stop)
        return self._apart(self.points[rows], self.squares[rows], slice(start, None))

    def _apart(self, rows: Tensor, squares: Tensor, points: slice) -> Tensor:
        # |x - y|^2 = |x|^2 + |y|^2 - 2 x'y, the first two smaller by all that rounding may add
        apart = squares[:, None] + self.squares[points]
        blocks = zip(rows.split(BLOCK, dim=1), self.points[points].split(BLOCK, dim=1))
        for row_part, point_part in blocks:
            apart.addmm_(row_part, point_part.T, alpha=-2)
        return apart

    @staticmethod
    def _squares(rows: Tensor) -> Tensor:
        """Squared lengths (n,) of float32 rows (n, d), less the roundings they have a share in."""
        parts = [torch.linalg.vecdot(part, part) for part in rows.split(BLOCK, dim=1)]
        # Each rounding is 2^-24 of at most |x|^2 + |y|^2: those of a block's product and of its
        # squares, of running sums of at most twice that, and a few of single numbers. The last term
        # is for numbers near float32's end.
        roundings = 2 * BLOCK + 3 * len(parts) + 32
        return torch.stack(parts).sum(dim=0) * (1 - roundings * 2.0**-24) - 1e-30


def _pays(rows: Tensor, points: Tensor) -> bool:
    """Whether float32 is to pick: on a CPU, whose products in float32 are what they say."""
    if rows.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
        return False
    if len(rows) * len(points) < FEWEST:
        return False
    # squares and their sums are to be finite in float32 too; NaN is in no range
    for side in [rows] if rows is points else [rows, points]:
        least, most = side.aminmax()
        if not -LARGEST < least <= most < LARGEST:
            return False
    return True
