"""Mixtures of latents are those of the released iFID, and their distances what is known of them."""

import math
from types import SimpleNamespace

import pytest
import torch

from maetok_lab.analysis import interpolation, preprocess
from maetok_lab.analysis.interpolation import interpolated_distance, mix_latents, slerp
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.rng import generator


def latents(count=30, name="latents", shape=(4, 3)):
    return torch.randn(count, *shape, generator=generator(0, name))


@pytest.fixture(params=["one chunk", "small chunks"])
def chunks(request, monkeypatch):
    if request.param == "small chunks":
        monkeypatch.setattr(preprocess, "CHUNK_VALUES", 7 * 12)
        monkeypatch.setattr(interpolation, "CHUNK_VALUES", 3 * 50)


# Slerp ------------------------------------------------------------------------------------------


def test_the_ends_of_slerp_are_the_latents():
    a, b = latents(name="a"), latents(name="b")
    b[:3] = a[:3] * torch.tensor([1.0, 2.0, -1.0])[:, None, None]  # lines: equal, longer, opposite
    assert slerp(a, b, 0).equal(a)
    assert slerp(a, b, 1).equal(b)


def test_slerp_turns_evenly_on_the_sphere_and_keeps_norms_as_they_are():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for share in (0.25, 0.5, 0.9):
        angle = share * math.pi / 2
        expected = torch.tensor([[math.cos(angle), math.sin(angle)]])
        torch.testing.assert_close(slerp(a, b, share), expected)
    # of another length it has its share: the turn's weights are those of the unit vectors
    torch.testing.assert_close(slerp(a, 3 * b, 0.5), torch.tensor([[1.0, 3.0]]) * 0.5**0.5)


def test_slerp_is_the_releases():
    a, b = latents(name="a").double(), latents(name="b").double()
    eps = 1e-7  # they add it to norms and to the sine
    dot = (a.flatten(1) * b.flatten(1)).sum(1)
    theta = (dot / (a.flatten(1).norm(dim=1) + eps) / (b.flatten(1).norm(dim=1) + eps)).acos()
    weight = ((theta / 2).sin() / (theta.sin() + eps))[:, None, None]
    torch.testing.assert_close(slerp(a, b, 0.5), weight * (a + b), rtol=1e-6, atol=1e-6)


def test_equal_directions_go_along_the_line_and_nothing_is_nan():
    a = latents(shape=(64, 16))
    assert slerp(a, a.clone(), 0.5).equal(a)  # a cosine in float32 would be off by 1e-7
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    assert slerp(a, -a, 0.5).abs().max() == 0
    assert slerp(a, torch.zeros_like(a), 0.5).isfinite().all()


# Mixtures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["slerp", "linear"])
def test_a_latent_mixed_with_itself_is_itself(way):
    x = latents()
    assert mix_latents(x, x, neighbours=1, way=way).equal(x)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("way", ["slerp", "linear"])
def test_candidates_are_the_nearest_of_the_whole_reference(way):
    x, reference = latents(20), latents(50, "reference")
    flat, points = x.double().flatten(1), reference.double().flatten(1)
    apart = torch.cdist(flat, points)
    if way == "slerp":
        unit, unit_points = flat / flat.norm(dim=1)[:, None], points / points.norm(dim=1)[:, None]
        apart = -unit @ unit_points.T
    nearest = apart.topk(5, largest=False).indices
    # the draw by hand: of the running sums of softmax(-mean squared difference), the first above u
    weights = (-(points[nearest] - flat[:, None]).square().mean(2)).softmax(1)
    draws = torch.rand(20, generator=generator(3, "mix-latents"), dtype=torch.float64)
    places = [int((row.cumsum(0) > u).nonzero()[0]) for row, u in zip(weights, draws)]
    partners = reference[nearest[torch.arange(20), torch.tensor(places)]]
    expected = slerp(x, partners, 0.5) if way == "slerp" else (x + partners) / 2
    mixed = mix_latents(x, reference, neighbours=5, way=way, seed=3)
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)


def test_a_nearer_neighbour_is_drawn_as_much_more_often_as_the_softmax_says():
    x = torch.ones(4000, 1, 2)
    reference = torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]], [[-9.0, 1.0]]])  # 0, 1 and none apart
    mixed = mix_latents(x, reference, neighbours=2, way="linear")
    share = float((mixed[:, 0, 0] == 1.0).double().mean())
    expected = 1 / (1 + math.exp(-1))  # softmax of 0 and -1
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))
    assert set(mixed[:, 0, 0].tolist()) == {1.0, 1.5}


def test_similarity_is_of_directions_and_distance_of_places():
    x = torch.tensor([[[1.0, 0.0]]])
    far_alike, near_turned = torch.tensor([[[9.0, 0.0]], [[0.8, 0.8]]]).split(1)
    reference = torch.cat([far_alike, near_turned])
    along = mix_latents(x, reference, neighbours=1)
    nearest = mix_latents(x, reference, neighbours=1, way="linear")
    torch.testing.assert_close(along, torch.tensor([[[5.0, 0.0]]]))
    torch.testing.assert_close(nearest, torch.tensor([[[0.9, 0.4]]]))


@pytest.mark.usefixtures("chunks")
def test_a_cache_gives_what_its_tensor_gives(tokenizer, make_pictures, tmp_path):
    from maetok_lab.data.caching import cached_latents

    pictures = make_pictures(25, 8)
    pictures.fingerprint = "pictures"
    cache = cached_latents(tokenizer, pictures, "cache", root=tmp_path)
    held = cache.all_latents()
    mixed = mix_latents(cache, cache, neighbours=4)
    assert mixed.shape == (25, 3, 2)
    assert mixed.equal(mix_latents(held, held, neighbours=4))


