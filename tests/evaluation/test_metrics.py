"""Image and feature metrics against scipy, torch-fidelity and scikit-image, and their limits."""

import math

import numpy as np
import pytest
import torch

from maetok_lab.evaluation.metrics import (
    feature_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    monge_distance,
    precision_recall,
)
from maetok_lab.evaluation.pixels import psnr, round_to_uint8, ssim
from maetok_lab.rng import generator


def images(count=3, size=24, name="images"):
    return (
        torch.rand(count, 3, size, size, generator=generator(0, name)) * 2.4 - 1.2
    )  # some pixels need clamping


def noisy(x, sigma):
    return x + sigma * torch.randn(x.shape, generator=generator(0, "noise"))


def features(count=200, width=16, name="features", shift=0.0):
    x = torch.randn(count, width, generator=generator(0, name), dtype=torch.float64)
    mix = torch.randn(width, width, generator=generator(1, name), dtype=torch.float64)
    return x @ mix / width**0.5 + shift


def uint8_hwc(x):
    return round_to_uint8(x).to(torch.uint8).permute(0, 2, 3, 1).numpy()


# Images -----------------------------------------------------------------------------------------


def test_psnr_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = images(), noisy(images(), 0.1)
    expected = [
        metrics.peak_signal_noise_ratio(a, b, data_range=255)
        for a, b in zip(uint8_hwc(x), uint8_hwc(y))
    ]
    np.testing.assert_allclose(psnr(y, x).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("data_range", [255, 510])
@pytest.mark.parametrize(
    ("window", "settings"),
    [("gaussian", {"gaussian_weights": True, "use_sample_covariance": False}), ("uniform", {})],
)
def test_ssim_agrees_with_scikit_image(window, settings, data_range):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = images(), noisy(images(), 0.2)
    settings = settings | {"data_range": data_range, "channel_axis": -1}
    expected = [
        metrics.structural_similarity(a, b, **settings) for a, b in zip(uint8_hwc(x), uint8_hwc(y))
    ]
    np.testing.assert_allclose(
        ssim(y, x, window=window, data_range=data_range).numpy(), expected, atol=1e-9
    )


def test_psnr_is_taken_after_clamping_and_rounding():
    x = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(x, x + 0.5 / 127.5 * 0.4).isinf()  # both are 191
    assert psnr(torch.full_like(x, 9.0), torch.ones_like(x)).isinf()
    one_level = 20 * math.log10(255)
    assert psnr(x, x + 1 / 127.5).item() == pytest.approx(one_level)


def test_psnr_and_ssim_fall_with_noise():
    x = images(8) * 0.6
    levels = [noisy(x, sigma) for sigma in (0.02, 0.1, 0.3)]
    for metric in (psnr, ssim):
        values = [metric(y, x).mean().item() for y in levels]
        assert values == sorted(values, reverse=True)
    assert ssim(x, x).tolist() == [1.0] * 8


def test_image_errors_say_what_came():
    x = images()
    bad = x.clone()
    bad[1, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        psnr(bad, x)
    with pytest.raises(ValueError, match="one shape"):
        psnr(x, x[:2])
    with pytest.raises(ValueError, match=r"float .* not torch\.uint8"):
        psnr(x.to(torch.uint8), x.to(torch.uint8))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(x[..., :8, :8], x[..., :8, :8])
    with pytest.raises(ValueError, match="window"):
        ssim(x, x, window="box")


# Frechet distance -------------------------------------------------------------------------------


def test_frechet_distance_agrees_with_scipy_and_torch_fidelity():
    linalg = pytest.importorskip("scipy.linalg")
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = features(), features(300, name="other", shift=0.3)
    (m, c), (n, d) = feature_statistics(x), feature_statistics(y)
    root = np.trace(linalg.sqrtm(c.numpy() @ d.numpy())).real
    expected = float((m - n).square().sum() + c.trace() + d.trace()) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    statistics = [fidelity.fid_features_to_statistics(side) for side in (x, y)]
    reference = fidelity.fid_statistics_to_metric(*statistics, False)[fidelity.KEY_METRIC_FID]
    assert frechet_distance(x, y) == pytest.approx(reference, rel=1e-9)


def test_frechet_distance_takes_statistics_as_well_as_features():
    x, y = features(), features(name="other")
    expected = frechet_distance(x, y)
    assert frechet_distance(feature_statistics(x), y) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(x.float(), feature_statistics(y)) == pytest.approx(expected, rel=1e-4)
    mean, cov = (part.numpy() for part in feature_statistics(y))
    assert frechet_distance(x, (mean, cov)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*images for.*dimensions")
@pytest.mark.parametrize("count", [500, 20])
def test_frechet_distance_of_a_set_to_itself_is_zero(count):
    x = features(count, 64)
    assert abs(frechet_distance(x, x)) < 1e-9 * float(feature_statistics(x)[1].trace())


@pytest.mark.parametrize("scale", [1e-100, 1e-80, 1e78, 1e100])
def test_frechet_distance_has_the_scale_of_its_features(scale):
    x, y = features(), features(name="other", shift=0.3)
    expected = frechet_distance(x, y)
    assert frechet_distance(scale * x, scale * y) / scale / scale == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:.*covariance has rank")
def test_what_is_rounding_alone_is_no_rank():
    # tr (C1 C2)^(1/2) of a covariance of rank 3 is that of the three dimensions
    factor = torch.randn(3, 16, generator=generator(0, "factor"), dtype=torch.float64)
    low, unit = factor.T @ factor, torch.eye(16, dtype=torch.float64)
    mean = torch.zeros(16, dtype=torch.float64)
    roots = torch.linalg.svdvals(factor).sum()
    expected = float(low.trace() + 16 - 2 * roots)
    assert frechet_distance((mean, low), (mean, unit)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_grows_with_noise():
    x = features(400)
    assert (values := [frechet_distance(noisy(x, s), x) for s in (0.1, 0.4, 1.0)]) == sorted(values)


def test_fewer_images_than_dimensions_warn():
    with pytest.warns(UserWarning, match="10 images for 16 dimensions"):
        frechet_distance(features(10), features(100))
    statistics_of_few = feature_statistics(features(10))
    with pytest.warns(UserWarning, match="rank 9 of 16"):
        frechet_distance(features(100), statistics_of_few)


def test_feature_errors_say_what_came():
    x = features()
    bad = x.clone()
    bad[3, 3] = math.nan
    for metric in (frechet_distance, kernel_distance, monge_distance, precision_recall):
        with pytest.raises(ValueError, match=r"NaN .* in 1 rows"):
            metric(bad, x)
        with pytest.raises(ValueError, match="at least two rows"):
            metric(x, x[:1])
        with pytest.raises(ValueError, match="16 dimensions, but the reference has 8"):
            metric(x, x[:, :8])
    with pytest.raises(ValueError, match="not symmetric"):
        frechet_distance(x, (x.mean(0), torch.eye(16, dtype=x.dtype) + torch.ones(16, 16).tril()))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        frechet_distance(x, (x.mean(0), -torch.eye(16, dtype=x.dtype)))


# Kernel distance, precision, recall, inception score --------------------------------------------


def test_kernel_distance_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = features(), features(name="other", shift=0.2)
    reference = fidelity.kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=len(x), verbose=False
    )
    assert kernel_distance(x, y).value == pytest.approx(
        reference[fidelity.KEY_METRIC_KID_MEAN], rel=1e-9
    )


def test_kernel_distance_is_unbiased_and_its_interval_covers_zero_for_equal_sets():
    results = [
        kernel_distance(features(120, name=f"a{i}"), features(120, name=f"a{i}", shift=0.0))
        for i in range(3)
    ]
    assert all(
        r.value < 0 for r in results
    )  # the same rows twice: the cross term holds the large diagonal
    x = torch.randn(40, 60, 4, generator=generator(0, "kid"), dtype=torch.float64)
    values = [kernel_distance(a, b) for a, b in zip(x[::2], x[1::2])]
    mean = sum(r.value for r in values) / len(values)
    assert abs(mean) < 3 * np.std([r.value for r in values]) / len(values) ** 0.5
    assert sum(r.low <= 0 <= r.high for r in values) >= 16


def test_the_kernel_distance_of_three_images_has_an_interval():
    x, y = features(3), features(3, name="other")
    result = kernel_distance(x, y)
    assert result.low < result.value < result.high
    assert result.standard_error > 0
    with pytest.raises(ValueError, match="interval needs 3 images a side, not 2"):
        kernel_distance(x[:2], y)


def test_kernel_distance_has_the_error_that_repeated_draws_show():
    x = torch.randn(400, 80, 4, generator=generator(0, "kid"), dtype=torch.float64)
    results = [kernel_distance(a + 0.5, b) for a, b in zip(x[::2], x[1::2])]
    spread = np.std([r.value for r in results], ddof=1)
    assert np.mean([r.standard_error for r in results]) == pytest.approx(spread, rel=0.12)


def test_kernel_distance_grows_with_noise_and_does_not_depend_on_the_seed():
    x, y = features(), features(name="other")
    assert (values := [kernel_distance(noisy(x, s), y).value for s in (0.1, 0.6, 1.2)]) == sorted(
        values
    )
    assert kernel_distance(x, y, seed=1).value == kernel_distance(x, y, seed=2).value


def test_kernel_distance_over_several_chunks_is_the_same(monkeypatch):
    x, y = features(90), features(70, name="other")
    expected = kernel_distance(x, y)
    monkeypatch.setattr("maetok_lab.evaluation.metrics.CHUNK", 32)
    result = kernel_distance(x, y)
    assert (result.value, result.low) == pytest.approx((expected.value, expected.low), rel=1e-9)


def test_monge_distance_of_one_dimension_is_three_times_the_squared_wasserstein_distance():
    # every direction is the line itself; the cheapest of all transports is found by scipy
    from scipy.optimize import linear_sum_assignment

    x = torch.randn(6, 1, generator=generator(0, "x"), dtype=torch.float64)
    y = torch.randn(4, 1, generator=generator(0, "y"), dtype=torch.float64)
    for side, repeats in ((y, (2, 3)), (torch.cat([y, y[:2] - 1]), (1, 1))):
        cost = (x.repeat(repeats[0], 1) - side.repeat(repeats[1], 1).T).square().numpy()
        cheapest = cost[linear_sum_assignment(cost)].mean()
        assert monge_distance(x, side) == pytest.approx(3 * cheapest, rel=1e-12)
        assert monge_distance(side, x) == pytest.approx(3 * cheapest, rel=1e-12)


def test_monge_distance_of_a_shift_is_three_times_its_square():
    x = torch.randn(50, 64, generator=generator(0, "x"), dtype=torch.float64)
    shift = torch.randn(64, generator=generator(0, "shift"), dtype=torch.float64)
    assert monge_distance(x, x) == 0
    # (u . shift)^2 is |shift|^2 / d in the mean, with an error of sqrt(2 / 1000)
    expected = 3 * float(shift.square().sum())
    assert monge_distance(x, x + shift) == pytest.approx(expected, rel=0.15)
    # a set twice over is the same distribution
    assert monge_distance(torch.cat([x, x]), x + shift) == pytest.approx(
        monge_distance(x, x + shift), rel=1e-12
    )
    assert monge_distance(x, 2 * x) == pytest.approx(3 * float(x.square().sum(1).mean()), rel=0.05)


def test_monge_distance_has_less_bias_than_the_frechet_distance():
    # two draws of one distribution: what is not 0 is bias, in units of the distance of a shift
    def sides(count, shift):
        draws = generator(count, "draws")
        x, y = torch.randn(2, count, 16, generator=draws, dtype=torch.float64)
        return x, y + shift

    biases = {}
    for distance in (monge_distance, frechet_distance):
        biases[distance] = distance(*sides(40, 0.0)) / distance(*sides(4000, 1.0))
    assert 0 < biases[monge_distance] < biases[frechet_distance]
    assert monge_distance(*sides(4000, 0.0)) < monge_distance(*sides(40, 0.0)) / 50


def test_precision_and_recall_agree_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = features(200, 4), features(150, 4, name="other", shift=0.5)
    precision, recall = fidelity.calculate_precision_recall_full(x, y)
    result = precision_recall(x, y)
    assert (result.precision, result.recall) == pytest.approx((precision, recall), rel=1e-6)
    assert 0 < result.precision < 1
    assert 0 < result.recall < 1


def test_precision_sees_bad_samples_and_recall_sees_missing_ones():
    y = features(200, 4)
    far = precision_recall(y + 100, y)
    assert (far.precision, far.recall) == (0, 0)
    collapsed = precision_recall(y[:1] + 1e-3 * features(8, 4), y)
    assert collapsed.precision == 1
    assert collapsed.recall < 0.05
    with pytest.raises(ValueError, match="3 neighbours need more images than 3"):
        precision_recall(y[:3], y)


def test_inception_score_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * features(101, 10)
    reference = fidelity.isc_features_to_metric(logits, splits=4, shuffle=False)
    expected = reference["inception_score_mean"], reference["inception_score_std"]
    result = inception_score(logits, splits=4, seed=None)
    assert (result.mean, result.std) == pytest.approx(expected, rel=1e-9)
    sure = 100 * torch.eye(10).repeat(5, 1)
    assert inception_score(sure, splits=1).mean == pytest.approx(10)
    with pytest.raises(ValueError, match="20 splits"):
        inception_score(sure[:10], splits=20)
