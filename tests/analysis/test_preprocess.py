"""Flattening, PCA and standardising in chunks against scikit-learn, and what is refused."""

import math

import numpy as np
import pytest
import torch

from maetok_lab.analysis.preprocess import (
    check_latents,
    common_dimensions,
    comparable_share,
    data_hash,
    first_of_copies,
    fit_reducer,
    needed_dimensions,
    row_hashes,
    shared_dimensions,
    spectrum_of,
)
from maetok_lab.rng import generator


def latents(count=300, tokens=4, channels=6, name="latents"):
    x = torch.randn(count, tokens * channels, generator=generator(0, name))
    return (x * torch.linspace(2, 0.05, tokens * channels) + 3).view(count, tokens, channels)


def test_scores_are_standardised_and_agree_with_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = latents()
    reducer = fit_reducer(x, dimensions=5)
    scores = reducer.transform(x)
    torch.testing.assert_close(scores.mean(0), torch.zeros(5).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(
        scores.std(0, correction=0), torch.ones(5).double(), rtol=1e-9, atol=0
    )
    pca = decomposition.PCA(5, svd_solver="full").fit(x.flatten(1).double().numpy())
    sklearn = pca.transform(x.flatten(1).double().numpy())
    sklearn /= sklearn.std(0)
    np.testing.assert_allclose(np.abs(scores.numpy()), np.abs(sklearn), atol=1e-8)
    assert reducer.explained == pytest.approx(pca.explained_variance_ratio_.sum())


def test_variance_picks_the_fewest_dimensions_that_explain_it():
    spectrum = torch.tensor([5.0, 3.0, 1.5, 0.5], dtype=torch.float64)
    needed = [needed_dimensions(spectrum, v) for v in (0.1, 0.5, 0.51, 0.8, 0.95, 1.0)]
    assert needed == [1, 1, 2, 2, 3, 4]
    x = latents()
    reducer = fit_reducer(x, variance=0.9)
    assert reducer.explained >= 0.9
    assert fit_reducer(x, dimensions=reducer.dimensions - 1).explained < 0.9
    for variance in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"variance must be in \(0, 1\]"):
            fit_reducer(x, variance=variance)


def test_rank_not_width_limits_the_dimensions():
    x = torch.cat([latents(), latents()], dim=2)  # every number twice
    assert fit_reducer(x, variance=1.0).dimensions == 24
    with pytest.raises(ValueError, match="between 1 and 24"):
        fit_reducer(x, dimensions=25)


def test_fewer_rows_than_numbers_a_row_give_the_same_scores():
    x = latents(20)
    narrow = fit_reducer(x, dimensions=5)
    mean = x.flatten(1).double().mean(0)
    _, values, axes = torch.linalg.svd(x.flatten(1).double() - mean, full_matrices=False)
    torch.testing.assert_close(narrow.spectrum, values[:19] ** 2 / 20)
    torch.testing.assert_close(spectrum_of(x), narrow.spectrum)
    torch.testing.assert_close(
        spectrum_of(latents()), fit_reducer(latents(), dimensions=1).spectrum
    )
    torch.testing.assert_close(narrow.components.abs(), axes[:5].abs())
    torch.testing.assert_close(narrow.transform(x).std(0, correction=0), torch.ones(5).double())


def test_chunks_of_a_memory_map_give_what_memory_gives(tmp_path, monkeypatch):
    x = latents().half()
    np.save(tmp_path / "latents.npy", x.numpy())
    mapped = np.load(tmp_path / "latents.npy", mmap_mode="r")
    whole = fit_reducer(x, dimensions=6)
    want = whole.transform(x)
    data = data_hash(row_hashes(x))
    monkeypatch.setattr("maetok_lab.analysis.preprocess.CHUNK_VALUES", 37 * 24)
    parts = fit_reducer(mapped, dimensions=6)
    torch.testing.assert_close(parts.transform(mapped), want, rtol=1e-8, atol=1e-8)
    assert data_hash(row_hashes(mapped)) == data


def test_a_latent_dataset_is_read_when_sliced(monkeypatch):
    class Cache:  # what the analysis uses of data.latents.LatentDataset
        num_tokens, latent_dim, device = 4, 6, torch.device("cpu")
        labels, space = torch.zeros(7), None

        def __len__(self):
            return 300

        def latents(self, indices):
            return latents()[indices]

    want = fit_reducer(latents(), dimensions=3).transform(latents())
    reducer = fit_reducer(Cache(), dimensions=3)
    monkeypatch.setattr("maetok_lab.analysis.preprocess.CHUNK_VALUES", 70 * 24)
    torch.testing.assert_close(reducer.transform(Cache()), want)
    assert data_hash(check_latents(Cache())) == data_hash(check_latents(latents()))


