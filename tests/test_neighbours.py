"""The nearest rows are scikit-learn's, in chunks and on their own set."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from maetok_lab import neighbours
from maetok_lab.neighbours import nearest_neighbours
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
