"""The two transformers, block by block."""

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from maetok_lab.config import override
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import (
    GridPositions,
    LatentDecoder,
    ModulatedBlock,
    Modulation,
    PlainBlock,
    TowerConfig,
    drop_path_rates,
    init_weights,
    latent_positions,
    modulate_latents,
)

TOWER = TowerConfig(width=16, depth=2, num_heads=2)
CONFIG = TokenizerConfig(
    image_size=12,
    patch_size=4,
    num_latent_tokens=6,
    latent_dim=4,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)
GRID = (3, 3)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoder(changes: dict | None = None) -> LatentDecoder:
    torch.manual_seed(0)
    config = override(CONFIG, changes or {})
    return LatentDecoder(config, config.decoder, modulation=True).apply(init_weights)


def test_stochastic_depth_rises_linearly_from_zero():
    deep = TowerConfig(width=8, depth=5, num_heads=1, drop_path=0.2)
    assert drop_path_rates(deep) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert drop_path_rates(TowerConfig(width=8, depth=1, num_heads=1, drop_path=0.2)) == [0]


def test_a_plain_block_is_the_pre_norm_block_of_vit():
    torch.manual_seed(0)
    block, x = PlainBlock(TOWER, drop_path=0.0, layer_scale=0.5), noise(2, 5, 16)
    middle = x + 0.5 * block.attn(layer_norm(x, (16,), eps=1e-6))
    expected = middle + 0.5 * block.mlp(layer_norm(middle, (16,), eps=1e-6))
    assert torch.allclose(block(x, None), expected, atol=1e-5)


def test_a_modulated_block_scales_and_shifts_latent_positions_only_by_scale_not_one_plus_scale():
    torch.manual_seed(0)
    block = ModulatedBlock(override(CONFIG, {"modulation_init": 0.0}), TOWER, drop_path=0.0)
    x, latents = noise(2, 9, 16), noise(2, 6, 4)
    torch.nn.init.normal_(block.modulation.linear.weight)
    torch.nn.init.normal_(block.modulation.linear.bias)
    modulation = block.modulation.linear(silu(latents))
    shift_attn, scale_attn, shift_mlp, scale_mlp = modulation.split(16, dim=-1)

    def modulated(y, shift, scale):
        y = layer_norm(y, (16,), eps=1e-6)
        return torch.cat([y[:, :3], y[:, 3:] * scale + shift], dim=1)

    middle = x + block.attn(modulated(x, shift_attn, scale_attn))
    expected = middle + block.mlp(modulated(middle, shift_mlp, scale_mlp))
    assert torch.allclose(block(x, latents, None), expected, atol=1e-5)


@pytest.mark.parametrize("scale_init", [0.0, 1.0])
def test_modulation_starts_at_its_scale_and_without_shift(scale_init):
    config = override(CONFIG, {"modulation_init": scale_init})
    x, latents = noise(2, 9, 8), noise(2, 6, 4)
    for chunks in (2, 4):
        modulation = Modulation(config, 8, chunks=chunks).apply(init_weights)
        parts = modulation(latents)
        assert len(parts) == chunks
        for shift, scale in zip(parts[::2], parts[1::2]):
            expected = torch.cat([x[:, :3], scale_init * x[:, 3:]], dim=1)
            assert torch.equal(modulate_latents(x, shift, scale), expected)


def test_with_scales_at_zero_the_first_block_sees_no_latents():
    for scale_init, sees in ((0.0, False), (1.0, True)):
        tower = decoder({"decoder.depth": 1, "modulation_init": scale_init})
        outputs = [tower(noise(2, 6, 4, seed=seed), GRID) for seed in (0, 1)]
        assert torch.allclose(*outputs, atol=1e-6) != sees


@pytest.mark.parametrize("modulation", [True, False])
def test_a_decoders_class_token_is_attended_to_and_is_no_patch(modulation):
    torch.manual_seed(0)
    config = override(CONFIG, {"decoder.positions": "rope", "decoder_modulation": modulation})
    tower = LatentDecoder(config, TOWER, modulation=modulation, class_token=True)
    tower.apply(init_weights)
    latents = noise(2, 6, 4)
    patches = tower(latents, GRID)
    assert patches.shape == (2, 9, 16)
    # it starts as nothing; at the size of a patch it moves every patch a little
    tower.class_token.data = noise(1, 1, 16)
    moved = (tower(latents, GRID) - patches).abs().amax(-1)
    assert (moved > 1e-5).all()