def test_what_cannot_be_mixed_says_what_came():
    x = latents()
    with pytest.raises(ValueError, match=r"need 1 to 5 neighbours, .* not 10: give more images"):
        mix_latents(x, latents(5))
    with pytest.raises(ValueError, match=r"need 1 to 30 neighbours, .* not 0"):
        mix_latents(x, x, neighbours=0)
    with pytest.raises(ValueError, match=r"\(30, 4, 3\) and reference \(30, 4, 2\) must be of one"):
        mix_latents(x, latents(shape=(4, 2)))
    with pytest.raises(ValueError, match="way"):
        mix_latents(x, x, way="mask")
    broken = x.clone()
    broken[3, 0, 0] = math.nan
    for pair in ((x, broken), (broken, x)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            mix_latents(*pair)


# Distances --------------------------------------------------------------------------------------


class Mean(torch.nn.Module):
    """A seeded projection of pixels in the place of a network."""

    weight_hash, input_size = "0123", 16

    def __init__(self, name="efficientnet_lite2", width=6):
        super().__init__()
        self.name = name
        weight = torch.randn(3 * 256, width, generator=generator(0, "net")) / 16
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def features(self, images):
        return images.flatten(1) @ self.weight


class Pixels:
    """Images of four pixels as their own features."""

    name, weight_hash = "pixels", "4567"

    @staticmethod
    def features(images):
        return images[:, :, 0, 0]


class Blocks:
    """Images of 16 px as the means of 16 blocks: a tokenizer that loses something."""

    fingerprint, latent_shape = "blocks", (16, 3)

    @staticmethod
    def encode(images):
        return torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)

    @staticmethod
    def decode(latents):
        blocks = latents.transpose(1, 2).unflatten(2, (4, 4))
        return torch.nn.functional.interpolate(blocks, scale_factor=4)


@pytest.fixture
def faces(make_pictures):
    """Images with their latents."""
    images = make_pictures(64, 16).images
    return SimpleNamespace(images=images, latents=Blocks.encode(images))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mixed_with_itself_the_distance_is_that_of_reconstructions(faces):
    net = Mean()
    result = interpolated_distance(
        Blocks.decode,
        faces.latents,
        faces.latents,
        faces.images,
        net=net,
        neighbours=1,
        metrics=("kid", "fd"),
        preview=True,
    )
    reference = evaluate_reconstruction(Blocks(), faces.images, net=net)
    for metric in ("kid", "fd"):
        expected = reference.metrics[f"r{metric}_efflite2"]
        assert result.metrics[f"i{metric}_efflite2"] == expected
        assert result.metrics[f"r{metric}_efflite2"] == expected
    assert result.intervals["ikid_efflite2"] == reference.intervals["rkid_efflite2"]
    assert result.metrics["ifd_gap_efflite2"] == pytest.approx(0, abs=1e-9)
    assert result.metrics["ikid_gap_efflite2"] <= 0  # unbiased, of two sets that are one


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_distance_of_known_mixtures_is_the_known_one():
    # all are mixed with one latent c: half as wide around (m + c) / 2, and the decoder is exact
    images = (0.25 * latents(3000, shape=(3, 4))).clamp(-1, 1).unflatten(2, (2, 2))
    c = torch.full((1, 3, 4), 0.5)
    result = interpolated_distance(
        lambda z: z.unflatten(2, (2, 2)),
        images.flatten(2),
        c,
        images,
        net=Pixels(),
        neighbours=1,
        way="linear",
        metrics=("fd",),
    )
    features = images[:, :, 0, 0].double()
    shift = (features.mean(0) - 0.5).square().sum() / 4
    expected = float(shift + features.var(0).sum() / 4)
    # pixels are rounded to bytes
    assert result.metrics["ifd_pixels"] == pytest.approx(expected, rel=0.01)
    assert result.metrics["ifd_gap_pixels"] == pytest.approx(expected, rel=0.01)
    assert result.metrics["rfd_pixels"] == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_names_protocol_and_floor_stand_beside_the_numbers(faces):
    data = (Blocks.decode, faces.latents, 0.1 * latents(90, shape=(16, 3)), faces.images)
    result = interpolated_distance(*data, net=Mean(), seed=5)
    names = {"ikid_efflite2", "rkid_efflite2", "ikid_gap_efflite2"}
    assert set(result.metrics) == set(result.intervals) == set(result.floor) == names
    assert result.preview
    assert result.protocol.sampler == "slerp halfway to 1 of the 10 nearest of 90 latents"
    facts = (result.protocol.seed, result.protocol.num_images, result.protocol.reference)
    assert facts == (5, 64, "64 images")
    assert 0 < result.standard_error("ikid_efflite2") < 1

    inception = interpolated_distance(
        *data, net=Mean("inception"), metrics=["kid", "fd"], preview=True
    )
    assert {"ifid", "rfid", "ifid_gap", "ikid", "rkid", "ikid_gap"} == set(inception.metrics)


def test_distances_that_cannot_be_trusted_are_refused(faces):
    data = (Blocks.decode, faces.latents, faces.latents)
    with pytest.raises(ValueError, match="needs 3000 images a side, not 64: pass preview=True"):
        interpolated_distance(*data, faces.images, net=Mean(), metrics=("fd",))
    with pytest.raises(ValueError, match="64 latents of 63 images: give the images that were"):
        interpolated_distance(*data, faces.images[1:], net=Mean())
    with pytest.raises(ValueError, match="metric"):
        interpolated_distance(*data, faces.images, net=Mean(), metrics=("psnr",))
