"""Maps of latents: columns, seeds, quality against definitions, new latents on an old map."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes

from maetok_lab.analysis.projection import _disparity, fit_projection, map_quality, project
from maetok_lab.rng import generator


def clusters(count=150, classes=3, name="map"):
    centres = 6 * torch.randn(classes, 2, 5, generator=generator(0, "centres"))
    labels = torch.arange(count) % classes
    return centres[labels] + torch.randn(count, 2, 5, generator=generator(0, name)), labels


def test_pca_map_is_the_two_widest_directions():
    x, labels = clusters()
    frame = project(x, method="pca", labels=labels)
    centred = (x.flatten(1) - x.flatten(1).mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(frame[["x", "y"]]), (u * s)[:, :2].abs(), atol=1e-5)
    assert list(frame.columns) == ["x", "y", "row", "label"]
    assert frame.label.tolist() == labels.tolist()
    json.dumps(frame.attrs)  # can be stored with the table


def test_a_map_is_made_of_the_first_principal_components_alone():
    x, _ = clusters()
    narrow = fit_projection(x, method="pca", pca_dimensions=3)
    assert narrow.reducer.dimensions == 3
    assert (
        narrow.frame.attrs["quality"]["explained"]
        < fit_projection(x, method="pca").frame.attrs["quality"]["explained"]
    )


def test_class_structure_is_counted():
    x, labels = clusters()
    quality = project(x, method="pca", labels=labels).attrs["quality"]
    assert quality["knn_accuracy"] == quality["knn_accuracy_before"] == 1
    assert quality["silhouette"] > 0.5
    mixed = project(
        x, method="pca", labels=labels.flip(0)[torch.randperm(150, generator=generator(0, "mix"))]
    )
    assert mixed.attrs["quality"]["knn_accuracy"] < 0.6
    assert mixed.attrs["quality"]["silhouette"] < 0.1


def test_trustworthiness_is_one_for_a_faithful_map_and_low_for_a_random_one():
    scores = torch.randn(200, 2, generator=generator(0, "scores")).numpy()
    assert map_quality(3 * scores + 1, scores)["trustworthiness"] == 1
    noise = torch.randn(200, 2, generator=generator(0, "noise")).numpy()
    assert map_quality(noise, scores)["trustworthiness"] < 0.6


def test_tsne_is_seeded_and_cannot_place_new_latents():
    x, _ = clusters(60)
    first, again = (fit_projection(x, method="tsne", neighbours=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.frame, again.frame)
    with pytest.raises(TypeError, match="t-SNE has no transform"):
        first.transform(x)


def test_new_latents_are_placed_on_the_same_map():
    x, _ = clusters()
    fitted = fit_projection(x, method="pca")
    np.testing.assert_allclose(fitted.transform(x[:20]), fitted.frame[["x", "y"]][:20], atol=1e-9)


def test_rows_are_capped_and_named():
    x, labels = clusters()
    frame = project(x, method="pca", labels=labels, max_rows=40)
    assert len(frame) == 40
    assert frame.row.is_monotonic_increasing
    assert (frame.label.to_numpy() == labels[frame.row.to_list()].numpy()).all()
    assert project(x, method="pca", max_rows=40, seed=1).row.tolist() != frame.row.tolist()


def test_disparity_ignores_rotation_scale_and_shift_only():
    points = torch.randn(50, 2, generator=generator(0, "points")).double().numpy()
    turned = 3 * points @ np.array([[0.0, -1.0], [1.0, 0.0]]) + 7
    assert _disparity([points, turned, -points]) == pytest.approx(0, abs=1e-12)
    assert _disparity([points, points[::-1]]) > 0.5
    assert _disparity([points, points[::-1]]) == pytest.approx(procrustes(points, points[::-1])[2])
    x, _ = clusters()
    assert project(x, method="pca", stability=True).attrs["quality"]["disparity"] == pytest.approx(
        0, abs=1e-12
    )


def test_errors_say_what_came(monkeypatch):
    x, labels = clusters()
    with pytest.raises(ValueError, match="unknown method 'isomap'"):
        project(x, method="isomap")
    with pytest.raises(ValueError, match="neighbours >= 2, not 20000, 50, 1"):
        project(x, method="pca", neighbours=1)
    with pytest.raises(ValueError, match="labels must be"):
        project(x, method="pca", labels=labels[:20])
    with pytest.raises(ValueError, match="one line only"):
        project(torch.linspace(0, 1, 50)[:, None].expand(50, 4), method="pca")
    with pytest.raises(ValueError, match="too few latents"):
        project(x[:5], method="pca")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"maetok-lab\[notebooks\]"):
        project(x, method="umap")


@pytest.mark.slow
def test_umap_is_seeded_and_places_new_latents():
    pytest.importorskip("umap")
    x, labels = clusters()
    first, again = (fit_projection(x, labels=labels, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.frame, again.frame)
    assert first.frame.attrs["quality"]["knn_accuracy"] > 0.95
    moved = first.transform(x[:20]).to_numpy() - first.frame[["x", "y"]][:20].to_numpy()
    assert np.abs(moved).max() < 2


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_a_map_with_copies_is_seeded_and_copies_lie_together(method):
    if method == "umap":
        pytest.importorskip("umap")
    x = torch.randn(200, 4, 4, generator=generator(1, "copies"))
    x[:16] = x[0]
    one, two = (project(x, method=method, seed=0)[["x", "y"]].to_numpy() for _ in range(2))
    assert np.array_equal(one, two)
    assert (one[:16] == one[0]).all()
    assert len(np.unique(one, axis=0)) == 185


READ_ONLY = """
import numba
from numba.core import caching

def nowhere(cls, function, file):
    return None

# as where neither the packages' folder nor the home can be written
for name in list(vars(caching)):
    if name.endswith(("CacheLocator", "FsAgnostic")) and "UserProvided" not in name:
        getattr(caching, name).from_function = classmethod(nowhere)
try:
    import umap
except RuntimeError as problem:
    print("alone:", problem)
from maetok_lab.analysis.projection import _umap
print(_umap().UMAP.__name__, numba.config.CACHE_DIR)
"""


def test_umap_is_imported_where_its_compiled_functions_cannot_be_kept(tmp_path):
    pytest.importorskip("umap")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    process = subprocess.run(
        [sys.executable, "-c", READ_ONLY], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr
    alone, ours = process.stdout.splitlines()
    assert "no locator available" in alone
    assert ours.startswith(f"UMAP {tmp_path}")
    # nothing is left behind
    assert list(tmp_path.glob("numba-*")) == []
