"""The tokenizer obeys masks, works at other sizes where it can, and says what it cannot do."""

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.device import autocast
from maetok_lab.tokenizer.model import (
    TOKENIZERS,
    Posterior,
    Tokenizer,
    TokenizerConfig,
    num_parameters,
)
from maetok_lab.tokenizer.towers import TowerConfig

TOWER = TowerConfig(width=32, depth=2, num_heads=2)
CONFIG = TokenizerConfig(
    image_size=16,
    patch_size=4,
    num_latent_tokens=6,
    latent_dim=4,
    encoder=TOWER,
    decoder=TOWER,
    latent_init="grid",
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(changes: dict | None = None, *, seed: int = 0) -> Tokenizer:
    """A tokenizer whose every weight is random, so that nothing is hidden behind a zero."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(override(CONFIG, changes or {}))
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.normal_(std=0.2)
    return tokenizer


POSITIONS = [
    {"encoder.positions": "rope"},
    {"encoder.positions": "ape", "class_token": True},
    {
        "encoder.positions": "rope+ape",
        "encoder.rope": "mixed",
        "class_token": True,
        "layer_scale": 0.5,
    },
]
each_position = pytest.mark.parametrize("positions", POSITIONS, ids=["rope", "ape", "both"])
each_treatment = pytest.mark.parametrize("masked", ["replace", "drop"])
MASK = torch.zeros(2, 16, dtype=torch.bool)
MASK[0, [0, 3, 7, 15]] = MASK[1, [1, 2, 3, 4]] = True


def change_patches(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Other pixels where the mask says so."""
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.where(hidden, noise(2, 3, 16, 16, seed=9), images)


# ---- Masks ----


@each_position
@each_treatment
def test_hidden_pixels_do_not_change_the_latents_and_visible_ones_do(masked, positions):
    tokenizer, images = make({"masked": masked, **positions}), noise(2, 3, 16, 16)
    latents = tokenizer.encode(images, mask=MASK)
    assert torch.equal(latents, tokenizer.encode(change_patches(images, MASK), mask=MASK))
    for patch in range(16):
        one = torch.zeros_like(MASK)
        one[:, patch] = True
        changed = (
            (tokenizer.encode(change_patches(images, one), mask=MASK) != latents).flatten(1).any(1)
        )
        assert changed.tolist() == (~MASK[:, patch]).tolist()


@each_treatment
@pytest.mark.parametrize("training", [True, False])
def test_an_explicit_mask_is_obeyed_and_none_is_ever_drawn(masked, training):
    tokenizer, images = make({"masked": masked}).train(training), noise(2, 3, 16, 16)
    before = torch.get_rng_state()
    whole = tokenizer.encode(images)
    for _ in range(3):
        assert torch.equal(tokenizer.encode(images), whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(tokenizer.encode(images, mask=MASK), whole, atol=1e-3)
    visible = torch.zeros_like(MASK)
    assert torch.allclose(tokenizer.encode(images, mask=visible), whole, atol=1e-5)
    assert torch.allclose(
        tokenizer(images, mask=MASK), tokenizer.decode(tokenizer.encode(images, mask=MASK))
    )


@each_position
def test_drop_equals_replace_with_nothing_hidden_and_not_otherwise(positions):
    replace, drop = make({"masked": "replace", **positions}), make({"masked": "drop", **positions})
    drop.load_state_dict(replace.state_dict())
    images, nothing = noise(2, 3, 16, 16), torch.zeros_like(MASK)
    assert torch.allclose(
        drop.encode(images, mask=nothing), replace.encode(images, mask=nothing), atol=1e-5
    )
    assert not torch.allclose(
        drop.encode(images, mask=MASK), replace.encode(images, mask=MASK), atol=1e-3
    )


def test_dropped_patches_leave_no_trace_not_even_a_mask_token():
    changes = {"encoder.positions": "rope+ape", "class_token": True}
    for masked, sees_token in (("replace", True), ("drop", False)):
        tokenizer, images = make({"masked": masked, **changes}), noise(2, 3, 16, 16)
        before = tokenizer.encode(images, mask=MASK)
        with torch.no_grad():
            tokenizer.encoder.mask_token += 1
        assert torch.equal(tokenizer.encode(images, mask=MASK), before) != sees_token


def test_dropping_all_patches_but_some_is_encoding_those_alone():
    # With one row of patches left the encoder sees what it would see of an image of that row.
    tokenizer, images = make({"masked": "drop", "encoder.rope": "mixed"}), noise(2, 3, 16, 16)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[:, 0] = False
    assert torch.allclose(
        tokenizer.encode(images, mask=mask.flatten(1)),
        tokenizer.encode(images[:, :, :4]),
        atol=1e-5,
    )


def test_masks_that_do_not_fit_are_refused():
    tokenizer, images = make(), noise(2, 3, 16, 16)
    for mask in (MASK[:1], MASK[:, :9], MASK.view(2, 4, 4), MASK.float(), MASK.int()):
        with pytest.raises(ValueError, match=r"mask must be bool \(2, 16\), not torch\.\w+ \("):
            tokenizer.encode(images, mask=mask)
    uneven = MASK.clone()
    uneven[0, 1] = True
    tokenizer.encode(images, mask=uneven)


def test_images_of_one_batch_may_drop_different_numbers_of_patches():
    tokenizer = make({"masked": "drop"})
    images = noise(5, 3, 16, 16)
    mask = torch.zeros(5, 16, dtype=torch.bool)
    for row, count in enumerate([3, 0, 9, 3, 1]):
        mask[row, :count] = True
    together = tokenizer.encode(images, mask=mask)
    for row in range(5):
        alone = tokenizer.encode(images[row : row + 1], mask=mask[row : row + 1])
        torch.testing.assert_close(together[row], alone[0])


# ---- Sizes ----


@pytest.mark.parametrize("rope", ["axial", "mixed"])
def test_rope_positions_work_at_another_resolution(rope):
    tokenizer = make({"encoder.rope": rope, "decoder.rope": rope, "class_token": True, "refine": 4})
    for size in ((32, 32), (8, 20)):
        images = noise(2, 3, *size)
        assert tokenizer.encode(images).shape == (2, 6, 4)
        assert tokenizer(images).shape == images.shape
        assert tokenizer.decode(noise(2, 6, 4), size).shape == (2, 3, *size)
    assert tokenizer.decode(noise(2, 6, 4), 24).shape == (2, 3, 24, 24)
    assert tokenizer.decode(noise(2, 6, 4)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("positions", ["ape", "rope+ape"])
def test_absolute_positions_refuse_another_resolution(positions):
    message = (
        r"learned absolute positions for a grid of \(4, 4\), "
        r"so it cannot take \(8, 8\); positions=\"rope\" works"
    )
    with pytest.raises(ValueError, match=message):
        make({"encoder.positions": positions}).encode(noise(2, 3, 32, 32))
    with pytest.raises(ValueError, match=message):
        make({"decoder.positions": positions}).decode(noise(2, 6, 4), 32)


def test_patches_as_latents_are_as_many_as_the_patches_and_stay_in_place():
    tokenizer = make(
        {
            "latent_tokens": "patches",
            "num_latent_tokens": 16,
            "class_token": True,
            "encoder.depth": 0,
        }
    )
    images = noise(2, 3, 16, 16)
    latents = tokenizer.encode(images)
    assert latents.shape == (2, 16, 4)
    assert tokenizer(images).shape == images.shape
    one = torch.zeros_like(MASK)
    one[:, 5] = True
    changed = (tokenizer.encode(change_patches(images, one)) != latents).any(-1)
    assert torch.equal(changed, one)
    assert tokenizer.encode(images, mask=one).shape == (2, 16, 4)
    assert not any("latent" in name for name, _ in tokenizer.encoder.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "patches of 4 px do not divide an image of 18 x 18 px"),
        ({"encoder.num_heads": 5}, "5 heads do not divide the width 32"),
        ({"encoder.depth": -1}, "depth must be 0 or more, not -1"),
        ({"decoder.drop_path": 1.0}, r"drop_path must be in \[0, 1\), not 1.0"),
        (
            {"latent_tokens": "patches"},
            'latent_tokens="patches" gives 16 latent tokens, but num_latent_tokens is 6',
        ),
        (
            {"latent_tokens": "patches", "num_latent_tokens": 16, "masked": "drop"},
            'masked="drop" removes hidden patches, '
            'which are the latents of latent_tokens="patches"',
        ),
        ({"num_latent_tokens": 0}, "num_latent_tokens must be 1 .. 65,536, not 0"),
        ({"latent_dim": 0}, "latent_dim must be 1 .. 65,536, not 0"),
        ({"codebooks": 0}, "codebooks must be 1 .. 65,536, not 0"),
        ({"codebooks": 4}, "4 codebooks share the tokens evenly, but num_latent_tokens is 6"),
        ({"decoder_layer_scale": 0.1}, "decoder_layer_scale is of plain blocks"),
        (
            {"decoder.depth": 0, "decoder_class_token": True},
            "decoder_class_token and decoder_layer_scale are of a decoder's blocks, which "
            "decoder.depth 0, one linear map, has not; leave them out or take a depth over 0",
        ),
        (
            {"decoder.depth": 0, "decoder_layer_scale": 0.1, "decoder_modulation": False},
            "are of a decoder's blocks, which decoder.depth 0",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(CONFIG, changes)


def test_inputs_that_cannot_work_are_refused():
    tokenizer = make()
    for images in (noise(3, 16, 16), noise(2, 1, 16, 16)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), not \("):
            tokenizer.encode(images)
    with pytest.raises(ValueError, match="patches of 4 px do not divide an image of 18 x 16 px"):
        tokenizer.encode(noise(2, 3, 18, 16))
    with pytest.raises(ValueError, match="patches of 4 px do not divide an image of 18 x 18 px"):
        tokenizer.decode(noise(2, 6, 4), 18)
    for latents in (noise(2, 5, 4), noise(2, 6, 3), noise(6, 4)):
        with pytest.raises(ValueError, match=r"latents must be \(B, 6, 4\), not \("):
            tokenizer.decode(latents)
    patches = make({"latent_tokens": "patches", "num_latent_tokens": 16})
    with pytest.raises(ValueError, match=r"latents must be \(B, 16, 4\), not \(2, 64, 4\)"):
        patches(noise(2, 3, 32, 32))


# ---- Bottleneck ----


def test_the_kl_term_is_the_divergence_from_a_standard_normal():
    mean, log_variance = noise(3, 6, 4), noise(3, 6, 4, seed=1)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = (
        torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1))
        .sum((1, 2))
        .mean()
    )
    assert torch.allclose(Posterior(mean, log_variance).kl(), expected, rtol=1e-5)
    assert Posterior(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).kl() == 0


def test_the_posterior_is_sampled_with_its_mean_and_standard_deviation():
    posterior = Posterior(torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.25, 9.0]]]).log())
    draws = posterior.sample(noise(20_000, 1, 2))
    assert torch.allclose(draws.mean(0)[0], torch.tensor([2.0, -1.0]), atol=0.1)
    assert torch.allclose(draws.std(0)[0], torch.tensor([0.5, 3.0]), rtol=0.03)
    assert posterior.sample(None) is posterior.mean


