"""The whole evaluation on shipped emoji and the shipped network: distances grow with noise and with blur."""

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*images for 1280 dimensions")
def test_distances_on_the_shipped_network_grow_with_noise_and_blur():
    source, net = open_images("emoji", split="val", image_size=64), load_net("efficientnet_lite2", input_size=128)
    images, _ = source.batch(torch.arange(0, 128, 2))
    real = make_reference(source.batch(torch.arange(1, 128, 2))[0], net, name="emoji/val, odd")
    noise = torch.randn(images.shape, generator=generator(0, "noise"))

    def distances(samples):
        result = evaluate_generation(
            samples, real, net=net, protocol=EvalProtocol(), preview=True, metrics=["kid", "fd"], fd_draws=0
        )
        return result.metrics["kid_efflite2"], result.metrics["fd_efflite2"]

    clean = distances(images)
    noisy = [distances(images + sigma * noise) for sigma in (0.1, 0.3)]
    blurred = [distances(torch.nn.functional.avg_pool2d(images, width, 1, width // 2)) for width in (3, 9)]
    for worse in (noisy, blurred):
        for before, after in itertools.pairwise([clean, *worse]):
            assert after[0] > before[0]
            assert after[1] > before[1]
    trace = float(feature_statistics(real.features)[1].trace())
    assert abs(frechet_distance(real.features, real.features)) < 1e-6 * trace


@pytest.mark.slow
def test_batch_size_does_not_change_the_numbers_of_the_shipped_network():
    source, net = open_images("emoji", split="val", image_size=64), load_net("efficientnet_lite2", input_size=64)
    images, real = source.batch(torch.arange(40))[0], make_reference(source.batch(torch.arange(40, 80))[0], net)
    results = [
        evaluate_generation(images, real, net=net, protocol=EvalProtocol(), metrics=["kid", "precision"], batch_size=size)
        for size in (1, 7, 64)
    ]
    for result in results[1:]:
        assert result.metrics == pytest.approx(results[0].metrics, rel=1e-5)
