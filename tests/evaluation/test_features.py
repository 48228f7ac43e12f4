"""Features do not depend on how images arrive or how many at once; names carry the network."""

import importlib.metadata
import math

import pytest
import torch

from maetok_lab.evaluation.features import (
    about_net,
    image_batches,
    image_features,
    make_reference,
    metric_name,
    spatial_features,
)
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.nets import load_net
from maetok_lab.pictures import to_uint8
from maetok_lab.rng import generator


class TinyNet(torch.nn.Module):
    """A seeded convolution in the place of nets.FeatureNet."""

    name, weight_hash, input_size = "efficientnet_lite2", "0123", 16

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator(0, "net")))
        self.sizes = []

    def features(self, images):
        self.sizes.append(len(images))
        return torch.nn.functional.conv2d(images, self.weight, stride=2).relu().mean(dim=(2, 3))


class Source:
    """Images by index, as data.images.ImageSource gives them."""

    split, image_size, crop, resize = "val", 16, "pad", "Lanczos"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], torch.zeros(len(indices))


def images(count=23, name="images"):
    return 2 * torch.rand(count, 3, 16, 16, generator=generator(0, name)) - 1


def test_batch_size_and_way_of_arrival_change_nothing():
    expected = image_features(images(), TinyNet(), batch_size=64)
    assert expected.shape == (23, 6)
    for batch_size in (1, 7):
        torch.testing.assert_close(
            image_features(images(), TinyNet(), batch_size=batch_size), expected, rtol=1e-5, atol=0
        )
    for source in (Source(images()), iter(images().split(5)), [images()[:20], images()[20:]]):
        torch.testing.assert_close(
            image_features(source, TinyNet(), batch_size=7), expected, rtol=1e-5, atol=0
        )


def test_every_batch_is_full():
    net = TinyNet()
    image_features(images(), net, batch_size=10)
    assert net.sizes == [10, 10, 10]
    batches = list(image_batches(images(3), 8))
    assert [(len(batch), count) for batch, count in batches] == [(8, 3)]
    assert (batches[0][0][3:] == images(3)[2]).all()


def test_images_are_clamped_and_rounded_first():
    x = images(4)
    levels = to_uint8(x).float() / 127.5 - 1
    torch.testing.assert_close(image_features(x, TinyNet()), TinyNet().features(levels).detach())
    outside = torch.where(x > 0, 7.0, x)
    torch.testing.assert_close(
        image_features(outside, TinyNet()), image_features(outside.clamp(max=1), TinyNet())
    )
    bad = x.clone()
    bad[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        image_features(bad, TinyNet())
    with pytest.raises(ValueError, match="no images"):
        image_features([], TinyNet())


def test_a_stand_in_never_has_the_real_metrics_name():
    net = TinyNet()
    assert [metric_name(m, net) for m in ("fd", "kid", "rfd")] == [
        "fd_efflite2",
        "kid_efflite2",
        "rfd_efflite2",
    ]
    net.name = "timm:vit_small_patch14_dinov2.lvd142m"
    assert metric_name("fd", net) == "fd_vit_small_patch14_dinov2_lvd142m"
    net.name = "inception"
    assert [metric_name(m, net) for m in ("fd", "kid", "rfd")] == ["fid", "kid", "rfid"]


def test_a_reference_is_known_by_its_pixels():
    first, again = (
        make_reference(Source(images()), TinyNet(), batch_size=5),
        make_reference(images(), TinyNet()),
    )
    assert first.sha256 == again.sha256
    assert make_reference(images(name="other"), TinyNet()).sha256 != first.sha256
    assert (first.name, first.count, first.image_size) == ("val", 23, 16)
    assert (first.crop, first.resize) == ("pad", "Lanczos")
    assert (again.name, again.crop, again.resize) == ("23 images", None, None)


def test_a_network_is_recorded_with_the_package_that_builds_it():
    facts = about_net(load_net("efficientnet_lite2", input_size=64))
    assert facts["net_version"] == f"timm {importlib.metadata.version('timm')}"
    assert (facts["net"], facts["net_input_size"]) == ("efficientnet_lite2", 64)
    assert len(facts["net_weights"]) == 16
    assert about_net(TinyNet())["net_version"] is None


@pytest.mark.parametrize(("input_size", "side"), [(64, 4), (260, 17)])
def test_spatial_features_of_the_shipped_network_are_seven_channels_at_stride_16(input_size, side):
    net = load_net("efficientnet_lite2", input_size=input_size)
    outputs = image_features(images(2), net, output="spatial", batch_size=2)
    assert outputs.shape == (2, 7 * side * side)
    rounded = to_uint8(images(2)).float() / 127.5 - 1
    torch.testing.assert_close(
        outputs, _stage(net, rounded, side)[:, :7].flatten(1), rtol=1e-4, atol=1e-4
    )


def _stage(net, images, side):
    """The last map of `side` places, by walking through the network's stages."""
    x = net.model.bn1(net.model.conv_stem(net.prepare(images, net.input_size)))
    maps = [x := stage(x) for stage in net.model.blocks]
    return [outputs for outputs in maps if outputs.shape[-1] == side][-1]


def test_spatial_features_need_maps():
    with pytest.raises(ValueError, match="squeezenet1_1 gives no maps"):
        spatial_features(load_net("squeezenet1_1"), images(2))


def _process(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    bad = images()
    bad[0] = math.nan  # in the first process's share
    try:
        image_features(bad, TinyNet())
    except ValueError as problem:
        message = str(problem)
    reference = make_reference(Source(images()), TinyNet(), batch_size=4)
    result = evaluate_generation(
        images(30, "fake"),
        reference,
        net=TinyNet(),
        protocol=EvalProtocol(),
        preview=True,
        batch_size=4,
    )
    rebuilt = evaluate_reconstruction(Shift(), images(), net=TinyNet(), batch_size=4)
    queue.put(
        (
            rank,
            reference.features.tolist(),
            reference.sha256,
            message,
            result.to_json(),
            rebuilt.to_json(),
        )
    )
    torch.distributed.destroy_process_group()


class Shift:
    """A tokenizer that adds a little."""

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents + 0.1


def test_two_processes_give_what_one_gives_and_an_error_of_one_is_everybodys(in_two_processes):
    outputs = in_two_processes(_process)
    expected = make_reference(Source(images()), TinyNet())
    result = evaluate_generation(
        images(30, "fake"), expected, net=TinyNet(), protocol=EvalProtocol(), preview=True
    )
    rebuilt = evaluate_reconstruction(Shift(), images(), net=TinyNet())
    for rank, features, sha256, message, their_result, their_rebuilt in outputs:
        torch.testing.assert_close(
            torch.tensor(features), expected.features, rtol=1e-5, atol=0, msg=f"process {rank}"
        )
        assert sha256 == expected.sha256
        assert "NaN" in message
        assert EvalResult.from_json(their_result).metrics == pytest.approx(result.metrics, rel=1e-5)
        assert EvalResult.from_json(their_rebuilt).metrics == pytest.approx(
            rebuilt.metrics, rel=1e-5
        )
        assert EvalResult.from_json(their_rebuilt).protocol == rebuilt.protocol
