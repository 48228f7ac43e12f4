"""Generation metrics on a tiny seeded network: direction, names, intervals, floors and refusals."""

import dataclasses
import json
import math
from statistics import NormalDist

import pytest
import torch

from maetok_lab.evaluation.features import Reference, image_features, make_reference
from maetok_lab.evaluation.generation import _wilson, evaluate_generation
from maetok_lab.evaluation.metrics import (
    feature_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    monge_distance,
)
from maetok_lab.evaluation.protocol import PREVIEW_IMAGES, EvalProtocol, compare
from maetok_lab.pictures import from_uint8
from maetok_lab.rng import generator

PROTOCOL = EvalProtocol(sampler="heun", steps=50, labels="equal")


class TinyNet(torch.nn.Module):
    """A seeded convolution in the place of nets.FeatureNet."""

    name, weight_hash, input_size = "efficientnet_lite2", "0123", 16

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator(0, "net")))

    def features(self, images):
        return torch.nn.functional.conv2d(images, self.weight, stride=2).relu().mean(dim=(2, 3))


def images(count=60, name="real", size=16):
    tint = torch.rand(count, 3, 1, 1, generator=generator(0, name, "tint")) - 0.5
    return (tint + 0.5 * torch.rand(count, 3, size, size, generator=generator(0, name))).clamp(
        -1, 1
    )


def evaluate(samples, reference=None, **settings):
    reference = images() if reference is None else reference
    settings = {"protocol": PROTOCOL, "preview": True} | settings
    return evaluate_generation(samples, reference, net=TinyNet(), **settings)


def test_numbers_are_those_of_the_metrics_under_the_networks_name():
    net, samples = TinyNet(), images(50, "fake") * 0.8
    result = evaluate(samples)
    drawn, real = make_reference(samples, net).features, make_reference(images(), net).features
    assert result.metrics["kid_efflite2"] == kernel_distance(drawn, real).value
    assert result.metrics["fd_efflite2"] == pytest.approx(frechet_distance(drawn, real))
    assert set(result.metrics) == {
        "kid_efflite2",
        "fd_efflite2",
        "precision_efflite2",
        "recall_efflite2",
    }
    assert set(result.floor) == set(result.metrics)
    assert set(result.intervals) == set(result.metrics)
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high
        assert low < high


def test_the_monge_distance_is_one_more_with_interval_floor_and_ratio():
    net, samples = TinyNet(), images(50, "fake") * 0.8
    second = make_reference(images(40, "second"), net)
    result = evaluate(samples, metrics=["mind"], second_reference=second, preview=False)
    drawn, real = make_reference(samples, net).features, make_reference(images(), net).features
    assert result.metrics == {"mind_efflite2": monge_distance(drawn, real)}
    assert result.floor == {"mind_efflite2": monge_distance(second.features, real)}
    low, high = result.intervals["mind_efflite2"]
    assert low < result.metrics["mind_efflite2"] < high
    row = result.table().loc["mind_efflite2"]
    assert row["over_floor"] == row["value"] / row["floor"] > 1
    statistics = Reference("published", "abc", None, None, statistics=feature_statistics(real))
    with pytest.raises(ValueError, match="only a mean and a covariance"):
        evaluate(samples, statistics, metrics=["mind"])
    assert evaluate(samples, metrics=["mind"], fd_draws=0).intervals == {}


def test_samples_in_a_tensor_are_rounded_as_the_protocol_says():
    levels = torch.randint(256, (50, 3, 16, 16), generator=generator(0, "levels"))
    between = ((levels + 0.75) / 127.5 - 1).clamp(-1, 1)  # the byte below is `levels`
    protocol = dataclasses.replace(PROTOCOL, rounding="truncated")
    result = evaluate(between, protocol=protocol)
    assert result.metrics == evaluate(from_uint8(levels)).metrics
    assert result.metrics != evaluate(between).metrics
    assert result.protocol.describe().endswith("truncated to uint8")


