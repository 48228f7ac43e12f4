"""Discriminators judge places of an image, learn, keep their state; losses are those by hand."""

import math

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.nets import FeatureNet, NetSpec
from maetok_lab.tokenizer import discriminators
from maetok_lab.tokenizer.discriminators import (
    AdversarialConfig,
    DinoDiscriminator,
    LecamEma,
    PatchDiscriminator,
    SpectralNorm,
    adaptive_weight,
    hinge_d,
    hinge_g,
    make_discriminator,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vision_transformer(**settings) -> torch.nn.Module:
    from timm.models.vision_transformer import (
        VisionTransformer,
    )  # not at the top: maetok_lab makes timm importable

    return VisionTransformer(num_classes=0, **settings)


def small_dino(size: int = 32) -> DinoDiscriminator:
    """ViT-S's shape, small, with random weights: 12 blocks, 4 x 4 tokens and a class token."""
    torch.manual_seed(0)
    vit = vision_transformer(
        img_size=size, patch_size=8, embed_dim=32, depth=12, num_heads=2, dynamic_img_size=True
    )
    spec = NetSpec(
        name="timm:vit_small_patch16_224.dino",
        input_size=size,
        mean=(124, 116, 104),
        std=(58, 57, 57),
    )
    return DinoDiscriminator(FeatureNet(vit, spec, weight_hash="random"))


def kinds() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "spectral": PatchDiscriminator(AdversarialConfig(width=8, layers=2, norm="spectral")),
        "group": PatchDiscriminator(AdversarialConfig(width=8, layers=2, norm="group")),
        "dino": small_dino(),
    }


each_kind = pytest.mark.parametrize("kind", ["spectral", "group", "dino"])


# ---- Losses ----


def test_hinge_losses_are_what_one_computes_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_d(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert hinge_d(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -9.0])) == 0
    assert hinge_g(fake).item() == pytest.approx(2 / 3)


def test_lecam_is_its_formula_and_its_averages_start_at_zero():
    lecam = LecamEma(decay=0.9)
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([-3.0, 0.5])
    # the means are counted already, at 1 - decay: EMA real -0.05, EMA fake -0.125
    assert lecam(real, fake).item() == pytest.approx(1.125**2 / 2 + 2.95**2 / 2)
    assert lecam.real == lecam.fake == 0
    lecam.update(torch.tensor(4.0), torch.tensor(-2.0))
    lecam.update(torch.tensor(1.0), torch.tensor(-1.0))
    mean_real, mean_fake = 0.9 * 0.4 + 0.1, 0.9 * -0.2 - 0.1
    assert lecam.real.item() == pytest.approx(mean_real)
    assert lecam.fake.item() == pytest.approx(mean_fake)
    mean_real, mean_fake = 0.9 * mean_real + 0.1 * -0.5, 0.9 * mean_fake + 0.1 * -1.25
    expected = ((1 - mean_fake) ** 2 + 0) / 2 + ((mean_real + 3) ** 2 + 0) / 2
    assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-5)
    other = LecamEma(decay=0.9)
    other.load_state_dict(lecam.state_dict())
    assert other(real, fake) == lecam(real, fake)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    x = noise(4, 3)
    weight = noise(3, 2, seed=1).requires_grad_()
    reconstruction, adversarial = (x @ weight).square().mean(), -(x @ weight).sin().sum()
    y = (x @ weight).detach()
    by_hand = (x.T @ (2 * y / y.numel())).norm() / ((x.T @ -y.cos()).norm() + 1e-4)
    factor = adaptive_weight(reconstruction, adversarial, weight)
    assert factor.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert not factor.requires_grad
    assert weight.grad is None
    (reconstruction + factor * adversarial).backward()  # both graphs are still there
    averaged = adaptive_weight(
        (x @ weight).sum(), (x @ weight).sum(), weight, average=lambda gradient: 0 * gradient + 1
    )
    assert averaged.item() == pytest.approx(math.sqrt(6) / (math.sqrt(6) + 1e-4))


def test_the_adaptive_weight_stays_below_ten_thousand_where_the_discriminator_says_nothing():
    weight = torch.ones(2, requires_grad=True)
    assert adaptive_weight(100 * weight.sum(), 0 * weight.sum(), weight) == 1e4


# ---- Networks ----