def test_kl_encodes_to_the_mean_and_its_log_variance_is_kept_in_bounds():
    tokenizer, images = make({"bottleneck": "kl"}), noise(2, 3, 16, 16)
    with torch.no_grad():
        tokenizer.to_latents.bias[4:] = torch.tensor([99.0, -99, 0, 0])
    posterior = tokenizer.posterior(images)
    assert torch.equal(tokenizer.encode(images), posterior.mean)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 6, 4)
    assert (posterior.log_variance[..., 0] == 20).all()
    assert (posterior.log_variance[..., 1] == -30).all()
    assert torch.isfinite(posterior.kl())


def test_a_plain_autoencoder_has_no_posterior_to_sample_or_compare():
    posterior = make().posterior(noise(2, 3, 16, 16))
    assert posterior.sample(noise(2, 6, 4)) is posterior.mean
    with pytest.raises(ValueError, match="a plain autoencoder has no posterior"):
        posterior.kl()


# ---- Weights ----


def test_every_weight_learns_but_the_one_kept_for_the_released_format():
    positions = {"positions": "rope+ape", "rope": "mixed"}
    changes = {
        f"{tower}.{key}": value
        for tower in ("encoder", "decoder")
        for key, value in positions.items()
    }
    tokenizer = make({"class_token": True, "layer_scale": 0.5, "refine": 4, **changes})
    tokenizer(noise(2, 3, 16, 16), mask=MASK).square().sum().backward()
    idle = {
        name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum()
    }
    assert idle == {"decoder.norm_modulation.linear.weight", "decoder.norm_modulation.linear.bias"}


