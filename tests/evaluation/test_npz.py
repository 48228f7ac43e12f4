"""ADM's .npz files: written so that numpy reads them, read as sources and references."""

import io
import re
import zipfile

import numpy as np
import pytest
import torch

from maetok_lab.evaluation.features import image_features
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.metrics import frechet_distance
from maetok_lab.evaluation.npz import NpzImages, read_reference, write_npz
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.identity import file_hash
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
            np.testing.assert_array_equal(
                file["arr_0"], to_uint8(images()).permute(0, 2, 3, 1).numpy()
            )


def test_labels_go_along_and_the_file_is_mapped_not_read(tmp_path):
    labels = torch.arange(9) % 4
    write_npz(tmp_path / "labelled.npz", images().split(4), count=9, labels=labels)
    with np.load(tmp_path / "labelled.npz") as file:
        np.testing.assert_array_equal(file["arr_1"], labels.numpy())
        np.savez_compressed(tmp_path / "packed.npz", arr_0=file["arr_0"], arr_1=file["arr_1"])
    mapped, packed = NpzImages(tmp_path / "labelled.npz"), NpzImages(tmp_path / "packed.npz")
    assert isinstance(mapped._pixels, np.memmap)
    assert not isinstance(packed._pixels, np.memmap)
    for rows in (torch.tensor([8, 0, 3]), torch.arange(9)):
        for part, same_part in zip(mapped.batch(rows), packed.batch(rows)):
            assert part.equal(same_part)
    with pytest.raises(ValueError, match="4 labels for 9 images"):
        write_npz(tmp_path / "labelled.npz", images(), labels=labels[:4])


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
    assert (reference.name, reference.count, reference.features.shape) == (
        "reference.npz",
        9,
        (9, 3),
    )
    np.savez(tmp_path / "published.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(
        ValueError,
        match="Inception's mean and covariance only; efficientnet_lite2 needs the images",
    ):
        read_reference(tmp_path / "published.npz", TinyNet())
    inception = TinyNet()
    inception.name = "inception"
    mean, covariance = read_reference(tmp_path / "published.npz", inception).statistics
    assert (mean.shape, covariance.shape) == ((4,), (4, 4))
    published = read_reference(tmp_path / "published.npz", inception)
    with pytest.raises(ValueError, match="features have 3 dimensions, but the reference has 4"):
        evaluate_generation(
            images(),
            published,
            net=inception,
            protocol=EvalProtocol(),
            preview=True,
            metrics=["fd"],
        )
    np.savez(tmp_path / "published.npz", mu=np.zeros(3), sigma=np.eye(3))
    published = read_reference(tmp_path / "published.npz", inception)
    result = evaluate_generation(
        images(), published, net=inception, protocol=EvalProtocol(), preview=True, metrics=["fd"]
    )
    expected = frechet_distance(image_features(images(), inception), (np.zeros(3), np.eye(3)))
    assert result.metrics == {"fid": pytest.approx(expected)}
    assert result.protocol.reference_sha256 == file_hash(tmp_path / "published.npz")[:16]
    np.savez(tmp_path / "neither.npz", x=np.zeros(4))
    with pytest.raises(
        ValueError, match=r"no reference: it needs arr_0 or mu and sigma; it has \['x'\]"
    ):
        read_reference(tmp_path / "neither.npz", TinyNet())


