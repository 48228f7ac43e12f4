"""Features of frozen networks as targets: the release's teachers, asked once, saved nowhere."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maetok_lab import nets
from maetok_lab.nets import FeatureNet, NetSpec, feature_width, load_net
from maetok_lab.tokenizer.auxiliary import (
    AuxiliaryConfig,
    AuxiliaryDecoder,
    compute_targets,
    make_target,
    share_networks,
)
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.targets import TEACHERS, FeatureTarget, PixelTarget
from maetok_lab.tokenizer.towers import TowerConfig

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=8,
    num_latent_tokens=6,
    latent_dim=4,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)  # a grid of 2 x 2
IMAGENET = (
    torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def small_timm(monkeypatch):
    """timm whose vision transformers have one block of width 32, under their own names."""
    import timm

    create = timm.create_model

    def create_small(name, **options):
        small = {"embed_dim": 32, "depth": 1, "num_heads": 2} if name.startswith("vit_") else {}
        return create(name, **options, **small)

    monkeypatch.setattr(timm, "create_model", create_small)
    return create_small


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_a_transformer_of_the_release_is_rebuilt_for_its_grid_and_gives_normed_patch_tokens(
    small_timm, tmp_path, name
):
    teacher = TEACHERS[name]
    torch.manual_seed(0)
    rebuilt = small_timm(teacher.net.removeprefix("timm:"), patch_size=16, img_size=32).eval()
    save_file(rebuilt.state_dict(), tmp_path / "model.safetensors")
    target = make_target(
        AuxiliaryConfig(target=name, weights=str(tmp_path / "model.safetensors")), MODEL
    )
    images = noise(2, 3, 32, 32)
    features = target(images)
    # the release feeds both ImageNet's mean and std, and leaves class and register tokens out
    tokens = rebuilt.forward_features(((images + 1) / 2 - IMAGENET[0]) / IMAGENET[1])[
        :, rebuilt.num_prefix_tokens :
    ]
    assert rebuilt.num_prefix_tokens == {"dinov2": 1, "clip": 0}[name]
    assert target.width == 32
    assert features.shape == (2, 4, 32)
    assert torch.allclose(features, tokens, atol=1e-5)
    # the final norm is in it
    assert torch.allclose(features.mean(-1), torch.zeros(2, 4), atol=1e-4)
    assert not features.requires_grad


def test_published_weights_of_another_patch_and_size_are_resampled(small_timm, tmp_path):
    torch.manual_seed(0)
    published = small_timm("vit_large_patch14_dinov2.lvd142m", pretrained=False)
    assert published.pos_embed.shape == (1, 1 + 37 * 37, 32)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    target = make_target(
        AuxiliaryConfig(target="dinov2", weights=str(tmp_path / "model.safetensors")), MODEL
    )
    assert target.net.model.patch_embed.proj.weight.shape == (32, 3, 16, 16)
    assert target.net.model.pos_embed.shape == (1, 1 + 2 * 2, 32)
    assert target.net.model.blocks[0].attn.qkv.weight.equal(published.blocks[0].attn.qkv.weight)
    assert target(noise(1, 3, 16, 16)).shape == (1, 4, 32)  # 16 px images are resized to 2 x 16


def test_the_release_names_its_teachers_and_their_widths():
    assert TEACHERS["dinov2"].net == "timm:vit_large_patch14_dinov2.lvd142m"
    assert TEACHERS["clip"].net == "timm:vit_so400m_patch14_siglip_gap_224"
    assert {name: feature_width(teacher.net) for name, teacher in TEACHERS.items()} == {
        "semantic": 1280,
        "dinov2": 1024,
        "clip": 1152,
    }
    assert feature_width("squeezenet1_1") == 512
    assert feature_width("efficientnet_lite2") == load_net("efficientnet_lite2").num_features


def test_the_shipped_network_is_a_target_without_any_download():
    target = make_target(AuxiliaryConfig(target="semantic"), MODEL)
    images = noise(2, 3, 16, 16)
    net = load_net("efficientnet_lite0")
    expected = torch.cat([net.feature_map(image, grid=2) for image in images.split(1)])
    assert torch.equal(target(images), expected.flatten(1, 2))
    assert target(images).shape == (2, 4, target.width)


def test_any_network_of_timm_can_be_a_target_with_the_scaling_it_wants(tmp_path):
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
    config = AuxiliaryConfig(target="timm:resnet10t", weights=str(tmp_path / "model.safetensors"))
    target, images = make_target(config, MODEL), noise(1, 3, 16, 16)
    net = load_net("timm:resnet10t", weights=tmp_path / "model.safetensors")
    assert torch.equal(target(images), net.feature_map(images, grid=2).flatten(1, 2))
    assert (
        AuxiliaryConfig(target="timm:vit_tiny_patch16_224.augreg_in21k").module_name.count(".") == 0
    )


def test_the_loss_is_the_negative_cosine_by_hand():
    target = FeatureTarget(TEACHERS["semantic"], 2)
    truth = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0]]])
    predicted = torch.tensor([[[6.0, 8.0], [0.0, 5.0], [-1.0, -1.0], [1.0, 1.0]]])
    assert torch.allclose(
        target.loss(predicted, truth), torch.tensor([[-1.0, 0.0, 1.0, -(0.5**0.5)]]), atol=1e-6
    )


def test_the_pixels_of_a_patch_are_its_target_and_the_loss_their_mean_squared_error():
    target = make_target(AuxiliaryConfig(target="pixel"), MODEL)
    assert target == PixelTarget(8)
    images = noise(2, 3, 16, 16)
    features = target(images)
    assert features.shape == (2, 4, target.width) == (2, 4, 192)
    assert torch.equal(
        features[1, 2].view(8, 8, 3), images[1, :, 8:, :8].permute(1, 2, 0)
    )  # the lower left patch
    assert torch.allclose(
        target.loss(features + torch.arange(4.0)[:, None], features),
        torch.tensor([0.0, 1, 4, 9]).expand(2, 4),
    )


def decoders(*names: str, **options) -> nn.ModuleDict:
    configs = [AuxiliaryConfig(target=name, tower=TOWER, **options) for name in names]
    return nn.ModuleDict(
        {config.module_name: AuxiliaryDecoder(config, MODEL) for config in configs}
    )


class Counted(FeatureNet):
    """A network that gives its input's mean colour, and counts how often it is asked."""

    def __init__(self):
        model = nn.Conv2d(3, 3, 1)
        model.num_features = 1280
        spec = NetSpec(name="counted", input_size=2, mean=(0,) * 3, std=(1,) * 3)
        super().__init__(model, spec, weight_hash="")
        self.asked = 0

    def feature_map(self, images, *, grid):
        self.asked += 1
        assert not torch.is_grad_enabled()
        return images.mean((2, 3))[:, None, None].expand(-1, grid, grid, -1)


