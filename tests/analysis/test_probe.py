"""The linear probe against scikit-learn, the neighbours' vote, and what pooling hides."""

import math

import numpy as np
import pytest
import torch

from maetok_lab.analysis import labelled as rows_module
from maetok_lab.analysis.labelled import Labelled
from maetok_lab.analysis.probe import _Basis, _fit, knn_probe, linear_probe
from maetok_lab.rng import generator


def labelled(count=400, classes=7, tokens=4, channels=5, name="train", noise=1.5):
    """Latents whose class is in single tokens, so that pooling blurs it; labels (count,)."""
    centres = torch.randn(classes, tokens, channels, generator=generator(0, "centres"))
    centres -= centres.mean(dim=1, keepdim=True)  # nothing is left for a pooled probe
    labels = torch.randint(classes, (count,), generator=generator(0, name, "labels"))
    return centres[labels] + noise * torch.randn(
        count, tokens, channels, generator=generator(0, name)
    ), labels


def test_logistic_regression_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = labelled()
    x = (
        torch.cat([x, x[..., :1] + 1e-3 * x[..., 1:2]], dim=2).flatten(1).double()
    )  # nearly collinear
    data = Labelled(x, y)
    basis = _Basis.of(data)
    data = basis(data)
    weight = _fit(data, [1e-2], variances=basis.variances, classes=7, max_iterations=100)[0]
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    sklearn = linear_model.LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-10, max_iter=5000).fit(
        scaled, y.numpy()
    )
    np.testing.assert_allclose(
        next(data.logits(weight))[0].softmax(1), sklearn.predict_proba(scaled), atol=2e-4
    )


def test_more_dimensions_than_rows_give_the_same_probe():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = labelled(30, tokens=8, channels=8)
    test, test_labels = labelled(200, tokens=8, channels=8, name="test")
    ours = linear_probe(x, y, test, test_labels, strengths=(0.1,))
    mean, std = x.flatten(1).double().mean(0), x.flatten(1).double().std(0, correction=0)
    fitted = linear_model.LogisticRegression(C=1 / (0.1 * 30), tol=1e-10, max_iter=5000)
    fitted.fit(((x.flatten(1) - mean) / std).numpy(), y.numpy())
    assert ours.top1 == pytest.approx(
        fitted.score(((test.flatten(1) - mean) / std).numpy(), test_labels.numpy())
    )


def test_probe_reads_flattened_latents_but_not_pooled_ones():
    x, y = labelled()
    test, test_labels = labelled(300, name="test")
    flat, pooled = (linear_probe(x, y, test, test_labels, pool=pool) for pool in (False, True))
    assert flat.top1 > 0.6
    assert flat.top5 > 0.95
    assert abs(pooled.top1 - pooled.majority) < 0.1
    assert flat.standard_error == pytest.approx(math.sqrt(flat.top1 * (1 - flat.top1) / 300))
    assert (flat.train_images, flat.test_images, flat.classes, flat.pooled) == (400, 300, 7, False)
    assert linear_probe(x, y, test, test_labels, precision="float32").top1 == pytest.approx(
        flat.top1, abs=0.01
    )


def test_the_strength_is_chosen_on_held_out_rows():
    x, y = labelled(60, noise=4)  # few and noisy: a weak penalty overfits
    test, test_labels = labelled(300, name="test", noise=4)
    validation = labelled(300, name="validation", noise=4)
    both = linear_probe(x, y, test, test_labels, strengths=(1e-6, 1.0), validation=validation)
    assert both.strength == 1.0
    weak = linear_probe(x, y, test, test_labels, strengths=(1e-6,), validation=validation)
    assert weak.heldout_top1 < both.heldout_top1


def test_probe_does_not_depend_on_scale_or_a_constant_column():
    x, y = labelled()
    test, test_labels = labelled(300, name="test")
    want = linear_probe(x, y, test, test_labels)
    scale = torch.tensor([1e-3, 1.0, 10.0, 100.0])[:, None]
    moved = [torch.cat([z * scale, torch.full((len(z), 4, 1), 7.0)], dim=2) for z in (x, test)]
    assert linear_probe(moved[0], y, moved[1], test_labels).top1 == want.top1


