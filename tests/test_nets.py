"""The feature networks are the packages' own, frozen; one that cannot be loaded says why."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from maetok_lab import nets
from maetok_lab.data.images import open_images
from maetok_lab.nets import FeatureNet, load_net

NAMES = ["squeezenet1_1", "efficientnet_lite0", "efficientnet_lite2"]


@pytest.fixture(scope="module")
def loaded() -> dict[str, FeatureNet]:
    return {name: load_net(name) for name in NAMES}


@pytest.fixture(scope="module")
def emoji() -> torch.Tensor:
    source = open_images("emoji", split="test", image_size=64)
    assert source.records["path"][0].endswith("noto/1f60a.webp")
    return source.batch([0, 40])[0]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_lite2_features_of_a_shipped_emoji_are_pinned(loaded, emoji):
    features = loaded["efficientnet_lite2"].features(emoji)[0]
    assert torch.allclose(features[:4], torch.tensor([0.09297, 0.0, 0.64568, 0.0]), atol=1e-3)
    assert float(features.norm()) == pytest.approx(14.669796, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_features_maps_and_logits_have_their_shapes(loaded, emoji, name):
    net = loaded[name]
    assert net.features(emoji).shape == net(emoji).shape == (2, net.num_features)
    assert net.feature_map(emoji, grid=3).shape == (2, 3, 3, net.num_features)
    assert net.logits(emoji).shape == (2, 1000)
    assert len(net.weight_hash) == 16


@pytest.mark.parametrize("grid", [4, 8])
def test_a_map_at_the_networks_own_size_averages_to_its_features(loaded, emoji, grid):
    lite0 = load_net("efficientnet_lite0", input_size=32 * grid)
    assert torch.allclose(
        lite0.feature_map(emoji, grid=grid).mean(dim=(1, 2)), lite0.features(emoji), atol=1e-5
    )
    squeezenet = load_net("squeezenet1_1", input_size=16 * grid + 15)
    mean = squeezenet.feature_map(emoji, grid=grid).mean(dim=(1, 2))
    assert torch.allclose(mean, squeezenet.features(emoji), rtol=1e-4, atol=1e-4)


def test_every_network_gets_the_scaling_it_wants(loaded):
    images = (
        torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    )  # red 0, green 127.5, blue 255
    bgr = loaded["squeezenet1_1"].prepare(images)[0, :, 0, 0]
    assert torch.allclose(
        bgr, torch.tensor([255 - 103.939, 127.5 - 116.779, 0 - 123.68]), atol=1e-4
    )
    rgb = loaded["efficientnet_lite2"].prepare(images)[0, :, 0, 0]
    assert torch.allclose(rgb, torch.tensor([-127 / 128, 0.5 / 128, 1.0]), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_photograph_of_a_cat_is_a_cat(loaded, name):
    skimage_data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375] / 127.5 - 1
    assert set(loaded[name].logits(cat)[0].topk(3).indices.tolist()) == {
        281,
        282,
        285,
    }  # tabby, tiger, Egyptian


def test_the_stages_are_squeezenets_lpips_slices_at_the_images_own_size(loaded, emoji):
    stages = loaded["squeezenet1_1"].stages(emoji)
    assert [stage.shape[1] for stage in stages] == [64, 128, 256, 384, 384, 512, 512]
    assert [stage.shape[2] for stage in stages] == [31, 15, 7, 3, 3, 3, 3]
    assert [stage.shape[-1] for stage in loaded["squeezenet1_1"].stages(noise(1, 3, 32, 32))][
        -1
    ] == 1
    assert (
        loaded["squeezenet1_1"]
        .model.features(loaded["squeezenet1_1"].prepare(emoji))
        .equal(stages[-1])
    )
    with pytest.raises(
        ValueError, match="stages are there for squeezenet1_1 only, not for efficientnet_lite0"
    ):
        loaded["efficientnet_lite0"].stages(emoji)


def test_gradients_reach_the_images_and_no_weight(loaded):
    images = noise(1, 3, 32, 32).requires_grad_()
    sum(stage.square().mean() for stage in loaded["squeezenet1_1"].stages(images)).backward()
    assert images.grad.isfinite().all()
    assert (images.grad != 0).float().mean() > 0.9
    assert all(not p.requires_grad and p.grad is None for p in loaded["squeezenet1_1"].parameters())
    images.grad = None
    loaded["efficientnet_lite0"].feature_map(images, grid=2).sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_network_stays_in_eval_mode_inside_a_module_that_trains(loaded, emoji):
    net = loaded["efficientnet_lite0"]
    before = net.features(emoji)
    torch.nn.ModuleDict({"net": net}).train()
    assert not any(module.training for module in net.modules())
    assert net.features(emoji).equal(before)


def test_what_comes_in_must_be_images(loaded):
    with pytest.raises(
        ValueError, match=r"wants images \(B, 3, H, W\) in \[-1, 1\], got \(3, 32, 32\)"
    ):
        loaded["squeezenet1_1"].features(noise(3, 32, 32))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown network 'squeezenet'; did you mean 'squeezenet1_1'\?"
    ):
        load_net("squeezenet")
    with pytest.raises(ValueError, match=r"has no 'resnet19'; did you mean 'resnet"):
        load_net("timm:resnet19")


def test_a_damaged_or_missing_shipped_file_is_named_with_its_cure(tmp_path, monkeypatch):
    file = "squeezenet1_1.safetensors"
    for name in (file, "index.json"):
        shutil.copy(nets.WEIGHTS / name, tmp_path / name)
    monkeypatch.setattr(nets, "WEIGHTS", tmp_path)
    content = bytearray((tmp_path / file).read_bytes())
    content[-1] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"squeezenet1_1\.safetensors is damaged: sha256 .*data/build_weights\.py"
    ):
        load_net("squeezenet1_1")
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*data/build_weights\.py"):
        load_net("squeezenet1_1")


def test_a_file_of_ones_own_is_loaded_strictly(tmp_path, loaded, emoji):
    state = {
        name: value.contiguous()
        for name, value in loaded["squeezenet1_1"].model.state_dict().items()
    }
    save_file(state, tmp_path / "own.safetensors")
    own = load_net("squeezenet1_1", weights=tmp_path / "own.safetensors")
    assert own.features(emoji).equal(loaded["squeezenet1_1"].features(emoji))
    assert own.weight_hash != loaded["squeezenet1_1"].weight_hash
    state.pop("classifier.1.bias")
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(
        ValueError, match=r"short\.safetensors does not fit squeezenet1_1: .*classifier\.1\.bias"
    ):
        load_net("squeezenet1_1", weights=tmp_path / "short.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="is no readable safetensors file"):
        load_net("squeezenet1_1", weights=tmp_path / "text.safetensors")


@pytest.mark.parametrize(("name", "grid"), [("resnet18", 2), ("vit_tiny_patch16_224", 5)])
def test_a_network_of_timm_loads_from_a_local_file(tmp_path, emoji, name, grid):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    net = load_net(f"timm:{name}", weights=tmp_path / "model.safetensors")
    assert net.input_size == 224
    assert net.features(emoji).shape == (2, net.num_features)
    assert net.feature_map(emoji, grid=grid).shape == (2, grid, grid, net.num_features)
    mean, std = (
        torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    images = noise(1, 3, 224, 224)
    assert torch.allclose(net.logits(images), model(((images + 1) / 2 - mean) / std), atol=1e-4)
    with pytest.raises(FileNotFoundError, match=f"no weights at nowhere for timm:{name}"):
        load_net(f"timm:{name}", weights="nowhere")
    save_file({"odd": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=rf"odd\.safetensors does not fit timm:{name} "):
        load_net(f"timm:{name}", weights=tmp_path / "odd.safetensors")


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    import timm

    def refuse(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        FileNotFoundError,
        match=r"of timm:resnet18 are not here .* hf\.co/timm/resnet18.*weights=FILE",
    ):
        load_net("timm:resnet18")
