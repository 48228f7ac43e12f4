"""ADM's .npz files: written so that numpy reads them, read as sources and references."""

import numpy as np
import pytest
import torch

from maetok_lab.evaluation.npz import NpzImages, read_reference, write_npz
from maetok_lab.pictures import to_uint8
from maetok_lab.rng import generator


class TinyNet:
    name, weight_hash, input_size = "efficientnet_lite2", "0123", 8

    def features(self, images):
        return images.mean(dim=(2, 3))


def images(count=9):
    return 2.2 * torch.rand(count, 3, 8, 8, generator=generator(0, "images")) - 1.1


def test_numpy_reads_the_rounded_images_back(tmp_path):
    write_npz(tmp_path / "whole.npz", images())
    write_npz(tmp_path / "parts.npz", images().split(4), count=9)
    for name in ("whole.npz", "parts.npz"):
        with np.load(tmp_path / name) as file:
            assert file.files == ["arr_0"]
            np.testing.assert_array_equal(file["arr_0"], to_uint8(images()).permute(0, 2, 3, 1).numpy())


def test_a_wrong_count_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="9 images came, but 10 were announced"):
        write_npz(tmp_path / "samples.npz", images().split(4), count=10)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="needs the count"):
        write_npz(tmp_path / "samples.npz", iter([images()]))


def test_images_come_back_as_a_source(tmp_path):
    write_npz(tmp_path / "samples.npz", images())
    source = NpzImages(tmp_path / "samples.npz")
    back, labels = source.batch(torch.tensor([3, 1]))
    torch.testing.assert_close(back, images()[[3, 1]].clamp(-1, 1), atol=1 / 255 + 1e-6, rtol=0)
    assert (len(source), source.image_size, labels.tolist()) == (9, 8, [0, 0])
    np.savez(tmp_path / "other.npz", arr_0=np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="must be uint8"):
        NpzImages(tmp_path / "other.npz")
    np.savez(tmp_path / "empty.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match=r"no array arr_0; it has \['x'\]"):
        NpzImages(tmp_path / "empty.npz")


def test_references_are_images_for_any_network_and_statistics_for_inception_alone(tmp_path):
    write_npz(tmp_path / "reference.npz", images())
    reference = read_reference(tmp_path / "reference.npz", TinyNet())
    assert (reference.name, reference.count, reference.features.shape) == ("reference.npz", 9, (9, 3))
    np.savez(tmp_path / "published.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match="Inception's mean and covariance only; efficientnet_lite2 needs the images"):
        read_reference(tmp_path / "published.npz", TinyNet())
    inception = TinyNet()
    inception.name = "inception"
    mean, covariance = read_reference(tmp_path / "published.npz", inception).statistics
    assert (mean.shape, covariance.shape) == ((4,), (4, 4))
