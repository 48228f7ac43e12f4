"""Attention is the textbook's formula in every precision."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.nn.functional import gelu, silu

from maetok_lab.device import autocast
from maetok_lab.layers.grid import Rope1d, rotate
from maetok_lab.layers.transformer import (
    Attention,
    Mlp,
    SwiGLU,
    attend,
    check_memory,
    check_size,
    head_width,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def manual(attention: Attention, x: torch.Tensor, rotation=None) -> torch.Tensor:
    """Softmax attention written out head by head; qkv outputs are ordered (3, heads, head_dim)."""
    width = x.shape[-1]
    dim = width // attention.num_heads
    q, k, v = (attention.qkv(x)[..., i * width : (i + 1) * width] for i in range(3))
    heads = []
    for h in range(attention.num_heads):
        part = slice(h * dim, (h + 1) * dim)
        qh, kh = attention.q_norm(q[..., part]), attention.k_norm(k[..., part])
        if rotation is not None:
            qh, kh = rotate(qh[:, None], rotation)[:, 0], rotate(kh[:, None], rotation)[:, 0]
        weights = (qh @ kh.transpose(1, 2) * dim**-0.5).softmax(-1)
        heads.append(weights @ v[..., part])
    return attention.proj(torch.cat(heads, -1))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_attention_is_softmax_attention(qk_norm, turned):
    torch.manual_seed(0)
    attention, x = Attention(24, 3, qk_norm=qk_norm), noise(2, 5, 24)
    rotation = Rope1d(8)(torch.arange(5.0)) if turned else None
    assert torch.allclose(attention(x, rotation), manual(attention, x, rotation), atol=1e-5)


def test_without_positions_attention_does_not_know_the_order_of_tokens():
    torch.manual_seed(0)
    attention, x = Attention(24, 3), noise(2, 5, 24)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(attention(x[:, order]), attention(x)[:, order], atol=1e-5)
    rotation = Rope1d(8)(torch.arange(5.0))
    assert not torch.allclose(
        attention(x[:, order], rotation), attention(x, rotation)[:, order], atol=1e-3
    )


def test_qk_norm_makes_attention_blind_to_the_size_of_queries_and_keys():
    torch.manual_seed(0)
    attention, x = Attention(24, 3, qk_norm=True), noise(2, 5, 24)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:48] *= 100
        attention.qkv.bias[:48] *= 100
    assert torch.allclose(attention(x), before, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_on_the_cpu_is_close_to_float32_forward_and_backward(dtype):
    q, k, v = (noise(2, 3, 5, 8, seed=seed) for seed in range(3))
    results = []
    for kind in (torch.float32, dtype):
        inputs = [t.detach().clone().to(kind).requires_grad_() for t in (q, k, v)]
        out = attend(*inputs)
        assert out.dtype == kind
        out.float().square().sum().backward()
        results.append([out.float(), *(t.grad.float() for t in inputs)])
    for exact, low in zip(*results):
        assert (low - exact).norm() < 0.02 * exact.norm()


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch's RMSNorm says it is slow so
@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_attention_is_close_to_float32(qk_norm):
    torch.manual_seed(0)
    attention, x = Attention(24, 3, qk_norm=qk_norm), noise(2, 5, 24)
    rotation = Rope1d(8)(torch.arange(5.0))
    exact = attention(x, rotation)
    with autocast("cpu", "bf16"):
        low = attention(x, rotation)
    assert low.dtype == torch.bfloat16
    assert (low - exact).norm() < 0.03 * exact.norm()


def test_heads_must_divide_the_width():
    assert head_width(24, 3) == 8
    with pytest.raises(ValueError, match="5 heads do not divide the width 24"):
        Attention(24, 5)


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


def test_a_transformer_of_a_million_blocks_is_refused_with_its_size():
    size = "width 96 and depth 1,000,000 has 110,592,000,000 parameters or more .442.4 GB."
    with pytest.raises(ValueError, match=size):
        check_size(96, 10**6, 3)
    with pytest.raises(ValueError, match="at most 1,000 blocks"):
        check_size(8, 1001, 2)
    with pytest.raises(ValueError, match="num_heads must be 1 or more, not 0"):
        check_size(8, 1, 0)
    check_size(1152, 1000, 16)


def test_one_that_the_machine_cannot_hold_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10**6))
    with pytest.raises(ValueError, match=r"\(9.4 GB\); this machine has 0.0 GB"):
        check_memory(1024, 187)
    check_memory(32, 1)
    with torch.device("meta"):  # where nothing is held
        check_memory(1024, 187)
