"""The feed-forward parts are their formulas."""

import torch
from torch.nn.functional import gelu, silu

from maetok_lab.layers.mlp import Mlp, SwiGLU


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_mlp_is_linear_gelu_linear_of_the_chosen_kind():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    for kind in ("none", "tanh"):
        mlp = Mlp(8, 32, approximate=kind)
        assert torch.equal(mlp(x), mlp.fc2(gelu(mlp.fc1(x), approximate=kind)))
    assert not torch.equal(gelu(x), gelu(x, approximate="tanh"))


def test_swiglu_is_a_gated_product():
    torch.manual_seed(0)
    x, mlp = torch.randn(2, 3, 8), SwiGLU(8, 16)
    gate = x @ mlp.w12.weight[:16].T + mlp.w12.bias[:16]
    value = x @ mlp.w12.weight[16:].T + mlp.w12.bias[16:]
    assert torch.allclose(mlp(x), mlp.w3(silu(gate) * value), atol=1e-6)


def test_swiglu_of_two_thirds_width_has_as_many_weights_as_an_mlp():
    for width in (96, 768, 1152):
        assert (
            abs(
                parameters(SwiGLU(width, int(4 * width * 2 / 3)))
                / parameters(Mlp(width, 4 * width))
                - 1
            )
            < 0.005
        )
