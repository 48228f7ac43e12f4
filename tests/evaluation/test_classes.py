"""Numbers class by class."""

import pytest
import torch

from maetok_lab.evaluation.classes import evaluate_classes
from maetok_lab.evaluation.features import Reference
from maetok_lab.evaluation.metrics import kernel_distance
from maetok_lab.rng import generator


def reference(name, count=60):
    return Reference(
        name, "", count, 8, torch.randn(count, 4, generator=generator(0, name), dtype=torch.float64)
    )


def test_the_class_that_is_drawn_badly_stands_out():
    labels, real_labels = torch.arange(60) % 3, torch.arange(90) % 3
    samples, real = reference("made"), reference("real", 90)
    samples.features[labels == 1] += 3
    table = evaluate_classes(samples, labels, real, real_labels, ["a", "b", "c"])
    assert table.index.tolist() == ["a", "b", "c"]
    assert table["kid"].idxmax() == "b"
    assert table.loc["b", "precision"] < table.loc["a", "precision"]
    expected = kernel_distance(samples.features[labels == 2], real.features[real_labels == 2])
    assert table.loc["c", ["kid", "low", "high"]].tolist() == [
        expected.value,
        expected.low,
        expected.high,
    ]
    assert table["images"].tolist() == [20, 20, 20]


def test_a_class_of_few_images_has_no_numbers_and_labels_must_fit():
    samples, real = reference("made"), reference("real")
    labels = torch.zeros(60, dtype=torch.long)
    labels[:5] = 1
    table = evaluate_classes(samples, labels, real, torch.arange(60) % 2, ["many", "few"])
    assert table.loc["few", ["kid", "precision"]].isna().all()
    assert table.loc["many"].notna().all()
    with pytest.raises(ValueError, match="real has 60 images, but 59 labels came"):
        evaluate_classes(samples, labels, real, labels[:59], ["many", "few"])
