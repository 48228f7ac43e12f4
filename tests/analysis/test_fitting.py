"""Expectation maximisation against scikit-learn; densities that integrate to one."""

import itertools
import math

import numpy as np
import pytest
import torch

from maetok_lab.analysis.fitting import GmmProtocol, _starts
from maetok_lab.analysis.fitting import fit_gmm as fit_protocol
from maetok_lab.analysis.mixture import Mixture, Rows, expect
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


def test_seeds_are_obeyed():
    points, _ = blobs(20, 3, 400, spread=2.0)
    assert fit_gmm(points, 20, seed=3).train_nll == fit_gmm(points, 20, seed=3).train_nll
    assert (
        fit_gmm(points, 20, seed=3, restarts=1).train_nll
        != fit_gmm(points, 20, seed=4, restarts=1).train_nll
    )


# More restarts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [2, 5, 10])
@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_more_restarts_are_never_worse(components, covariance):
    for seed in range(20):
        points, _ = blobs(5, 3, 150, spread=1.0, seed=seed)
        options = {"covariance": covariance, "seed": seed, "screen_iterations": seed % 4}
        nll = [
            fit_gmm(points, components, restarts=restarts, **options).train_nll
            for restarts in (1, 2, 3, 5, 10)
        ]
        assert all(more <= fewer for fewer, more in itertools.pairwise(nll)), (seed, nll)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_multiple_init(covariance):
    # scikit-learn's test of this name, for GaussianMixture(n_init)
    points = torch.from_numpy(np.random.RandomState(0).randn(50, 5))
    one = fit_gmm(points, 2, covariance=covariance, restarts=1, covariance_floor=1e-6)
    five = fit_gmm(points, 2, covariance=covariance, restarts=5, covariance_floor=1e-6)
    assert five.log_prob(points).mean() >= one.log_prob(points).mean()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_init():
    # scikit-learn's test of this name: more starts, one iteration; and ours are no worse starts
    GaussianMixture = pytest.importorskip("sklearn.mixture").GaussianMixture
    better = 0
    for seed in range(15):
        points, _ = blobs(2, 2, 100, spread=3.0, seed=seed)
        options = {"covariance": "full", "max_iterations": 1, "covariance_floor": 1e-6}
        one = fit_gmm(points, 2, restarts=1, seed=seed, **options)
        ten = fit_gmm(points, 2, restarts=10, seed=seed, **options)
        assert (one.iterations, ten.iterations) == (1, 1)
        assert ten.train_nll <= one.train_nll
        sklearn = GaussianMixture(2, n_init=10, max_iter=1, random_state=seed).fit(points.numpy())
        better += -ten.train_nll > sklearn.score(points.numpy()) - 1e-2
    assert better >= 12


def test_the_first_of_many_starts_is_the_only_one_of_one():
    points, _ = blobs(7, 3, 500, spread=2.0)
    rows = Rows(points, points.device, origin=points.mean(dim=0))
    for options in ({}, {"start_rows": 60}, {"covariance": "full"}):
        many = _starts(rows, 7, GmmProtocol(restarts=6, **options))
        for count in (1, 2, 5):
            fewer = _starts(rows, 7, GmmProtocol(restarts=count, **options))
            assert len(fewer) == count
            for a, b in zip(fewer, many):  # the first of many
                assert torch.equal(a.means, b.means)
                assert torch.equal(a.covariances, b.covariances)
        assert not torch.equal(many[0].means, many[2].means)


def test_restarts_end_when_they_settle_or_cannot_catch_up(monkeypatch):
    fitted = []

    def count(rows, mixtures):
        fitted.append(len(mixtures))
        return expect(rows, mixtures)

    monkeypatch.setattr("maetok_lab.analysis.fitting.expect", count)
    far, _ = blobs(5, 4, 500, spread=20.0)
    assert fit_gmm(far, 5).converged
    assert len(fitted) < 10  # not 20 iterations of all
    assert (fitted[0], fitted[-1]) == (10, min(fitted))

    near, _ = blobs(8, 4, 500, spread=0.5)
    iterations = {}
    likelihood = {}
    for screen in (3, 200):
        fitted.clear()
        options = {"screen_iterations": screen, "tolerance": 1e-4}
        likelihood[screen] = -fit_gmm(near, 8, **options).train_nll
        iterations[screen] = sum(fitted)
    assert iterations[3] < 0.8 * iterations[200]
    assert likelihood[3] == pytest.approx(likelihood[200], abs=0.02)


# Far from zero ------------------------------------------------------------------------------------


def density(mixture, points, offset):
    """log p of rows by scipy, with rows and means less the offset."""
    stats = pytest.importorskip("scipy.stats")
    parts = []
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances):
        if covariance.ndim == 1:
            covariance = covariance.diag()
        normal = stats.multivariate_normal((mean - offset).numpy(), covariance.numpy())
        parts.append(math.log(weight) + normal.logpdf((points.double() - offset).numpy()))
    return np.logaddexp.reduce(parts)


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize(
    ("offset", "dtype", "tolerance"),
    [
        (1e3, "float32", 1e-5),
        (1e6, "float32", 1e-2),
        (1e3, "float64", 1e-9),
        (1e8, "float64", 1e-7),
    ],
)
def test_rows_far_from_zero_have_the_same_mixture(offset, dtype, tolerance, covariance):
    points, _ = blobs(3, 4, 600)
    far = (points + offset).to(getattr(torch, dtype))
    near = fit_gmm(points, 3, covariance=covariance)
    mixture = fit_gmm(far, 3, covariance=covariance)
    assert mixture.train_nll == pytest.approx(near.train_nll, abs=tolerance)
    torch.testing.assert_close(mixture.means - offset, near.means, rtol=0, atol=offset * 1e-6)
    np.testing.assert_allclose(mixture.log_prob(far), density(mixture, far, offset), atol=1e-6)
    assert mixture.predict(far).equal(near.predict(points))


