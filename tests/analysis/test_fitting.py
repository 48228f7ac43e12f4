"""Expectation maximisation against scikit-learn; densities that integrate to one."""

import itertools
import json
import math
import runpy

import numpy as np
import pytest
import torch

from maetok_lab.analysis.fitting import GmmProtocol
from maetok_lab.analysis.fitting import fit_gmm as fit_protocol
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.rng import generator


def blobs(components, width, count, spread=8.0, seed=0):
    """Rows (count, width) from unit Gaussians with far centres, and their components (count,)."""
    random = generator(seed, "blobs", components, width)
    centres = spread * torch.randn(components, width, generator=random, dtype=torch.float64)
    labels = torch.arange(count) % components
    return centres[labels] + torch.randn(
        count, width, generator=random, dtype=torch.float64
    ), labels


def fit_gmm(points, components, *, start=None, **options):
    return fit_protocol(points, components, GmmProtocol(**options), start=start)


def start_of(points, components, covariance):
    width = points.shape[1]
    unit = torch.ones(width) if covariance == "diag" else torch.eye(width)
    weights = torch.full((components,), 1 / components, dtype=torch.float64)
    return Mixture(
        weights, points[:components].clone(), unit.double().expand(components, *unit.shape).clone()
    )


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("iterations", [1, 7])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_start_and_iterations_give_scikit_learns_likelihood(covariance, iterations):
    points, _ = blobs(5, 4, 400, spread=1.5)
    start = start_of(points, 5, covariance)
    ours = fit_gmm(
        points,
        5,
        covariance=covariance,
        start=start,
        max_iterations=iterations,
        tolerance=0,
        covariance_floor=1e-6,
    )
    sklearn = pytest.importorskip("sklearn.mixture").GaussianMixture(
        5,
        covariance_type=covariance,
        tol=0,
        max_iter=iterations,
        reg_covar=1e-6,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=start.covariances.numpy(),  # all are one
    )
    sklearn.fit(points.numpy())
    assert ours.iterations == iterations
    assert -ours.train_nll == pytest.approx(sklearn.score(points.numpy()), rel=1e-9)
    np.testing.assert_allclose(ours.means, sklearn.means_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.covariances, sklearn.covariances_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        ours.log_prob(points), sklearn.score_samples(points.numpy()), rtol=1e-8
    )
    assert (ours.predict(points).numpy() == sklearn.predict(points.numpy())).all()
    assert ours.num_parameters == sklearn._n_parameters()


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_likelihood_never_falls_and_its_gain_ends_the_fit(covariance):
    points, _ = blobs(6, 3, 300, spread=1.0)
    start = start_of(points, 6, covariance)
    nll = [
        fit_gmm(points, 6, covariance=covariance, start=start, max_iterations=n).train_nll
        for n in range(1, 9)
    ]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(nll))
    done = fit_gmm(points, 6, covariance=covariance, start=start, tolerance=1e-2)
    assert done.converged
    assert not fit_gmm(points, 6, covariance=covariance, start=start, max_iterations=2).converged
    assert done.iterations < 200


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("width", [1, 2])
def test_density_integrates_to_one(width, covariance):
    points, _ = blobs(3, width, 200, spread=2.0)
    mixture = fit_gmm(points, 3, covariance=covariance)
    axis = torch.linspace(-25, 25, 1001 if width == 2 else 20001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * width).view(-1, width)
    assert float(
        mixture.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** width
    ) == pytest.approx(1, abs=1e-6)


def test_well_separated_components_are_found():
    points, labels = blobs(12, 8, 600)
    mixture = fit_gmm(points, 12)
    predictions = mixture.predict(points)
    pairs = torch.stack([labels, predictions]).unique(dim=1)
    assert pairs.shape[1] == 12  # a bijection
    torch.testing.assert_close(
        mixture.weights, torch.full((12,), 1 / 12).double(), atol=1e-3, rtol=0
    )


def test_an_empty_component_is_put_where_the_rows_are():
    points, _ = blobs(3, 2, 300)
    start = start_of(points, 3, "diag")
    start.means[2] = 1e4  # no row is near
    lost = fit_gmm(points, 3, start=start, max_iterations=50)
    assert lost.weights.min() > 0.2
    assert lost.train_nll == pytest.approx(fit_gmm(points, 3).train_nll, abs=0.05)


