"""The whole evaluation on shipped emoji and network: only worse images have worse numbers."""

import itertools

import pytest
import torch

from maetok_lab.data.images import open_images
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.metrics import feature_statistics, frechet_distance
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.nets import load_net
from maetok_lab.rng import generator

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*images for 1280 dimensions")]


def blur(images, width):
    """Mean over a square of `width` pixels; the edge is mirrored, so that no border is drawn."""
    padded = torch.nn.functional.pad(images, [width // 2] * 4, mode="reflect")
    return torch.nn.functional.avg_pool2d(padded, width, 1)


def test_distances_on_the_shipped_network_grow_with_noise_and_blur():
    source, net = (
        open_images("emoji", split="val", image_size=64),
        load_net("efficientnet_lite2", input_size=128),
    )
    images, _ = source.batch(torch.arange(0, 128, 2))
    real = make_reference(source.batch(torch.arange(1, 128, 2))[0], net, name="emoji/val, odd")
    noise = torch.randn(images.shape, generator=generator(0, "noise"))

    def distances(samples):
        result = evaluate_generation(
            samples,
            real,
            net=net,
            protocol=EvalProtocol(),
            preview=True,
            metrics=["kid", "fd"],
            fd_draws=0,
        )
        return result.metrics["kid_efflite2"], result.metrics["fd_efflite2"]

    clean = distances(images)
    noisy = [distances(images + sigma * noise) for sigma in (0.05, 0.1, 0.2, 0.4)]
    blurred = [distances(blur(images, width)) for width in (3, 5, 9, 15)]
    for worse in (noisy, blurred):
        for before, after in itertools.pairwise([clean, *worse]):
            assert after[0] > before[0]
            assert after[1] > before[1]
    trace = float(feature_statistics(real.features)[1].trace())
    assert abs(frechet_distance(real.features, real.features)) < 1e-6 * trace


def scores(batch_size):
    """The numbers of 40 shipped images against 40 others, by the shipped network."""
    source, net = (
        open_images("emoji", split="val", image_size=64),
        load_net("efficientnet_lite2", input_size=64),
    )
    real = make_reference(Rows(source, range(40, 80)), net, batch_size=batch_size)
    samples = source.batch(torch.arange(40))[0]
    return evaluate_generation(
        samples, real, net=net, protocol=EvalProtocol(), preview=True, batch_size=batch_size
    ).metrics


class Rows:
    """Some images of a source, as a source."""

    def __init__(self, source, rows):
        self.source, self.rows = source, torch.tensor(rows)

    def __len__(self):
        return len(self.rows)

    def batch(self, indices):
        return self.source.batch(self.rows[indices])


def _process(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queue.put(scores(7))
    torch.distributed.destroy_process_group()


def test_neither_batch_size_nor_processes_change_the_numbers_of_the_shipped_network(
    in_two_processes,
):
    results = in_two_processes(_process, timeout=120) + [scores(size) for size in (1, 7, 64)]
    expected = scores(32)
    assert set(expected) == {"kid_efflite2", "fd_efflite2", "precision_efflite2", "recall_efflite2"}
    for metrics in results:
        assert metrics == pytest.approx(expected, rel=1e-5)
