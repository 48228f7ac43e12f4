"""Perceptual distances: LPIPS as its package has it, and its form on SqueezeNet."""

import sys
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from maetok_lab.nets import load_net
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.perceptual import (
    SqueezePerceptual,
    VggLpips,
    make_perceptual,
    stage_distance,
)


@pytest.fixture(scope="module")
def perceptual() -> SqueezePerceptual:
    return SqueezePerceptual(load_net("squeezenet1_1"))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_zero_for_the_same_images_alike_both_ways_and_grows_with_the_error(perceptual):
    images, error = noise(2, 3, 32, 32) * 0.5, noise(2, 3, 32, 32, seed=1)
    assert perceptual(images, images).tolist() == [0, 0]
    near, far = (perceptual(images + size * error, images) for size in (0.05, 0.5))
    assert (near < far).all()
    assert torch.allclose(far, perceptual(images, images + 0.5 * error), rtol=1e-4)


def test_it_is_two_minus_two_cosines_averaged_over_places_summed_over_stages(perceptual):
    a, b = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    expected = 0
    for a_stage, b_stage in zip(perceptual.net.stages(a), perceptual.net.stages(b)):
        cosine = torch.cosine_similarity(a_stage, b_stage, dim=1)
        lengths = (a_stage.norm(dim=1) > 0).float() + (b_stage.norm(dim=1) > 0)
        expected = expected + (lengths - 2 * cosine).mean((1, 2))
    assert torch.allclose(perceptual(a, b), expected, rtol=1e-4)


def test_gradients_reach_the_images_only(perceptual):
    images, reference = (
        noise(1, 3, 32, 32).requires_grad_(),
        noise(1, 3, 32, 32, seed=1).requires_grad_(),
    )
    perceptual(images, reference).sum().backward()
    assert images.grad.abs().sum() > 0
    assert reference.grad is None
    assert not any(p.requires_grad for p in perceptual.parameters())
    assert not perceptual.train().net.training


# ---- VGG-LPIPS ----

CHANNELS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256} | dict.fromkeys(
    (17, 19, 21, 24, 26, 28), 512
)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """A file with VGG16's convolutions as torchvision names them, random: no test downloads."""
    draw, width, state = torch.Generator().manual_seed(0), 3, {}
    for i, channels in CHANNELS.items():
        state[f"features.{i}.weight"] = (
            torch.randn(channels, width, 3, 3, generator=draw) * (2 / (9 * width)) ** 0.5
        )
        state[f"features.{i}.bias"] = torch.randn(channels, generator=draw) * 0.1
        width = channels
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def vgg_lpips(vgg_file) -> VggLpips:
    pytest.importorskip("lpips")
    return make_perceptual(LossConfig(perceptual="lpips", perceptual_weights=str(vgg_file)))


def test_lpips_is_what_the_package_computes(vgg_lpips, vgg_file):
    images, reference = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    expected = vgg_lpips.model(images, reference).flatten()
    assert torch.allclose(vgg_lpips(images, reference), expected, rtol=1e-4)
    assert torch.equal(
        vgg_lpips.model.net.slice5[-2].bias, torch.load(vgg_file)["features.28.bias"]
    )
    assert vgg_lpips(images, images).tolist() == [0, 0]


def test_lpips_weighs_channels_with_the_packages_learned_heads(vgg_lpips):
    heads = [head.model[-1].weight.flatten() for head in vgg_lpips.model.lins]
    assert [len(head) for head in heads] == [64, 128, 256, 512, 512]
    assert all((head >= 0).all() and head.std() > 0.01 for head in heads)


def test_lpips_stays_frozen_without_dropout_and_passes_gradients_to_the_images(vgg_lpips):
    images, reference = (
        noise(1, 3, 16, 16).requires_grad_(),
        noise(1, 3, 16, 16, seed=1).requires_grad_(),
    )
    holder = torch.nn.ModuleList([vgg_lpips]).train()
    assert torch.equal(vgg_lpips(images, reference), vgg_lpips(images, reference))
    assert not any(module.training for module in vgg_lpips.modules())
    assert holder.training
    vgg_lpips(images, reference).sum().backward()
    assert images.grad.abs().sum() > 0
    assert reference.grad is None
    assert not any(p.requires_grad for p in vgg_lpips.parameters())


def test_lpips_is_finite_in_bf16(vgg_lpips):
    images = noise(1, 3, 16, 16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = vgg_lpips(images, noise(1, 3, 16, 16, seed=1))
    distance.sum().backward()
    assert distance.dtype == torch.float32
    assert torch.isfinite(images.grad).all()


def test_places_without_any_feature_give_a_finite_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    stage_distance(features, torch.ones(1, 4, 2, 2), torch.ones(4, 1, 1)).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_lpips_takes_any_size_from_sixteen_pixels_on(vgg_lpips):
    assert vgg_lpips(noise(1, 3, 16, 24), noise(1, 3, 16, 24, seed=1)).shape == (1,)
    with pytest.raises(
        ValueError, match=r"VGG-LPIPS needs images of at least 16 px, not \(8, 16\)"
    ):
        vgg_lpips(noise(1, 3, 8, 16), noise(1, 3, 8, 16))


# ---- Choosing ----


def test_a_config_names_its_distance_or_none():
    assert isinstance(make_perceptual(LossConfig()), SqueezePerceptual)
    assert make_perceptual(LossConfig(perceptual="none")) is None
    assert make_perceptual(LossConfig(perceptual="lpips", perceptual_weight=0.0)) is None


def test_without_the_package_the_error_names_it(monkeypatch, vgg_file):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(
        ImportError, match=r"perceptual='lpips' needs lpips: pip install 'maetok-lab\[evaluation\]'"
    ):
        VggLpips(vgg_file)


def test_without_weights_the_error_names_the_file_and_where_it_is(monkeypatch, tmp_path):
    pytest.importorskip("lpips")

    def offline(*args, **settings):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(
        FileNotFoundError,
        match=r"VGG16 is not in .*no network.*vgg16-397923af\.pth elsewhere and give the file as",
    ):
        VggLpips()
    with pytest.raises(
        FileNotFoundError, match=r"no weights at .*mine\.pth \(LossConfig\.perceptual_weights\)"
    ):
        VggLpips(tmp_path / "mine.pth")


def test_weights_that_are_broken_or_of_another_network_are_errors(tmp_path):
    pytest.importorskip("lpips")
    broken, other = tmp_path / "broken.pth", tmp_path / "other.safetensors"
    broken.write_bytes(b"no weights")
    save_file({"features.0.weight": torch.zeros(32, 3, 3, 3)}, other)
    with pytest.raises(ValueError, match=r"broken\.pth is no readable weights file"):
        VggLpips(broken)
    with pytest.raises(
        ValueError,
        match=r"(?s)other\.safetensors is not torchvision's VGG16.*missing +features\.0\.bias",
    ):
        VggLpips(other)
