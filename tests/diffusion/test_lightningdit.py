"""hustvl's LightningDiT computes the same here: their images and time in our tokens and time."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.lightningdit import from_lightningdit
from maetok_lab.diffusion.loading import export_diffusion, load_diffusion
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, describe_model
from maetok_lab.tokenizer.foreign import RawPixels


@pytest.fixture(scope="module")
def fixture(repository) -> dict[str, Tensor]:
    """Random weights, and what their code computes with them at their t, QK-norm off and on."""
    return load_file(repository / "tests" / "fixtures" / "lightningdit-small.safetensors")


def named(fixture: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in fixture.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def weights(fixture) -> dict[str, Tensor]:
    return named(fixture, "weights.")


def tokens(images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)"""
    return images.flatten(2).transpose(1, 2)


def velocity(model: DiffusionTransformer, fixture: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(tokens(fixture["x_t"]), 1 - fixture["t"], fixture["labels"])


# The same numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
def test_velocities_are_theirs_backwards_in_time(fixture, weights, qk_norm):
    if qk_norm:
        weights = weights | named(fixture, "qk_norm.")
    model = from_lightningdit(weights)
    assert not model.training
    assert model.trained_path == "linear"
    assert model.config == DiffusionConfig(
        width=32,
        depth=2,
        num_heads=2,
        norm="rmsnorm",
        mlp="swiglu",
        positions="lightningdit",
        qk_norm=qk_norm,
    )
    assert describe_model(model) == {"num_tokens": 16, "latent_dim": 8, "num_classes": 5}
    theirs = tokens(fixture["velocity_qk_norm" if qk_norm else "velocity"])
    assert theirs.std() > 1
    assert (velocity(model, fixture) + theirs).abs().max() < 1e-5


def test_the_fixed_table_is_the_one_that_they_store(weights):
    assert torch.equal(from_lightningdit(weights).pos_embed, weights["pos_embed"])
    config = DiffusionConfig(width=32, depth=0, num_heads=2, positions="lightningdit")
    fresh = DiffusionTransformer(config, num_tokens=16, latent_dim=8, num_classes=5)
    assert torch.allclose(fresh.pos_embed, weights["pos_embed"], atol=1e-6)


def test_rows_turn_the_first_pairs_and_columns_the_others_with_theta_10000():
    config = DiffusionConfig(width=16, depth=0, num_heads=2, positions="lightningdit")
    model = DiffusionTransformer(config, num_tokens=9, latent_dim=3, num_classes=5)
    cos, sin = model.rotation(torch.device("cpu"))
    # the token of row 2 and column 1; heads of 8 channels have two pairs for each
    expected = torch.tensor([2.0, 2.0 / 100, 1.0, 1.0 / 100])
    assert cos.shape == (1, 9, 4)
    assert torch.allclose(cos[0, 7], expected.cos(), atol=1e-6)
    assert torch.allclose(sin[0, 7], expected.sin(), atol=1e-6)


# Files --------------------------------------------------------------------------------------------


def test_their_checkpoint_file_loads_by_its_path(fixture, weights, tmp_path):
    # as their train.py writes it: a copy for averages, and the model inside of DataParallel
    current = {f"module.{name}": torch.zeros_like(value) for name, value in weights.items()}
    path = tmp_path / "0080000.pt"
    torch.save({"model": current, "ema": weights, "opt": {}, "config": {"data": {}}}, path)
    with pytest.warns(UserWarning, match="of ema and model in this checkpoint, 'ema' is loaded"):
        model = load_diffusion(path)
    assert (velocity(model, fixture) + tokens(fixture["velocity"])).abs().max() < 1e-5


def test_it_is_exported_as_one_of_ours(fixture, weights, tmp_path):
    model = from_lightningdit(weights)
    tokenizer = RawPixels(4)
    space = LatentSpace(tokenizer.fingerprint, torch.zeros(8), torch.ones(8))
    back = load_diffusion(export_diffusion(model, tmp_path, space=space, tokenizer=tokenizer))
    assert back.config == model.config
    assert torch.equal(velocity(back, fixture), velocity(model, fixture))


# Errors -------------------------------------------------------------------------------------------


def test_what_it_cannot_express_is_refused_in_one_line(weights):
    patches = weights | {"x_embedder.proj.weight": torch.zeros(32, 8, 2, 2)}
    with pytest.raises(ValueError, match=r"has patches of 2 x 2 latents; only those of one latent"):
        from_lightningdit(patches)
    for name in ("feat_rope.freqs_cos", "x_embedder.proj.weight"):
        fewer = {key: value for key, value in weights.items() if key != name}
        with pytest.raises(
            ValueError, match=f"no LightningDiT weights: the tensor '{name}' is missing"
        ):
            from_lightningdit(fewer)
    # rotated by the column first, and by another theta
    cos = weights["feat_rope.freqs_cos"]
    for other in (cos.reshape(4, 4, 16).transpose(0, 1).flatten(0, 1), cos.square(), cos[:9]):
        with pytest.raises(ValueError, match="RoPE of these weights is another than that of a gri"):
            from_lightningdit(weights | {"feat_rope.freqs_cos": other})


def test_tensors_of_odd_shapes_are_refused_in_one_line(weights):
    flat = weights | {"x_embedder.proj.weight": weights["x_embedder.proj.weight"].flatten(1)}
    with pytest.raises(ValueError, match=r"is a convolution's \(width, channels, 1, 1\), not \("):
        from_lightningdit(flat)
    for head_dim in (0, 3):
        rope = {name: weights[name][:, :head_dim] for name in weights if "feat_rope" in name}
        with pytest.raises(ValueError, match=f"turns heads of {head_dim} channels"):
            from_lightningdit(weights | rope)


def test_tensors_that_do_not_fit_are_named(weights):
    fewer = {name: value for name, value in weights.items() if name != "blocks.1.norm2.weight"}
    with pytest.raises(ValueError, match=r"LightningDiT: .*\n  missing     blocks.1.norm2.weight"):
        from_lightningdit(fewer)
    # without shifts (their `wo_shift`)
    shorter = weights["blocks.0.adaLN_modulation.1.bias"][:128]
    with pytest.raises(ValueError, match=r"misshapen   blocks.0.adaLN_modulation.1.bias is \(128"):
        from_lightningdit(weights | {"blocks.0.adaLN_modulation.1.bias": shorter})
    with pytest.raises(ValueError, match=r"unexpected  extra \(1,\)"):
        from_lightningdit(weights | {"extra": torch.zeros(1)})