def test_two_targets_of_one_network_load_it_once_and_ask_it_once_a_batch(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "maetok_lab.tokenizer.targets.load_net",
        lambda *a, **o: loaded.append(Counted()) or loaded[-1],
    )
    monkeypatch.setitem(TEACHERS, "clip", TEACHERS["semantic"])
    both = decoders("semantic", "clip", "hog")
    share_networks(both)
    features = compute_targets(both, noise(2, 3, 16, 16))
    assert len(loaded) == 1
    assert loaded[0].asked == 2  # images, one by one on a CPU
    assert features["semantic"] is features["clip"]
    assert set(features) == set(both)


def test_on_a_cpu_what_was_said_of_an_image_is_remembered_until_memory_is_full(monkeypatch):
    monkeypatch.setattr("maetok_lab.tokenizer.targets.load_net", lambda *a, **o: Counted())
    target, images = FeatureTarget(TEACHERS["semantic"], 2), noise(3, 3, 16, 16)
    monkeypatch.setattr(
        "maetok_lab.tokenizer.targets.MEMORY_LIMIT", 2 * target(images[:1]).nbytes
    )  # the first is known now
    once = target(images)
    assert target.net.asked == 3
    assert torch.equal(target(images.flip(0)), once.flip(0))
    assert target.net.asked == 4  # the third found no room
    with torch.autocast("cpu", torch.bfloat16):
        target(images[:1])
    assert target.net.asked == 5  # other bits, so another question


