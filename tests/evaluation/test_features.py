"""Features do not depend on how images arrive or how many at once; names say which network made them."""

import math
import socket

import pytest
import torch

from maetok_lab.evaluation.features import image_batches, image_features, make_reference, metric_name
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

    split, image_size = "val", 16

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], torch.zeros(len(indices))


def images(count=23, name="images"):
    return 2 * torch.rand(count, 3, 16, 16, generator=generator(0, name)) - 1


def test_batch_size_and_way_of_arrival_change_nothing():
    want = image_features(images(), TinyNet(), batch_size=64)
    assert want.shape == (23, 6)
    for batch_size in (1, 7):
        torch.testing.assert_close(image_features(images(), TinyNet(), batch_size=batch_size), want, rtol=1e-5, atol=0)
    for given in (Source(images()), iter(images().split(5)), [images()[:20], images()[20:]]):
        torch.testing.assert_close(image_features(given, TinyNet(), batch_size=7), want, rtol=1e-5, atol=0)


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
    torch.testing.assert_close(image_features(outside, TinyNet()), image_features(outside.clamp(max=1), TinyNet()))
    bad = x.clone()
    bad[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        image_features(bad, TinyNet())
    with pytest.raises(ValueError, match="no images"):
        image_features([], TinyNet())


def test_a_stand_in_never_has_the_real_metrics_name():
    net = TinyNet()
    assert [metric_name(m, net) for m in ("fd", "kid", "rfd")] == ["fd_efflite2", "kid_efflite2", "rfd_efflite2"]
    net.name = "timm:vit_small_patch14_dinov2.lvd142m"
    assert metric_name("fd", net) == "fd_vit_small_patch14_dinov2_lvd142m"
    net.name = "inception"
    assert [metric_name(m, net) for m in ("fd", "kid", "rfd")] == ["fid", "kid", "rfid"]


def test_a_reference_is_known_by_its_pixels():
    first, again = make_reference(Source(images()), TinyNet(), batch_size=5), make_reference(images(), TinyNet())
    assert first.sha256 == again.sha256
    assert make_reference(images(name="other"), TinyNet()).sha256 != first.sha256
    assert (first.name, first.count, first.image_size) == ("val", 23, 16)
    assert again.name == "23 images"


def _process(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queue.put((rank, image_features(images(), TinyNet(), batch_size=4).tolist()))
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    want = image_features(images(), TinyNet())
    for rank in range(2):
        torch.testing.assert_close(torch.tensor(found[rank]), want, rtol=1e-5, atol=0)