def test_refinement_starts_as_the_identity():
    latents = noise(2, 6, 4)
    torch.manual_seed(0)
    tokenizer = Tokenizer(override(CONFIG, {"refine": 4, "modulation_init": 1.0}))
    before = tokenizer.decode(latents)
    assert before.abs().max() > 0.01
    tokenizer.refine = torch.nn.Identity()
    assert torch.equal(tokenizer.decode(latents), before)


def test_latents_and_images_are_float32_under_autocast_and_close_to_it():
    tokenizer, images = make({"bottleneck": "kl", "refine": 4}), noise(2, 3, 16, 16)
    exact = tokenizer.encode(images)
    with autocast("cpu", "bf16"):
        latents, decoded = tokenizer.encode(images), tokenizer.decode(exact)
    assert latents.dtype == decoded.dtype == torch.float32
    assert (latents - exact).norm() < 0.05 * exact.norm()
    assert (decoded - tokenizer.decode(exact)).norm() < 0.05 * decoded.norm()


def test_the_papers_model_has_the_released_number_of_parameters():
    with torch.device("meta"):
        tokenizer = Tokenizer(TOKENIZERS["maetok-b-128"])
    # The release stores no encoder mask token, and a position table and a patch embedding of its
    # decoder that nobody uses.
    unused = 257 * 768 + 768 * 3 * 16**2 + 768
    assert num_parameters(tokenizer) - tokenizer.encoder.mask_token.numel() + unused == 173_890_592


def test_presets_are_the_designs_and_each_reconstructs_at_its_size():
    assert list(TOKENIZERS) == ["test", "tiny", "small", "maetok-b-128", "maetok-b-128-512"]
    for name, config in TOKENIZERS.items():
        with torch.device("meta"):
            tokenizer = Tokenizer(config)
            images = torch.empty(2, 3, config.image_size, config.image_size)
            assert tokenizer(images).shape == images.shape, name
            assert tokenizer.encode(images).shape == (
                2,
                config.num_latent_tokens,
                config.latent_dim,
            )


@pytest.mark.parametrize("modulation", [True, False])
def test_without_modulation_latents_enter_the_decoder_by_attention_alone(modulation):
    tokenizer = make({"decoder_modulation": modulation})
    assert any("modulation" in name for name, _ in tokenizer.named_parameters()) == modulation
    assert not torch.allclose(
        tokenizer.decode(noise(2, 6, 4)), tokenizer.decode(noise(2, 6, 4, seed=1)), atol=1e-3
    )