def test_only_training_rows_are_fitted():
    x = latents()
    selection = torch.rand(len(x), generator=generator(0, "train")) < 0.5
    fitted = fit_reducer(x, dimensions=4, selection=selection)
    alone = fit_reducer(x[selection], dimensions=4)
    torch.testing.assert_close(fitted.components, alone.components)
    torch.testing.assert_close(
        fitted.transform(x, selection=selection), alone.transform(x[selection])
    )


def test_common_dimensions_satisfy_every_set_of_latents():
    few, many = latents(), torch.randn(300, 30, generator=generator(0, "white"))
    shared = common_dimensions([few, many], 0.8)
    assert shared == max(needed_dimensions(spectrum_of(x), 0.8) for x in (few, many))
    assert shared_dimensions([spectrum_of(x) for x in (few, many)], 0.8) == shared
    for variance in (0.0, -0.5, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"variance must be in \(0, 1\]"):
            common_dimensions([few, many], variance)
    with pytest.raises(ValueError, match="at least one set of latents"):
        common_dimensions([], 0.9)
    with pytest.raises(ValueError, match="ask for less variance"):
        common_dimensions([latents(tokens=1, channels=2), many], 0.9)


def test_hash_changes_with_values_and_order():
    x = latents()
    hashes = {
        data_hash(row_hashes(y))
        for y in (x, x.flip(0), x + 1e-6 * (torch.arange(300) == 7)[:, None, None])
    }
    assert len(hashes) == 3


def test_bad_latents_are_refused_with_a_reason():
    x = latents(100)
    bad = x.clone()
    bad[41, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"NaN .* row 41"):
        check_latents(bad)
    with pytest.raises(ValueError, match="too few latents: 9 distinct ones in 9 rows"):
        check_latents(x[:9])
    with pytest.raises(ValueError, match="too few latents: 1 distinct ones in 50 rows"):
        check_latents(torch.ones(50, 4, 4))
    with pytest.raises(ValueError, match=r"latents must be \(n, ...\)"):
        check_latents(torch.ones(50))
    with pytest.raises(ValueError, match="constant"):
        fit_reducer(torch.ones(50, 4, 4), dimensions=1)
    with pytest.raises(ValueError, match="rows of 24 numbers, not 12"):
        fit_reducer(x, dimensions=2).transform(x[:, :2])


def test_latents_that_their_numbers_cannot_hold_are_refused():
    white = torch.randn(300, 8, generator=generator(0, "white"), dtype=torch.float64)
    for offset, dtype in [(1e6, torch.float32), (1e11, torch.float64), (100.0, torch.float16)]:
        spectrum = fit_reducer((white + offset).to(dtype), dimensions=8).spectrum
        # rounding to steps h adds h^2 / 12
        torch.testing.assert_close(spectrum, spectrum_of(white), rtol=5e-3, atol=0)
    message = r"at 1e\+08 with a spread of .*, which float32 cannot hold: its numbers are 8 apart"
    for count in (300, 5):  # by the covariance, and by the Gram matrix
        with pytest.raises(ValueError, match=message):
            fit_reducer((4 * white[:count] + 1e8).float(), dimensions=2)
    with pytest.raises(ValueError, match="float64 cannot hold their squares"):
        fit_reducer(1e200 * white, dimensions=2)
    # a channel that is constant, or nearly, is nothing beside the others; and whole numbers are
    # exact, wherever they are
    near = torch.cat([white, 1 + 1e-4 * white[:, :1]], dim=1).half()
    assert len(spectrum_of(near)) == 9
    assert len(spectrum_of((4 * white).round().long() + 10**12)) == 8


def test_copies_are_known_by_the_first_of_them():
    x = latents(6)
    x[3] = x[1]
    x[5] = x[1]
    assert first_of_copies(x, row_hashes(x)).tolist() == [0, 1, 2, 1, 4, 1]


def test_rows_that_have_one_hash_by_chance_are_no_copies():
    x = latents(4000, tokens=8).half().float()  # as caches store them
    hashes = row_hashes(x)
    assert first_of_copies(x, hashes).equal(torch.arange(4000))
    assert first_of_copies(x, torch.zeros_like(hashes)).equal(torch.arange(4000))
    x[7] = x[3]
    assert first_of_copies(x, torch.zeros_like(hashes))[7] == 3


def test_a_share_that_all_can_be_compared_at_is_the_largest_there_is():
    few = torch.tensor([1.0, 1.0])
    many = torch.ones(10, dtype=torch.float64)
    assert comparable_share([many, many], 0.9) == 0.9
    # ten equal axes keep a fifth in two of them
    assert comparable_share([few, many], 0.9) == 0.2
    assert shared_dimensions([few, many], 0.2) == 2
    with pytest.raises(ValueError, match="no common number of dimensions"):
        comparable_share([torch.ones(1), torch.ones(40)], 0.9)