def test_what_was_rounded_otherwise_is_refused_and_nothing_is_truncated_twice():
    levels = torch.randint(256, (50, 3, 16, 16), generator=generator(0, "levels"))
    between = ((levels + 0.75) / 127.5 - 1).clamp(-1, 1)
    protocol = dataclasses.replace(PROTOCOL, rounding="truncated")
    expected = evaluate(between, protocol=protocol).metrics
    assert evaluate(from_uint8(levels), protocol=protocol).metrics == expected
    truncated = make_reference(between, TinyNet(), rounding="truncated")
    assert evaluate(truncated, protocol=protocol).metrics == expected
    with pytest.raises(ValueError, match="rounding = 'truncated', but features of 50 images are"):
        evaluate(make_reference(between, TinyNet()), protocol=protocol)


def test_the_protocol_says_what_the_floor_is_of():
    other = make_reference(images(40, "other"), TinyNet(), name="training images")
    result = evaluate(images(50, "fake"), second_reference=other)
    assert result.protocol.floor == "40 of training images"
    assert "floor: 40 of training images" in result.protocol.describe()
    kid = kernel_distance(other.features, make_reference(images(), TinyNet()).features)
    assert result.floor["kid_efflite2"] == kid.value
    halves = evaluate(images(50, "fake"))
    assert halves.protocol.floor == "one half of 60 images, to the other"
    # so numbers with different floors share no table
    with pytest.raises(ValueError, match=r"floor: '40 of training images' \(0\)"):
        compare([result, halves])


def test_the_protocol_says_what_was_compared():
    result = evaluate(images(50, "fake"))
    protocol = result.protocol
    assert (
        protocol.sampler,
        protocol.num_images,
        protocol.reference_images,
        protocol.image_size,
    ) == ("heun", 50, 60, 16)
    assert (protocol.net, protocol.net_weights) == ("efficientnet_lite2", "0123")
    assert protocol.reference_sha256 == make_reference(images(), TinyNet()).sha256
    assert result.preview
    json.dumps(result.to_json())
    with pytest.raises(ValueError, match="num_images = 7, but it is 50"):
        evaluate_generation(
            images(50, "fake"),
            images(),
            net=TinyNet(),
            protocol=EvalProtocol(num_images=7),
            preview=True,
        )


def test_distances_grow_with_noise_and_real_images_reach_the_floor():
    noise = torch.randn(60, 3, 16, 16, generator=generator(0, "noise"))
    results = [evaluate(images(60, "fake") + sigma * noise) for sigma in (0.0, 0.3, 0.8)]
    for name in ("kid_efflite2", "fd_efflite2"):
        values = [result.metrics[name] for result in results]
        assert values == sorted(values)
        assert results[0].intervals[name][1] < values[2]
        assert abs(results[0].floor[name]) < values[2]
    low, high = results[0].intervals["kid_efflite2"]
    assert low < 0 < high


def test_batch_size_does_not_change_the_result():
    results = [evaluate(images(50, "fake"), batch_size=size) for size in (1, 7, 64)]
    for result in results[1:]:
        assert result.metrics == pytest.approx(results[0].metrics, rel=1e-5)


def test_a_second_real_set_can_be_the_floor():
    second = images(40, "second")
    result = evaluate(images(50, "fake"), second_reference=second)
    expected = kernel_distance(
        make_reference(second, TinyNet()).features, make_reference(images(), TinyNet()).features
    )
    assert result.floor["kid_efflite2"] == expected.value


def test_published_statistics_give_the_frechet_distance_alone():
    net = TinyNet()
    pair = feature_statistics(make_reference(images(), net).features)
    statistics = Reference("published", "abc", None, None, statistics=pair)
    result = evaluate(images(50, "fake"), statistics, metrics=["fd"])
    assert result.metrics["fd_efflite2"] == pytest.approx(
        evaluate(images(50, "fake")).metrics["fd_efflite2"]
    )
    assert result.floor == {}
    with pytest.raises(ValueError, match="only a mean and a covariance"):
        evaluate(images(50, "fake"), statistics)