def test_a_plain_decoders_layer_scale_is_that_of_its_blocks():
    changes = {"decoder_modulation": False, "decoder_layer_scale": 0.25}
    config = override(CONFIG, changes)
    scaled = LatentDecoder(config, TOWER, modulation=False)
    assert all((block.ls1.gamma == 0.25).all() for block in scaled.blocks)
    plain = LatentDecoder(override(CONFIG, {"decoder_modulation": False}), TOWER, modulation=False)
    assert all(isinstance(block.ls1, torch.nn.Identity) for block in plain.blocks)


def test_a_decoder_takes_a_grid_that_is_no_square():
    assert decoder()(noise(2, 6, 4), (2, 3)).shape == (2, 6, 16)


def test_a_decoder_of_depth_zero_is_one_linear_map_for_its_own_grid():
    tower = decoder({"decoder.depth": 0})
    a, b = noise(2, 6, 4), noise(2, 6, 4, seed=1)
    zero = tower(torch.zeros_like(a), GRID)
    assert zero.shape == (2, 9, 16)
    expected = tower(a, GRID) + 2 * tower(b, GRID) - 2 * zero
    assert torch.allclose(tower(a + 2 * b, GRID), expected, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"a decoder of depth 0 gives 9 patches, so it cannot give \(4, 4\)"
    ):
        tower(a, (4, 4))


def test_patch_positions_tell_patches_apart_and_without_them_all_are_alike():
    for positions in ("rope", "ape", "rope+ape"):
        tower = decoder({"decoder.positions": positions})
        tower.latent_positions.data.normal_()
        patches = tower(noise(2, 6, 4), GRID)
        assert torch.cdist(patches, patches)[:, ~torch.eye(9, dtype=torch.bool)].min() > 1e-5
    tower.positions.absolute.data.zero_()
    tower.positions.rope.frequencies.zero_()
    alike = tower(noise(2, 6, 4), GRID)
    assert torch.allclose(alike, alike[:, :1].expand_as(alike), atol=1e-5)


def test_the_class_tokens_absolute_position_comes_first_and_starts_at_zero():
    config = TowerConfig(width=16, depth=3, num_heads=2, positions="ape")
    positions = GridPositions(config, (2, 3), class_token=True, theta=10.0)
    assert positions.absolute.shape == (1, 7, 16)
    embedded = positions.embed(torch.zeros(2, 7, 16), (2, 3))
    assert embedded[:, 0].abs().max() == 0
    assert torch.cdist(embedded[0], embedded[0])[~torch.eye(7, dtype=torch.bool)].min() > 0.5
    assert positions.rotations((2, 3), after=4) == [None] * 3


def test_rotations_cover_the_sequence_and_leave_class_and_latents_alone():
    config = TowerConfig(width=16, depth=3, num_heads=2, positions="rope", rope="mixed")
    positions = GridPositions(config, (2, 3), class_token=True, theta=10.0)
    rotations = positions.rotations((3, 4), after=5)
    assert len(rotations) == 3
    for cos, sin in rotations:
        assert cos.shape == sin.shape == (2, 1 + 12 + 5, 4)
        assert (cos[:, [0, *range(13, 18)]] == 1).all()
        assert (sin[:, [0, 1, *range(13, 18)]] == 0).all()  # the first patch is at (0, 0)
        assert (sin[:, 2:13].abs().sum(-1) > 0).all()


def spread(count: int, width: int, init: str) -> torch.Tensor:
    """Latent positions of `count` tokens on a grid of 8 x 8 patches."""
    changes = {"image_size": 32, "num_latent_tokens": count, "latent_init": init}
    return latent_positions(override(CONFIG, changes), width)


def test_latent_positions_on_a_grid_each_have_a_home_evenly_over_the_image():
    for count in (6, 16, 32):
        table = spread(count, 16, "grid")
        assert table.shape == (1, count, 16)
        apart = torch.cdist(table[0], table[0]) + 99 * torch.eye(count)
        assert apart.min() > 0.2
    config = TowerConfig(width=16, depth=1, num_heads=2, positions="ape")
    patches = GridPositions(config, (8, 8), class_token=False, theta=10.0).absolute
    assert torch.allclose(spread(64, 16, "grid"), patches, atol=1e-6)


def test_latent_positions_of_the_release_are_small_and_random():
    torch.manual_seed(0)
    table = spread(500, 64, "normal")
    assert table.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(table.mean().item()) < 0.001


def test_linear_layers_start_narrower_the_more_inputs_they_have():
    torch.manual_seed(0)
    for inputs in (96, 768):
        layer = torch.nn.Linear(inputs, 500).apply(init_weights)
        assert layer.weight.std().item() == pytest.approx(0.02 * (768 / inputs) ** 0.5, rel=0.03)
        assert layer.bias.abs().max() == 0
