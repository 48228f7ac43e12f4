"""The nearest rows are scikit-learn's, in chunks and on their own set."""

import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from maetok_lab import neighbours
from maetok_lab.neighbours import near_each_other, nearest_neighbours
from maetok_lab.rng import generator


def rows(count, width=6, name="rows"):
    return torch.randn(count, width, generator=generator(0, name), dtype=torch.float64)


@pytest.fixture(params=[1024, 7])
def chunk(request, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("cosine", [False, True])
def test_they_are_those_of_scikit_learn(cosine):
    queries, points = rows(30), rows(50, name="others")
    if cosine:
        queries, points = (torch.nn.functional.normalize(x) for x in (queries, points))
    result = nearest_neighbours(queries, points, neighbours=4, cosine=cosine)
    reference = NearestNeighbors(n_neighbors=4, metric="cosine" if cosine else "euclidean")
    distances, indices = reference.fit(points.numpy()).kneighbors(queries.numpy())
    assert result.indices.tolist() == indices.tolist()
    expected = torch.from_numpy(distances) - float(cosine)  # scikit-learn's is 1 - cosine
    torch.testing.assert_close(result.distances, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("chunk")
def test_in_its_own_set_a_row_is_not_its_own_neighbour_but_its_copy_is():
    points = rows(20)
    points = torch.cat([points, points[:1] + 1e-9])
    result = nearest_neighbours(points, neighbours=3)
    distances, indices = NearestNeighbors(n_neighbors=3).fit(points.numpy()).kneighbors()
    assert result.indices.tolist() == indices.tolist()
    torch.testing.assert_close(result.distances, torch.from_numpy(distances), rtol=1e-9, atol=0)
    assert (result.indices[0, 0], result.indices[20, 0]) == (20, 0)
    # the distance of near copies is right to many digits, which a matrix product would not give
    assert float(result.distances[0, 0]) == pytest.approx(1e-9 * 6**0.5, rel=1e-6)


def test_more_neighbours_than_there_are_and_other_widths_are_refused():
    with pytest.raises(ValueError, match="need 1 to 5 neighbours of rows of one width, not 6"):
        nearest_neighbours(rows(9), rows(5), neighbours=6)
    with pytest.raises(ValueError, match="need 1 to 4 neighbours"):
        nearest_neighbours(rows(5), neighbours=5)
    with pytest.raises(ValueError, match=r"not 1 of \(5, 6\) and \(5, 7\)"):
        nearest_neighbours(rows(5), rows(5, width=7), neighbours=1)


def test_they_are_found_in_float64():
    near = nearest_neighbours(rows(5).float(), rows(9, name="others").float(), neighbours=2)
    assert near.distances.dtype == torch.float64


def awkward(kind):
    """Points that float32 tells apart badly, or not at all."""
    points = rows(400, width=300)
    if kind == "far":  # from the origin
        return points + 1e6
    if kind == "near":  # one another, but for one
        return torch.cat([1e-6 * points[1:], 1e3 * points[:1]])
    if kind == "huge":  # beyond float32
        return 1e30 * points
    if kind == "copies":
        return torch.cat([points[:200], points[:200] + 1e-12])
    return points


@pytest.mark.parametrize("kind", ["plain", "far", "near", "huge", "copies"])
def test_what_float32_picks_is_what_float64_finds(kind, monkeypatch):
    points = awkward(kind)
    queries = points[:250] * 1.01
    monkeypatch.setattr(neighbours, "FEWEST", 0)
    monkeypatch.setattr(neighbours, "CHUNK", 96)
    for x, others in [(points, {}), (queries, {"points": points})]:
        apart = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
        if not others:
            apart.fill_diagonal_(math.inf)
        expected = apart.topk(5, largest=False)
        result = nearest_neighbours(x, neighbours=5, **others)
        torch.testing.assert_close(result.distances, expected.values, rtol=1e-9, atol=0)
        if kind != "copies":  # of two that are as far to rounding, either will do
            assert torch.equal(result.indices, expected.indices)


@pytest.mark.parametrize("kind", ["plain", "far", "near", "huge", "copies"])
def test_near_each_other_is_what_all_distances_say(kind, monkeypatch):
    x, y = awkward(kind), awkward(kind)[:250] * 1.01
    x_radius, y_radius = (nearest_neighbours(z, neighbours=3).distances[:, -1] for z in (x, y))
    apart = torch.cdist(x, y)
    for fewest in (0, 1 << 62):
        monkeypatch.setattr(neighbours, "FEWEST", fewest)
        x_near, y_near = near_each_other(x, y, x_radius, y_radius)
        assert torch.equal(x_near, (apart <= y_radius).any(dim=1))
        assert torch.equal(y_near, (apart <= x_radius[:, None]).any(dim=0))


@pytest.mark.parametrize("fewest", [0, 1 << 62])
def test_copies_on_both_sides_are_near(fewest, monkeypatch):
    # where each is there more often than a radius has neighbours, radii are 0
    monkeypatch.setattr(neighbours, "FEWEST", fewest)
    points = 100 + rows(60, width=300).repeat(5, 1)
    for x in (points, points.flip(0)):
        radius = nearest_neighbours(x, neighbours=3).distances[:, -1]
        assert not radius.any()
        near = near_each_other(x, points, radius, radius)
        assert [share.double().mean() for share in near] == [1, 1]
        assert not nearest_neighbours(x, points, neighbours=4).distances.any()


def test_rows_that_are_none_or_no_rows_are_refused():
    for x, points in ((rows(0), rows(9)), (rows(9), rows(0)), (rows(9)[None], rows(9)[None])):
        with pytest.raises(ValueError, match="of rows of one width, not 1 of"):
            nearest_neighbours(x, points, neighbours=1)


def test_few_rows_are_measured_again(monkeypatch):
    again = []
    monkeypatch.setattr(neighbours, "FEWEST", 0)
    measured = neighbours._measured
    monkeypatch.setattr(
        neighbours,
        "_measured",
        lambda chunk, *others: again.append(chunk) or measured(chunk, *others),
    )
    nearest_neighbours(rows(2000, width=64), neighbours=3)
    assert sum(map(len, again)) < 40
