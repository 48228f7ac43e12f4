"""Reconstruction numbers of tokenizers whose error is known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.data.images import open_images
from maetok_lab.evaluation.pixels import psnr, ssim
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.rng import generator


class Shift(torch.nn.Module):
    """A tokenizer whose reconstruction is the image plus a constant; its latents are the pixels."""

    def __init__(self, by):
        super().__init__()
        self.by, self.modes = by, []

    def encode(self, images):
        self.modes.append(self.training)
        return images.flatten(2).transpose(1, 2)

    def decode(self, latents):
        return latents.transpose(1, 2).unflatten(2, (16, 16)) + self.by


class TinyNet(torch.nn.Module):
    name, weight_hash, input_size = "efficientnet_lite2", "0123", 16

    def features(self, images):
        return images.mean(dim=(2, 3))


class Source:
    split, fingerprint, image_size = "val", "feed", 16

    def __len__(self):
        return 11

    def batch(self, indices):
        return images()[indices], torch.zeros(len(indices))


def images():
    return torch.rand(11, 3, 16, 16, generator=generator(0, "images")) - 0.5


def test_numbers_are_the_means_over_images():
    x, tokenizer = images(), Shift(0.2)
    result = evaluate_reconstruction(tokenizer, x, batch_size=4)
    assert result.metrics["psnr"] == pytest.approx(float(psnr(x + 0.2, x).mean()), rel=1e-9)
    assert result.metrics["ssim"] == pytest.approx(float(ssim(x + 0.2, x).mean()), rel=1e-9)
    low, high = result.intervals["ssim"]
    assert low < result.metrics["ssim"] < high
    assert (result.protocol.task, result.protocol.num_images, result.protocol.image_size) == (
        "reconstruction",
        11,
        16,
    )
    assert "data_range 255" in result.protocol.ssim


def test_truncated_reconstructions_are_one_level_lower_where_they_lie_between():
    levels = torch.randint(100, 150, (11, 3, 16, 16), generator=generator(0, "levels"))
    x = levels / 127.5 - 1
    plain = evaluate_reconstruction(Shift(-0.1 / 127.5), x)
    assert plain.metrics["psnr"] == math.inf
    protocol = EvalProtocol(task="reconstruction", rounding="truncated")
    truncated = evaluate_reconstruction(Shift(-0.1 / 127.5), x, protocol=protocol)
    # an error of one level everywhere
    assert truncated.metrics["psnr"] == pytest.approx(20 * math.log10(255), rel=1e-12)


def test_sources_and_batch_sizes_give_the_same():
    expected = evaluate_reconstruction(Shift(0.2), images())
    for batch_size in (1, 3, 64):
        got = evaluate_reconstruction(Shift(0.2), Source(), batch_size=batch_size)
        assert got.metrics == pytest.approx(expected.metrics, rel=1e-9)
        assert (got.protocol.reference, got.protocol.reference_sha256) == ("val", "feed")


@pytest.mark.parametrize(
    "layout", ["val/n01440764/{}.JPEG", "val2017/{:012d}.jpg"], ids=["ImageNet", "COCO"]
)
def test_folders_of_photographs_are_held_out_sources(tmp_path, layout):
    for i in range(8):
        path = tmp_path / layout.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    source = open_images(tmp_path, split="val", image_size=16)
    result = evaluate_reconstruction(Shift(0.2), source, batch_size=4)
    pictures = source.batch(torch.arange(len(source)))[0]
    assert result.metrics["psnr"] == pytest.approx(
        float(psnr(pictures + 0.2, pictures).mean()), rel=1e-9
    )
    stated = result.protocol
    assert (stated.num_images, stated.reference, stated.reference_sha256) == (
        8,
        "val",
        source.fingerprint,
    )
    assert stated.crop
    assert stated.resize


def test_the_tokenizer_runs_in_eval_mode_and_gets_its_mode_back():
    tokenizer = Shift(0.1).train()
    evaluate_reconstruction(tokenizer, images())
    assert tokenizer.modes == [False]
    assert tokenizer.training


def test_perceptual_and_feature_distances_are_named():
    def distance(reconstructions, originals):
        return (reconstructions - originals).abs().mean(dim=(1, 2, 3))

    result = evaluate_reconstruction(
        Shift(0.25), images(), perceptual=distance, net=TinyNet(), batch_size=4
    )
    assert result.metrics["perceptual"] == pytest.approx(0.25, abs=1e-6)
    assert set(result.metrics) == {"psnr", "ssim", "perceptual", "rkid_efflite2", "rfd_efflite2"}
    # the features all move by one constant: the Frechet distance is its square, three times
    assert result.metrics["rfd_efflite2"] == pytest.approx(3 * 0.25**2, rel=0.02)
    assert result.preview
    assert not evaluate_reconstruction(
        Shift(0.25), images()
    ).preview  # PSNR has no bias that more images would cure
    low, high = result.intervals["rfd_efflite2"]
    assert low < result.metrics["rfd_efflite2"] < high
    assert (
        high - low < 0.1 * result.metrics["rfd_efflite2"]
    )  # an image and its reconstruction are drawn together
    assert (result.protocol.net, result.protocol.perceptual) == ("efficientnet_lite2", "distance")


def test_a_perfect_tokenizer_has_infinite_psnr_and_no_interval():
    result = evaluate_reconstruction(Shift(0.0), images())
    assert math.isinf(result.metrics["psnr"])
    assert math.isnan(result.intervals["psnr"][0])
    assert result.metrics["ssim"] == 1
    assert result.to_json()["metrics"]["psnr"] is None


def test_errors_say_what_came():
    class Halves(Shift):
        def decode(self, latents):
            return super().decode(latents)[..., :8, :8]

    with pytest.raises(ValueError, match=r"\(11, 3, 16, 16\) came back as \(11, 3, 8, 8\)"):
        evaluate_reconstruction(Halves(0.0), images(), batch_size=11)
    with pytest.raises(ValueError, match="NaN"):
        evaluate_reconstruction(Shift(math.nan), images())
    with pytest.raises(ValueError, match="no images"):
        evaluate_reconstruction(Shift(0.0), images()[:0])
    with pytest.raises(ValueError, match="num_images = 5, but it is 11"):
        evaluate_reconstruction(
            Shift(0.0), images(), protocol=EvalProtocol(task="reconstruction", num_images=5)
        )