def test_small_chunks_and_memory_maps_change_nothing(tmp_path, monkeypatch):
    points, _ = blobs(5, 4, 333, spread=1.5)
    np.save(tmp_path / "points.npy", points.numpy())
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    whole = fit_gmm(points, 5)
    monkeypatch.setattr("maetok_lab.analysis.mixture.CHUNK_VALUES", {"cpu": 0})  # 16 rows
    parts = fit_gmm(mapped, 5)
    assert parts.train_nll == pytest.approx(whole.train_nll, rel=1e-10)
    torch.testing.assert_close(parts.means, whole.means, rtol=1e-6, atol=1e-8)


def test_features_too_large_to_keep_are_made_again(monkeypatch):
    points, _ = blobs(4, 4, 200)
    cached = fit_gmm(points, 4, covariance="full")
    monkeypatch.setattr("maetok_lab.analysis.mixture.CACHE_BYTES", 0)
    assert fit_gmm(points, 4, covariance="full").train_nll == pytest.approx(
        cached.train_nll, rel=1e-10
    )


def test_float32_agrees_with_float64():
    points, _ = blobs(5, 6, 500, spread=2.0)
    exact = fit_gmm(points, 5)
    fast = fit_gmm(points, 5, precision="float32")
    assert fast.train_nll == pytest.approx(exact.train_nll, rel=1e-4)
    assert fast.means.dtype == torch.float64


def test_more_restarts_are_no_worse_and_seeds_are_obeyed():
    points, _ = blobs(20, 3, 400, spread=2.0)
    one = fit_gmm(points, 20, restarts=1).train_nll
    many = fit_gmm(points, 20, restarts=20).train_nll
    assert many <= one + 1e-3
    assert fit_gmm(points, 20, seed=3).train_nll == fit_gmm(points, 20, seed=3).train_nll
    assert (
        fit_gmm(points, 20, seed=3, restarts=1).train_nll
        != fit_gmm(points, 20, seed=4, restarts=1).train_nll
    )


def test_one_component_is_the_sample_gaussian():
    points, _ = blobs(3, 2, 200)
    mixture = fit_gmm(points, 1, covariance="full", covariance_floor=1e-9)
    torch.testing.assert_close(mixture.means[0], points.mean(0))
    torch.testing.assert_close(
        mixture.covariances[0], points.T.cov(correction=0), rtol=1e-6, atol=1e-6
    )
    want = 0.5 * (2 * math.log(2 * math.pi * math.e) + points.T.cov(correction=0).logdet())
    assert mixture.train_nll == pytest.approx(float(want), rel=1e-6)


def test_starts_can_come_from_a_sample_and_screening_can_be_left_out():
    points, _ = blobs(4, 3, 400)
    want = fit_gmm(points, 4).train_nll
    assert fit_gmm(points, 4, start_rows=50).train_nll == pytest.approx(want, abs=0.01)
    unscreened = fit_gmm(points, 4, screen_iterations=0, max_iterations=3, tolerance=0)
    assert unscreened.iterations == 3
    assert fit_gmm(points, 4, screen_iterations=9, max_iterations=3, tolerance=0).iterations == 3


def test_errors_say_what_came():
    points, _ = blobs(3, 2, 20)
    bad = points.clone()
    bad[5] = math.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_gmm(bad, 2)
    with pytest.raises(ValueError, match="between 1 and 20, the number of rows, not 21"):
        fit_gmm(points, 21)
    with pytest.raises(ValueError, match="constant"):
        fit_gmm(torch.ones(20, 2), 2)
    with pytest.raises(ValueError, match="covariance 'tied'"):
        fit_gmm(points, 2, covariance="tied")
    with pytest.raises(ValueError, match="unknown precision 'float16'; did you mean 'float64'"):
        fit_gmm(points, 2, precision="float16")
    with pytest.raises(ValueError, match="the start has"):
        fit_gmm(points, 3, start=start_of(points, 2, "diag"))
    with pytest.raises(ValueError, match=r"points must be \(n, 2\)"):
        fit_gmm(points, 2).log_prob(points[:, :1])


def test_the_benchmark_compares_with_scikit_learn_and_projects(repository, capsys, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    main = runpy.run_path(str(repository / "benchmarks" / "gmm.py"))["main"]
    options = "--rows 300 --width 8 --components 4 --iterations 3 --repeats 1 --threads 1"
    main(options.split())
    line = json.loads(capsys.readouterr().out)
    assert (line["rows"], line["components"], line["threads"]) == (300, 4, 1)
    assert line["times_sklearn_float64"] > 0
    assert line["projected_hours_imagenet_float64"] > 0