def test_inception_score_is_given_when_asked_for():
    class Classifier(TinyNet):
        def logits(self, images):
            return 50 * self.features(images)

    samples = images(50, "fake")
    result = evaluate_generation(
        samples, images(), net=Classifier(), protocol=PROTOCOL, metrics=["is"]
    )
    expected = inception_score(image_features(samples, Classifier(), output="logits"))
    assert result.metrics == {"is_efflite2": expected.mean}
    assert expected.mean > 1
    assert (
        result.floor["is_efflite2"]
        == inception_score(image_features(images(), Classifier(), output="logits")).mean
    )
    streamed = evaluate_generation(
        iter(samples.split(7)), images(), net=Classifier(), protocol=PROTOCOL, metrics=["is"]
    )
    assert streamed.metrics == pytest.approx(result.metrics)
    with pytest.raises(ValueError, match="class logits"):
        evaluate(samples, metrics=["is"])
    featured = make_reference(samples, Classifier())
    with pytest.raises(
        ValueError, match=r"'is' needs logits of 50 images: make_reference\(.* .logits.\]\)"
    ):
        evaluate_generation(featured, images(), net=Classifier(), protocol=PROTOCOL, metrics=["is"])


def test_spatial_distance_sees_where_things_are_and_has_its_own_name():
    class Mapped(TinyNet):
        def spatial(self, images):
            return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

    samples = images(50, "fake")
    turned = evaluate_generation(
        torch.cat([samples[:, :, 8:], samples[:, :, :8] - 0.5], dim=2),
        images(),
        net=Mapped(),
        protocol=PROTOCOL,
        metrics=["sfd"],
        preview=True,
    )
    level = evaluate_generation(
        samples, images(), net=Mapped(), protocol=PROTOCOL, metrics=["sfd"], preview=True
    )
    assert set(level.metrics) == set(level.floor) == set(level.intervals) == {"sfd_efflite2"}
    assert turned.metrics["sfd_efflite2"] > level.metrics["sfd_efflite2"]
    sides = [image_features(side, Mapped(), output="spatial") for side in (samples, images())]
    assert level.metrics["sfd_efflite2"] == pytest.approx(frechet_distance(*sides))
    with pytest.raises(ValueError, match="efficientnet_lite2 gives no maps"):
        evaluate(samples, metrics=["sfd"])


def test_precision_has_wilsons_interval():
    low, high = _wilson(0.3, 40)
    z = NormalDist().inv_cdf(0.975)
    for bound in (low, high):  # where the share lies 1.96 of the bound's own standard errors away
        assert abs(0.3 - bound) / math.sqrt(bound * (1 - bound) / 40) == pytest.approx(z, rel=1e-4)
    assert _wilson(0.0, 40)[0] == pytest.approx(0, abs=1e-12)
    assert 0 < _wilson(0.0, 40)[1] < 0.1


def test_ten_thousand_images_are_no_preview(monkeypatch):
    monkeypatch.setattr("maetok_lab.evaluation.generation.PREVIEW_IMAGES", 50)
    assert not evaluate(images(50, "fake")).preview
    assert evaluate(images(49, "fake")).preview
    assert PREVIEW_IMAGES == 10_000


def test_what_cannot_be_trusted_is_refused():
    with pytest.raises(ValueError, match="needs 3000 images a side, not 50: pass preview=True"):
        evaluate(images(50, "fake"), preview=False)
    assert "kid_efflite2" in evaluate(images(50, "fake"), preview=False, metrics=["kid"]).metrics
    with pytest.raises(ValueError, match="all 20 samples are the same image"):
        evaluate(images(1).expand(20, -1, -1, -1))
    with pytest.raises(
        ValueError, match="all 20 images of the reference 20 images are the same image"
    ):
        evaluate(images(50, "fake"), images(1).expand(20, -1, -1, -1))
    with pytest.raises(
        ValueError, match=r"samples are 8 px, but the reference .* has images of 16 px"
    ):
        evaluate(images(50, "fake", size=8))
    bad = images(50, "fake")
    bad[3, 1, 2, 2] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate(bad)
    with pytest.raises(ValueError, match=r"unknown metrics \['fid'\]"):
        evaluate(images(50, "fake"), metrics=["fid"])