def test_an_images_features_are_the_same_bits_in_any_batch():
    images = noise(5, 3, 16, 16)
    together = FeatureTarget(TEACHERS["semantic"], 2)(images)
    assert torch.equal(FeatureTarget(TEACHERS["semantic"], 2)(images[3:]), together[3:])


def test_a_network_is_in_no_state_dict_and_among_no_parameters():
    both = decoders("semantic", "pixel")
    share_networks(both)
    assert both["semantic"].target.net.model.conv_stem.weight.requires_grad is False
    assert not [
        name
        for name in both.state_dict()
        if "target." in name.replace("to_target.", "") or "conv_stem" in name
    ]
    assert not any(isinstance(module, FeatureNet) for module in both.modules())


@pytest.mark.parametrize("loss_on", ["hidden", "all"])
def test_only_hidden_patches_give_gradient_to_a_feature_target(loss_on):
    (decoder,) = decoders("semantic", loss_on=loss_on).values()
    mask = torch.tensor([[True, False, False, True], [False, True, False, True]])
    predicted, targets = [], noise(2, 4, 1280)
    decoder.to_target.register_forward_hook(lambda module, inputs, output: predicted.append(output))
    latents = noise(2, 6, 4, seed=1)
    loss = decoder.loss(latents, targets, mask)
    (gradient,) = torch.autograd.grad(loss, predicted[0])
    counted = mask if loss_on == "hidden" else torch.ones_like(mask)
    assert torch.equal(gradient.abs().sum(-1) > 0, counted)
    assert torch.allclose(
        loss, -torch.cosine_similarity(predicted[0], targets, dim=-1)[counted].mean()
    )


def test_a_decoder_of_depth_zero_is_linear_in_the_latents():
    config = AuxiliaryConfig(target="pixel", tower=dataclasses.replace(TOWER, depth=0))
    decoder = AuxiliaryDecoder(config, MODEL)
    a, b = noise(2, 6, 4), noise(2, 6, 4, seed=1)
    zero = decoder(torch.zeros(2, 6, 4))
    assert decoder(a).shape == (2, 4, 192)
    assert torch.allclose(
        decoder(2 * a - b) - zero, 2 * (decoder(a) - zero) - (decoder(b) - zero), atol=1e-5
    )
    assert (decoder(a) - decoder(b)).abs().max() > 1e-3


# ---- What cannot be ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "hgo"}, r"unknown target 'hgo'; did you mean 'hog'\?"),
        ({"target": "dino"}, r"unknown target 'dino'; did you mean 'dinov2'\?"),
        ({"depth": -1}, "depth must be 0 or more, not -1"),
        ({"target": "timm:resnet19"}, r"has no 'resnet19'; did you mean 'resnet"),
        (
            {"target": "hog", "weights": "file"},
            r"target 'hog' has no network, so it cannot take weights='file'",
        ),
    ],
)
def test_an_unknown_target_is_answered_with_the_nearest(options, message):
    with pytest.raises(ValueError, match=message):
        AuxiliaryConfig(**options)


def test_missing_weights_say_which_file_or_which_repository(monkeypatch, small_timm, tmp_path):
    import timm

    for name in ("dinov2", "semantic"):
        with pytest.raises(FileNotFoundError, match=r"no weights at nowhere\.safetensors"):
            share_networks(decoders(name, weights="nowhere.safetensors"))
    save_file({"odd": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(
        ValueError, match=r"odd\.safetensors does not fit timm:vit_so400m_patch14_siglip_gap_224"
    ):
        share_networks(decoders("clip", weights=str(tmp_path / "odd.safetensors")))

    def offline(name, *, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return small_timm(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        FileNotFoundError,
        match=r"vit_large_patch14_dinov2\.lvd142m are not here .* hf\.co/timm/.*weights=",
    ):
        share_networks(decoders("dinov2"))


def test_only_networks_of_timm_can_be_rebuilt_or_fed_otherwise():
    with pytest.raises(
        ValueError, match="patch_size and scaling are for timm:NAME, not for efficientnet_lite0"
    ):
        load_net("efficientnet_lite0", patch_size=16)
    with pytest.raises(
        ValueError, match="can be rebuilt with patches of 16 px only for a given input_size"
    ):
        load_net("timm:vit_tiny_patch16_224", patch_size=16)
    assert nets.IMAGENET_MEAN == (0.485, 0.456, 0.406)
