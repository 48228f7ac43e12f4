"""The mixture curve: its columns, the BIC's minimum, streaming, resuming and errors."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from maetok_lab.analysis.gmm import COLUMNS, GmmProtocol, fit_gmm, gmm_curve
from maetok_lab.analysis.preprocess import fit_reducer
from maetok_lab.config import from_json
from maetok_lab.rng import generator


def modes(components, count=600, shape=(2, 3), spread=8.0):
    """Latents (count, *shape) from `components` far-apart unit Gaussians."""
    random = generator(0, "modes", components)
    centres = spread * torch.randn(components, *shape, generator=random)
    return centres[torch.arange(count) % components] + torch.randn(count, *shape, generator=random)


@pytest.mark.parametrize("components", [3, 8, 20])
def test_bic_is_lowest_at_the_true_number_of_components(components):
    table = gmm_curve(modes(components, 800), [1, 2, 3, 5, 8, 12, 20, 26], variance=1.0)
    assert table.components[table.bic.argmin()] == components
    assert table.heldout_nll[table.bic.argmin()] < table.heldout_nll[0]


def test_table_holds_what_the_columns_say():
    x = modes(4)
    table = gmm_curve(x, [4, 1], dimensions=3, covariance="full", seed=5)
    assert list(table.columns) == COLUMNS
    assert table.components.tolist() == [1, 4]
    assert set(table.dimensions) == {3}
    protocol = from_json(GmmProtocol, table.attrs["protocol"])
    assert (protocol.covariance, protocol.seed, protocol.restarts) == ("full", 5, 10)
    assert (table.attrs["rows"], table.attrs["heldout_rows"]) == (480, 120)
    np.testing.assert_allclose(table.heldout_nll_per_dim, table.heldout_nll / 3)
    # one component on whitened rows: the entropy of a standard normal, nearly
    assert table.train_nll[0] == pytest.approx(1.5 * math.log(2 * math.pi * math.e), rel=1e-3)
    assert table.bic[0] == pytest.approx(2 * 480 * table.train_nll[0] + (3 + 6) * math.log(480))
    assert np.isnan(table.min_mean_distance[0])
    assert table.min_mean_distance[1] > 0.1
    assert table.max_mean_norm[1] > 0.5


def test_held_out_latents_of_ones_own_are_scored_by_the_training_pca():
    x, other = modes(4), modes(4)[:50] + 0.1
    table = gmm_curve(x, [4], dimensions=3, heldout_latents=other)
    reducer = fit_reducer(x, dimensions=3)
    mixture = fit_gmm(reducer.transform(x), 4, GmmProtocol())
    assert table.heldout_nll[0] == pytest.approx(
        -float(mixture.log_prob(reducer.transform(other)).mean()), rel=1e-9
    )
    assert table.attrs["rows"] == 600


def test_streaming_a_memory_map_equals_in_memory(tmp_path, monkeypatch):
    x = modes(6, spread=2.0)
    np.save(tmp_path / "latents.npy", x.numpy())
    mapped = np.load(tmp_path / "latents.npy", mmap_mode="r")
    whole = gmm_curve(x, [1, 6], variance=0.95)
    monkeypatch.setattr("maetok_lab.analysis.preprocess.CHUNK_VALUES", 64 * 6)
    monkeypatch.setattr("maetok_lab.analysis.mixture.CHUNK_VALUES", {"cpu": 0})
    parts = gmm_curve(mapped, [1, 6], variance=0.95)
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-8, atol=1e-12)
    assert whole.attrs == parts.attrs


def test_scores_too_large_for_memory_go_to_a_file(monkeypatch):
    x = modes(6, spread=2.0)
    whole = gmm_curve(x, [1, 6])
    monkeypatch.setattr("maetok_lab.analysis.gmm.MEMORY", 0)
    np.testing.assert_allclose(gmm_curve(x, [1, 6]).train_nll, whole.train_nll, rtol=1e-12)


def test_a_stopped_curve_goes_on_from_the_finished_numbers(tmp_path, monkeypatch):
    x = modes(6, 300, spread=2.0)
    want = gmm_curve(x, [1, 3, 6])
    fitted = []

    def fit(points, components, *options, **keywords):
        if components == limit:
            raise KeyboardInterrupt
        fitted.append(components)
        return fit_gmm(points, components, *options, **keywords)

    monkeypatch.setattr("maetok_lab.analysis.gmm.fit_gmm", fit)
    limit = 6
    with pytest.raises(KeyboardInterrupt):
        gmm_curve(x, [1, 3, 6], folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    limit = None
    resumed = gmm_curve(x, [1, 3, 6], folder=tmp_path)
    pd.testing.assert_frame_equal(resumed, want, check_exact=True)
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert fitted == [1, 3, 6]


def test_numbers_of_the_first_edition_are_not_read_as_those_of_today(tmp_path):
    x = (torch.arange(60.0) ** 2 % 101).view(20, 3)
    want = gmm_curve(x, [1, 2], dimensions=2, folder=tmp_path)
    paths = sorted(tmp_path.iterdir())
    config, data = "bfd72bc04ed2c912", "6c4b16eb36d2319d"
    assert [path.name for path in paths] == [f"gmm-{config}-{data}-{n}.json" for n in (1, 2)]
    # the same data and protocol, by their name of then, fitted with other draws
    for path in paths:
        record = json.loads(path.read_text())
        record["row"]["train_nll"] = 12345.0
        path.rename(tmp_path / path.name.replace(config, "cc0fcfed5f2a2c57"))
        (tmp_path / path.name.replace(config, "cc0fcfed5f2a2c57")).write_text(json.dumps(record))
    again = gmm_curve(x, [1, 2], dimensions=2, folder=tmp_path)
    pd.testing.assert_frame_equal(again, want)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("offset", "dtype", "tolerance"),
    [(1e3, "float32", 1e-5), (1e6, "float32", 1e-2), (1e8, "float64", 1e-7)],
)
def test_latents_far_from_zero_have_the_same_curve(offset, dtype, tolerance):
    x = modes(4).double()
    want = gmm_curve(x, [1, 4], dimensions=3)
    far = gmm_curve((x + offset).to(getattr(torch, dtype)), [1, 4], dimensions=3)
    np.testing.assert_allclose(far.train_nll, want.train_nll, atol=tolerance)
    np.testing.assert_allclose(far.heldout_nll, want.heldout_nll, atol=tolerance)


def test_finished_numbers_are_read_only_for_the_same_data_and_protocol(tmp_path):
    x = modes(3, 200)
    gmm_curve(x, [3], folder=tmp_path)
    path = next(tmp_path.glob("*.json"))
    record = json.loads(path.read_text())
    record["row"]["bic"] = 12345.0
    path.write_text(json.dumps(record))
    assert gmm_curve(x, [3], folder=tmp_path).bic[0] == 12345
    assert gmm_curve(x, [3], folder=tmp_path, seed=1).bic[0] != 12345
    assert gmm_curve(x + 1e-3 * x**2, [3], folder=tmp_path).bic[0] != 12345


def test_bad_input_is_refused_with_a_reason():
    x = modes(3, 100)
    for bad, message in [
        (torch.ones(100, 4), "1 distinct ones in 100 rows"),
        (x[:5].repeat(20, 1, 1), "5 distinct ones in 100 rows"),
        (torch.where(torch.arange(6).view(2, 3) == 0, math.nan, x), "NaN"),
        (x[:6], "too few latents"),
    ]:
        with pytest.raises(ValueError, match=message):
            gmm_curve(bad, [2])
    with pytest.raises(ValueError, match="81 components for 80 training rows"):
        gmm_curve(x, [81, 90])
    for variance in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"variance must be in \(0, 1\]"):
            gmm_curve(x, [2], variance=variance)
    with pytest.raises(ValueError, match=r"a tensor, an array or cached latents .*, not list"):
        gmm_curve(x.tolist(), [2])
    with pytest.raises(ValueError, match="numbers >= 1"):
        gmm_curve(x, [0, 2])
    with pytest.raises(ValueError, match="dimensions must be between 1 and 6, the rank"):
        gmm_curve(
            torch.randn(10, 40, generator=generator(0, "few")), [2], dimensions=7, heldout=0.3
        )
    with pytest.raises(TypeError, match="tolerence"):
        gmm_curve(x, [2], tolerence=1)


def test_copies_are_left_out_and_counted():
    x = modes(3, 100)
    expected = gmm_curve(x, [1, 3])
    blank = torch.cat([x, x[:1].expand(12, *x.shape[1:])])
    with pytest.warns(UserWarning, match="12 of 112 latents are copies and left out"):
        actual = gmm_curve(blank, [1, 3])
    pd.testing.assert_frame_equal(actual, expected)
    assert (actual.attrs["copies"], actual.attrs["rows"]) == (12, 80)


def test_mixtures_of_more_components_than_rows_are_left_out():
    x = modes(3, 100)
    with pytest.warns(
        UserWarning, match="mixtures of 81, 200 components are left out: there are 80"
    ):
        actual = gmm_curve(x, [1, 3, 81, 200])
    assert actual["components"].tolist() == [1, 3]