def test_rows_far_from_zero_are_read_in_chunks_and_start_where_they_are(tmp_path, monkeypatch):
    points, _ = blobs(3, 2, 333)
    far = points + torch.tensor([1e8, -1e5])
    np.save(tmp_path / "points.npy", far.numpy())
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    start = start_of(far, 3, "diag")
    want = fit_gmm(points, 3, start=start_of(points, 3, "diag"))
    monkeypatch.setattr("maetok_lab.analysis.preprocess.CHUNK_VALUES", 50)
    monkeypatch.setattr("maetok_lab.analysis.mixture.CACHE_BYTES", 0)
    for precision, tolerance in (("float64", 1e-7), ("float32", 1e-4)):
        mixture = fit_gmm(mapped, 3, start=start, precision=precision)
        assert mixture.train_nll == pytest.approx(want.train_nll, abs=tolerance)
        assert mixture.iterations == want.iterations


def test_what_numbers_cannot_hold_is_refused():
    points, _ = blobs(3, 4, 300, spread=3.0)
    message = (
        r"rows lie at 1e\+08 with a spread of .*, which float32 cannot hold: its numbers are 8 "
        "apart there; subtract their mean before they are made float32"
    )
    with pytest.raises(ValueError, match=message):
        fit_gmm((points + 1e8).float(), 3)
    # all dimensions together may vary enough, but not the components
    with pytest.raises(ValueError, match="which float32 cannot hold: its numbers are 1 apart"):
        fit_gmm((blobs(3, 4, 300, spread=20.0)[0] + 1e7).float(), 3)
    with pytest.raises(ValueError, match="which bfloat16 cannot hold"):
        fit_gmm((points + 1e3).bfloat16(), 3)
    with pytest.raises(ValueError, match=r"constant: .* as far as their dtype tells"):
        fit_gmm((points / 10 + 1e9).float(), 3)
    for huge, precision in ((1e170, "float64"), (1e25, "float32")):
        with pytest.raises(ValueError, match=f"squares {precision} cannot hold: divide them by"):
            fit_gmm(points * huge, 3, precision=precision)
    # groups so far apart that (x - m)^2, multiplied out, has no digits left
    groups = torch.cat([points, points + 1e9])
    with pytest.raises(ValueError, match=r"too far for float64: .* one by one"):
        fit_gmm(groups, 2)
    with pytest.raises(ValueError, match="too far for float32: take precision='float64'"):
        fit_gmm(torch.cat([points, points + 1e5]), 2, precision="float32")
    mixture = Mixture(torch.full((2,), 0.5), torch.tensor([[0.0], [1e9]]), torch.ones(2, 1))
    with pytest.raises(ValueError, match="too far for float64"):
        mixture.log_prob(points[:, :1])


def test_what_numbers_can_hold_is_not_refused():
    points, _ = blobs(3, 4, 300, spread=3.0)
    want = fit_gmm(points, 3).train_nll
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 2e-2)):
        near = points - points.mean(dim=0)
        assert fit_gmm(near.to(dtype), 3).train_nll == pytest.approx(want, abs=tolerance)
    # whole numbers are exact; a constant dimension adds the density of its floor, also far away
    whole = (100 * points).round().long()
    assert fit_gmm(whole + 10**9, 3).train_nll == pytest.approx(fit_gmm(whole, 3).train_nll)
    constant = torch.cat([points.float(), torch.full((300, 1), 3e7)], dim=1)
    floor = 0.5 * math.log(2 * math.pi * 1e-3)
    assert fit_gmm(constant, 3).train_nll == pytest.approx(want + floor, abs=1e-5)
    # rounding that the floor hides
    nearly = torch.cat([points.float(), 1000 + 3e-5 * points[:, :1].float()], dim=1)
    assert fit_gmm(nearly, 3).train_nll == pytest.approx(want + floor, abs=1e-3)
    assert fit_gmm(points * 1e100, 3).train_nll == pytest.approx(want + 400 * math.log(10), abs=0.1)


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


@pytest.mark.parametrize(("dtype", "offset", "spread"), [("bfloat16", 5, 1), ("float16", 40, 8)])
def test_components_of_single_rows_are_no_reason_to_refuse(dtype, offset, spread):
    points = offset + spread * torch.randn(400, 8, generator=generator(0, "points"))
    assert fit_gmm(points.to(getattr(torch, dtype)), 100, restarts=1).weights.min() > 0


def test_refusals_name_the_largest_number_and_a_way_that_is_there():
    points = torch.randn(70_000, 8, generator=generator(0, "points"), dtype=torch.float64)
    points[5] = 3e25
    with pytest.raises(ValueError, match=r"as large as 3\.0e\+25, whose squares float32"):
        fit_gmm(points, 2, precision="float32")
    with pytest.raises(ValueError, match="too far for float64: fit groups"):
        fit_gmm(torch.cat([points[6:100], points[:1] + 1e8]), 2, covariance_floor=1e-3)


def test_rows_that_want_a_gradient_are_fitted():
    points = torch.randn(60, 2, generator=generator(0, "points")).requires_grad_()
    assert not fit_gmm(points, 2).means.requires_grad