def test_an_adm_reference_gives_its_statistics_to_fid_and_its_images_to_precision(tmp_path):
    net = TinyNet()
    net.name = "inception"
    pixels = to_uint8(images()).permute(0, 2, 3, 1).numpy()
    statistics = {
        "mu": np.full(3, 0.5),
        "sigma": np.eye(3),
        "mu_s": np.full(5, 0.1),
        "sigma_s": 2 * np.eye(5),
    }
    np.savez(tmp_path / "adm.npz", arr_0=pixels, **statistics)
    reference = read_reference(tmp_path / "adm.npz", net)
    assert (reference.count, reference.features.shape, reference.name) == (9, (9, 3), "adm.npz")
    assert reference.spatial_statistics[1][0, 0] == 2
    samples = images(7) * 0.5
    result = evaluate_generation(
        samples, reference, net=net, protocol=EvalProtocol(), preview=True, metrics=["fd", "recall"]
    )
    features = image_features(samples, net)
    assert result.metrics["fid"] == pytest.approx(
        frechet_distance(features, (statistics["mu"], statistics["sigma"]))
    )
    assert result.metrics["recall"] >= 0
    assert result.protocol.reference_sha256 == file_hash(tmp_path / "adm.npz")[:16]
    net.name = "efficientnet_lite2"  # for any other network the images alone count
    assert read_reference(tmp_path / "adm.npz", net).statistics is None


def test_a_file_that_is_no_whole_npz_gets_one_line(tmp_path):
    path = tmp_path / "samples.npz"
    write_npz(path, images(), labels=torch.arange(9))
    whole = path.read_bytes()
    np.savez_compressed(tmp_path / "packed.npz", arr_0=np.arange(3000, dtype=np.uint8))
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[200:400] = bytes(200)
    np.save(tmp_path / "array.npy", np.zeros((4, 8, 8, 3), dtype=np.uint8))
    files = {
        "half.npz": (whole[: len(whole) // 2], "no whole .npz file: it may be cut off"),
        "empty.npz": (b"", "no whole .npz file"),
        "text.npz": (b"<!doctype html>", "no whole .npz file"),
        "damaged.npz": (packed, "is damaged; copy it once more"),
        "array.npz": ((tmp_path / "array.npy").read_bytes(), "is one array (4, 8, 8, 3), not"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        for read in (NpzImages, lambda path: read_reference(path, TinyNet())):
            with pytest.raises(ValueError, match=re.escape(message)):
                read(tmp_path / name)


@pytest.mark.parametrize("labels", [np.arange(8), np.zeros((9, 2), dtype=int), np.zeros(9)])
def test_labels_that_are_not_one_an_image_are_refused(tmp_path, labels):
    pixels = np.zeros((9, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=pixels, arr_1=labels)
    with pytest.raises(ValueError, match="one whole number, the label, for each of the 9 images"):
        NpzImages(tmp_path / "samples.npz")


def test_labels_of_any_whole_kind_come_as_int64(tmp_path):
    pixels = np.zeros((9, 8, 8, 3), dtype=np.uint8)
    for kind in ("uint16", "uint64", "int8"):
        np.savez(tmp_path / "samples.npz", arr_0=pixels, arr_1=np.arange(9).astype(kind))
        assert NpzImages(tmp_path / "samples.npz").batch(torch.arange(9))[1].dtype == torch.int64


def test_an_npz_whose_parts_are_none_or_say_too_much_is_named(tmp_path):
    def write(name, header_shape=None, compression=zipfile.ZIP_STORED, content=None):
        facts = {"descr": "|u1", "fortran_order": False, "shape": header_shape}
        buffer = io.BytesIO()
        if content is None:
            np.lib.format.write_array_header_1_0(buffer, facts)
            content = buffer.getvalue() + bytes(100)
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            archive.writestr("arr_0.npy", content)
            archive.writestr("mu.npy", content)
            archive.writestr("sigma.npy", content)
        return tmp_path / name

    inception = TinyNet()
    inception.name = "inception"
    huge = (10**6, 1000, 1000, 3)
    for path in [
        write("stored.npz", huge),
        write("packed.npz", huge, zipfile.ZIP_DEFLATED),
        write("cut.npz", (9, 8, 8, 3), zipfile.ZIP_DEFLATED),
        write("none.npz", content=b"no array"),
        write("packed-none.npz", content=b"no array", compression=zipfile.ZIP_DEFLATED),
        write("negative.npz", (-3, 8, 8, 3)),
    ]:
        for read in (NpzImages, lambda path: read_reference(path, inception)):
            with pytest.raises(ValueError, match=path.name):
                read(path)