@pytest.mark.parametrize("size", [32, 256])
def test_patchgan_judges_places_of_small_and_large_images(size):
    logits = PatchDiscriminator(AdversarialConfig(width=4))(noise(2, 3, size, size))
    assert logits.shape == (2, (size // 8 - 2) ** 2)


def test_a_logit_of_patchgan_sees_seventy_pixels():
    torch.manual_seed(0)
    images = noise(1, 3, 256, 256).requires_grad_()
    logits = PatchDiscriminator(AdversarialConfig(width=4))(images)
    logits[0, 15 * 30 + 15].backward()
    reach = images.grad[0].abs().sum(0) > 0
    assert (reach.any(0).sum(), reach.any(1).sum()) == (70, 70)


def test_spectral_norm_gives_the_largest_singular_value_one_also_under_autocast():
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3)
    spectral = SpectralNorm(weight)
    for _ in range(50):
        normalised = spectral(weight)
    assert torch.linalg.svdvals(normalised.flatten(1))[0].item() == pytest.approx(1, abs=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spectral.eval()(weight), normalised) or torch.allclose(
            spectral(weight), normalised, atol=1e-6
        )


@each_kind
def test_looking_in_eval_mode_changes_no_state_and_training_mode_only_spectral_vectors(kind):
    discriminator = kinds()[kind].eval()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator(noise(2, 3, 32, 32))
    assert all(
        torch.equal(before[name], value) for name, value in discriminator.state_dict().items()
    )
    discriminator.train()(noise(2, 3, 32, 32))
    changed = {
        name.rpartition(".")[2]
        for name, value in discriminator.state_dict().items()
        if not torch.equal(before[name], value)
    }
    assert changed == (set() if kind == "group" else {"u"})


@each_kind
def test_a_logit_depends_on_its_own_image_only(kind):
    discriminator = kinds()[kind].eval()
    images = noise(3, 3, 32, 32)
    assert torch.allclose(discriminator(images)[:1], discriminator(images[:1]), atol=1e-5)


@each_kind
def test_logits_and_gradients_are_finite_in_bf16(kind):
    discriminator = kinds()[kind]
    images = noise(2, 3, 32, 32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = discriminator(images)
    assert logits.dtype == torch.float32
    hinge_d(logits, -logits).backward()
    gradients = [images.grad, *(p.grad for p in discriminator.trained.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@each_kind
def test_a_discriminator_learns_to_tell_noise_from_images_in_thirty_steps(kind):
    discriminator = kinds()[kind]
    optimizer = torch.optim.AdamW(discriminator.trained.parameters(), lr=2e-3, betas=(0.5, 0.9))
    ramp = torch.linspace(-1, 1, 32)
    for step in range(30):
        phase = noise(8, 3, 1, 1, seed=step) * 3
        images = torch.sin(3 * (ramp[:, None] + ramp) + phase)
        logits = discriminator(torch.cat([images, noise(8, 3, 32, 32, seed=100 + step)]))
        loss = hinge_d(logits[:8], logits[8:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits[:8].mean(1) > 0).all()
    assert (logits[8:].mean(1) < 0).all()
    assert loss < 0.7


def test_dino_looks_at_the_embedding_and_four_blocks_of_a_frozen_network():
    discriminator = small_dino()
    images = noise(2, 3, 32, 32)
    vit = discriminator.net.model
    prepared = discriminator.net.prepare(images, 32)
    blocks = vit.forward_intermediates(
        prepared,
        indices=[2, 5, 8, 11],
        norm=False,
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    embedding = vit.patch_embed(prepared).flatten(1, 2) + vit.pos_embed[:, 1:]
    expected = [embedding + (vit.cls_token + vit.pos_embed[:, :1])] + [
        patches + prefix for patches, prefix in blocks
    ]
    features = discriminator.features(images)
    assert [tuple(x.shape) for x in features] == [(2, 32, 16)] * 5
    assert all(
        torch.allclose(ours.transpose(1, 2), reference, atol=1e-5)
        for ours, reference in zip(features, expected)
    )
    assert discriminator(images).shape == (2, 5 * 16)
    assert not any(p.requires_grad for p in discriminator.net.parameters())
    assert all(p.requires_grad for p in discriminator.trained.parameters())
    assert not discriminator.train().net.training


def test_dino_takes_images_of_any_size():
    discriminator = small_dino()
    assert [discriminator(noise(1, 3, size, size)).shape for size in (16, 64)] == [(1, 80)] * 2


def test_the_released_discriminator_has_the_released_number_of_trained_values(monkeypatch):
    request = {}

    def load(name, **settings):
        request.update(settings, name=name)
        vit = vision_transformer(patch_size=16, embed_dim=384, depth=0, num_heads=6)
        spec = NetSpec(name=name, input_size=224, mean=(124,) * 3, std=(58,) * 3)
        return FeatureNet(vit, spec, weight_hash="")

    monkeypatch.setattr(discriminators, "load_net", load)
    discriminator = make_discriminator(AdversarialConfig(weights="dino.pth"), image_size=256)
    assert request == {
        "name": "timm:vit_small_patch16_224.dino",
        "weights": "dino.pth",
        "input_size": 224,
    }
    assert discriminator.crop_size == 224
    assert round(sum(p.numel() for p in discriminator.trained.parameters()) / 1e6, 2) == 7.39


# ---- Config ----


def test_a_config_names_its_discriminator():
    config = AdversarialConfig(discriminator="patchgan", width=8, layers=2, norm="group")
    discriminator = make_discriminator(config, image_size=32)
    assert isinstance(discriminator, PatchDiscriminator)
    assert discriminator.crop_size is None
    assert discriminator.trained[0].out_channels == 8
    assert any(isinstance(part, torch.nn.GroupNorm) for part in discriminator.modules())


def test_bad_settings_are_errors_that_say_what_is_needed(tmp_path):
    patchgan = AdversarialConfig(discriminator="patchgan")
    with pytest.raises(
        ValueError, match="of 3 layers needs images of at least 24 px, not 16; take fewer layers"
    ):
        make_discriminator(patchgan, image_size=16)
    with pytest.raises(ValueError, match="need 0 <= trains_from <= counts_from, not 10 and 5"):
        AdversarialConfig(trains_from=10, counts_from=5)
    with pytest.raises(ValueError, match="need lecam_decay in"):
        AdversarialConfig(lecam_decay=1.0)
    with pytest.raises(ValueError, match="must be one of"):
        override(patchgan, {"discriminator": "stylegan"})
    with pytest.raises(
        FileNotFoundError, match=r"no weights at .*dino\.pth for timm:vit_small_patch16_224\.dino"
    ):
        make_discriminator(AdversarialConfig(weights=str(tmp_path / "dino.pth")), image_size=32)
