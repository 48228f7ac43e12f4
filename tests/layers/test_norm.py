"""Norms, modulation and stochastic depth."""

import pytest
import torch

from maetok_lab.layers.norm import DropPath, LayerScale, make_norm, modulate


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_norms_are_the_formula_over_the_last_axis():
    x = noise(2, 3, 8) * 5 + 1
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(make_norm("layernorm", 8)(x), expected, atol=1e-5)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(make_norm("rmsnorm", 8)(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_a_norm_has_weights_only_when_affine(kind):
    assert list(make_norm(kind, 8, affine=False).parameters()) == []
    assert make_norm(kind, 8).weight.shape == (8,)


def test_modulation_multiplies_by_one_plus_scale_for_all_tokens_of_a_sample():
    x, shift, scale = noise(2, 3, 4), noise(2, 4) + 1, noise(2, 4) - 1
    for b in range(2):
        for n in range(3):
            assert torch.allclose(
                modulate(x, shift, scale)[b, n], x[b, n] * (1 + scale[b]) + shift[b], atol=1e-6
            )
    assert torch.equal(modulate(x, torch.zeros(2, 4), torch.zeros(2, 4)), x)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(20_000, 2, 3))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(
        1, abs=0.015
    )  # four standard errors: 4 sqrt(1/3 / 20000)


def test_drop_path_is_the_identity_in_eval_mode_and_at_rate_zero():
    x = noise(50, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_layer_scale_starts_at_its_value():
    x = noise(2, 3, 4)
    assert torch.equal(LayerScale(4, 1e-5)(x), x * 1e-5)