def test_neighbours_vote():
    x, y = labelled(noise=0.5)
    test, test_labels = labelled(300, name="test", noise=0.5)
    result = knn_probe(x, y, test, test_labels, neighbours=5)
    assert result.top1 > 0.9
    assert knn_probe(x, y, x, y, neighbours=1).top1 == 1
    assert knn_probe(x, y, test, test_labels, neighbours=400).top1 < result.top1
    with pytest.raises(ValueError, match="between 1 and 400"):
        knn_probe(x, y, test, test_labels, neighbours=401)


def test_errors_say_what_came():
    x, y = labelled(50)
    bad = x.clone()
    bad[3, 1, 1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        linear_probe(bad, y, x, y)
    for probe in (linear_probe, knn_probe):
        with pytest.raises(ValueError, match="latents are constant: all 50 training rows"):
            probe(torch.ones_like(x), y, x, y)
    with pytest.raises(ValueError, match=r"labels must be \(50,\)"):
        linear_probe(x, y[:40], x, y)
    with pytest.raises(ValueError, match="whole numbers"):
        linear_probe(x, y.float(), x, y)
    with pytest.raises(ValueError, match="can be pooled"):
        linear_probe(x.flatten(1), y, x.flatten(1), y, pool=True)
    with pytest.raises(ValueError, match="strengths"):
        linear_probe(x, y, x, y, strengths=(-1.0,))


def test_one_class_has_no_linear_probe():
    x, y = labelled()
    with pytest.warns(UserWarning, match="one class alone has no linear probe"):
        result = linear_probe(x, torch.full_like(y, 3), x, torch.full_like(y, 3))
    assert math.isnan(result.top1)
    assert (result.classes, result.train_images) == (1, len(x))


@pytest.mark.parametrize("pool", [False, True])
def test_what_is_read_in_chunks_gives_the_same_probes(monkeypatch, pool):
    x, y = labelled(tokens=4)
    test, test_labels = labelled(300, name="test")
    validation = labelled(100, name="validation")
    data = (x.half(), y, test.half(), test_labels)  # as a cache has them
    options = [{"pool": pool}, {"pool": pool, "validation": validation}]
    whole = [linear_probe(*data, **option) for option in options]
    near = knn_probe(*data, neighbours=5)
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0)
    monkeypatch.setattr("maetok_lab.analysis.preprocess.CHUNK_VALUES", 37 * 20)
    assert [linear_probe(*data, **option) for option in options] == whole
    assert knn_probe(*data, neighbours=5) == near
    bad = x.clone()
    bad[250, 1, 1] = math.inf
    for probe in (linear_probe, knn_probe):
        with pytest.raises(ValueError, match="NaN or infinite"):
            probe(bad, y, x, y)
        with pytest.raises(ValueError, match="NaN or infinite"):
            probe(x, y, bad, y)
        with pytest.raises(ValueError, match="latents are constant"):
            probe(torch.ones_like(x), y, x, y)


def test_a_class_of_the_validation_images_alone_counts():
    x = torch.randn(40, 3, 2, generator=generator(0, "x"))
    labels = torch.arange(40) % 2
    rare = labels[:10].clone()
    rare[3] = 7
    result = linear_probe(x, labels, x, labels, validation=(x[:10], rare))
    assert result.classes == 8


@pytest.mark.parametrize("side", ["test", "validation"])
def test_latents_of_another_width_are_refused(side):
    x = torch.randn(40, 3, 2, generator=generator(0, "x"))
    labels = torch.arange(40) % 2
    other = {"test": (x[:, :2], labels), "validation": (x, labels)}[side]
    validation = (x[:, :2], labels) if side == "validation" else None
    with pytest.raises(ValueError, match=r"have 6 numbers a row, .* 4: they are to be of one tok"):
        linear_probe(x, labels, *other, validation=validation)
    if side == "test":
        with pytest.raises(ValueError, match="have 6 numbers a row"):
            knn_probe(x, labels, *other)
