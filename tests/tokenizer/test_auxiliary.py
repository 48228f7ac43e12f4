"""Auxiliary decoders learn from hidden patches, and only from them."""

import dataclasses

import pytest
import torch

from maetok_lab.config import from_json, to_json
from maetok_lab.identity import fingerprint
from maetok_lab.tokenizer.auxiliary import (
    AuxiliaryConfig,
    AuxiliaryDecoder,
    auxiliary_loss,
    make_target,
    shallow_tower,
)
from maetok_lab.tokenizer.model import TOKENIZERS, TokenizerConfig
from maetok_lab.tokenizer.targets import hog
from maetok_lab.tokenizer.towers import TowerConfig

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=4,
    num_latent_tokens=6,
    latent_dim=4,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def decoder() -> AuxiliaryDecoder:
    torch.manual_seed(0)
    return AuxiliaryDecoder(AuxiliaryConfig(tower=TOWER), MODEL)


def test_the_release_defaults_are_a_narrow_tower_on_hidden_patches():
    config = AuxiliaryConfig()
    assert (config.target, config.weight, config.loss_on) == ("hog", 1.0, "hidden")
    tower = shallow_tower(TOKENIZERS["maetok-b-128"].decoder)
    assert tower == TowerConfig(width=192, depth=3, num_heads=3, positions="rope", rope="mixed")


def test_a_depth_of_its_own_replaces_nothing_else_of_the_tower():
    deep = dataclasses.replace(TOWER, depth=5)
    assert AuxiliaryConfig(tower=TOWER, depth=5).decoder_tower(TOWER) == deep
    paper = TOKENIZERS["maetok-b-128"].decoder
    shallow = dataclasses.replace(shallow_tower(paper), depth=12)
    assert AuxiliaryConfig(depth=12).decoder_tower(paper) == shallow
    linear = AuxiliaryDecoder(AuxiliaryConfig(tower=TOWER, depth=0), MODEL)
    assert not hasattr(linear.decoder, "blocks")
    assert linear(noise(2, 6, 4)).shape == (2, 16, linear.target.width)


def test_a_config_without_a_depth_is_an_older_runs():
    old = to_json(AuxiliaryConfig(tower=TOWER))
    del old["depth"]
    assert from_json(AuxiliaryConfig, old) == AuxiliaryConfig(tower=TOWER)
    assert fingerprint(AuxiliaryConfig()) != fingerprint(AuxiliaryConfig(depth=1))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_without_a_tower_of_its_own_a_decoder_is_a_small_copy_of_the_pixel_decoder(name):
    model = TOKENIZERS[name]
    tower = shallow_tower(dataclasses.replace(model.decoder, drop_path=0.1))
    assert tower.width / tower.num_heads == model.decoder.width / model.decoder.num_heads
    assert (tower.positions, tower.rope, tower.drop_path) == (
        model.decoder.positions,
        model.decoder.rope,
        0,
    )
    small = TokenizerConfig(
        image_size=16,
        patch_size=4,
        num_latent_tokens=6,
        latent_dim=4,
        encoder=TOWER,
        decoder=dataclasses.replace(TOWER, depth=5),
    )
    blocks = AuxiliaryDecoder(AuxiliaryConfig(), small).decoder.blocks
    assert len(blocks) == 3


def test_the_target_is_hog_in_cells_of_eight_pixels_or_the_smaller_patch():
    for patch, cell in ((16, 8), (8, 8), (4, 4)):
        images, model = (
            noise(2, 3, 32, 32),
            dataclasses.replace(MODEL, image_size=32, patch_size=patch),
        )
        assert torch.equal(make_target(AuxiliaryConfig(), model)(images), hog(images, patch, cell))


@pytest.mark.parametrize("loss_on", ["hidden", "all"])
def test_only_hidden_patches_give_gradient_unless_all_are_asked_for(decoder, loss_on):
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, [1, 5]] = mask[1, [0, 15]] = True
    prediction = decoder(noise(2, 6, 4))
    prediction.retain_grad()
    per_patch = decoder.target.loss(prediction, decoder.target(noise(2, 3, 16, 16)))
    loss = auxiliary_loss(per_patch, mask, loss_on)
    loss.backward()
    counted = mask if loss_on == "hidden" else torch.ones_like(mask)
    assert torch.allclose(loss, per_patch[counted].mean())
    assert torch.equal(prediction.grad.abs().sum(-1) > 0, counted)


def test_without_a_mask_all_patches_count():
    per_patch = noise(2, 16)
    assert torch.equal(auxiliary_loss(per_patch, None, "hidden"), per_patch.mean())


def test_every_patch_gets_a_prediction_and_every_weight_but_the_unused_one_learns(decoder):
    prediction = decoder(noise(2, 6, 4))
    assert prediction.shape == (2, 16, 27)
    prediction.square().sum().backward()
    idle = {name for name, p in decoder.named_parameters() if p.grad is None}
    assert idle == {"decoder.norm_modulation.linear.weight", "decoder.norm_modulation.linear.bias"}
