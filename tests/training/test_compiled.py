"""What torch compiles is one graph each, and moves less memory for it."""

import logging

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maetok_lab.diffusion.model import DIFFUSION, Block, DiffusionTransformer
from maetok_lab.layers import transformer
from maetok_lab.tokenizer.targets import FeatureTarget
from maetok_lab.training.objective import Objective
from maetok_lab.training.presets import ladder_training


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Attention and teachers as a GPU has them."""

    def features(self, images, captions=None):
        with torch.no_grad():
            return self._features(images)

    monkeypatch.setattr(FeatureTarget, "__call__", features)
    monkeypatch.setattr(transformer, "attend", scaled_dot_product_attention)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_the_objective_is_one_graph_with_teacher_and_perceptual_term():
    # patches that are hidden stay in the sequence, as in the paper's recipe
    changes = {"losses.perceptual": "squeezenet", "model.masked": "replace"}
    config = ladder_training("test", "all", **changes)
    objective = Objective(config)
    size = config.model.image_size
    rows, columns = config.model.grid
    mask = (torch.arange(rows * columns) % 2 == 0).expand(4, -1)
    inputs = (torch.rand(4, 3, size, size), mask, None, None)
    explained = torch._dynamo.explain(objective)(*inputs)
    assert explained.graph_break_count == 0
    # the same target is computed, and the same loss
    terms, *_ = objective(*inputs)
    compiled, *_ = torch.compile(objective, backend="aot_eager")(*inputs)
    for name, value in terms.items():
        torch.testing.assert_close(compiled[name], value)


@pytest.mark.parametrize("preset", ["test", "sit-s", "lightningdit-b"])
def test_a_diffusion_transformer_is_one_graph(preset):
    model = DiffusionTransformer(DIFFUSION[preset], num_tokens=16, latent_dim=8, num_classes=3)
    inputs = (torch.randn(2, 16, 8), torch.rand(2), torch.zeros(2, dtype=torch.long))
    assert torch._dynamo.explain(model)(*inputs).graph_break_count == 0


class MovedBytes(TorchDispatchMode):
    """What all operations read and write, views excepted."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not func.is_view and "detach" not in str(func):
            tensors = tree_leaves((args, kwargs, output))
            self.total += sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))
        return output


@pytest.mark.slow
def test_a_compiled_block_of_sit_moves_at_most_seven_tenths_of_the_bytes(monkeypatch):
    from torch._inductor import compile_fx, config, metrics

    # Inductor counts where it is asked to tell
    monkeypatch.setattr(compile_fx.inductor_metrics_log, "level", logging.INFO)
    block = Block(DIFFUSION["sit-s"])
    x = torch.randn(128, 128, 384, requires_grad=True)
    condition = torch.randn(128, 384, requires_grad=True)
    with MovedBytes() as eager, torch.autocast("cpu", torch.bfloat16):
        block(x, condition, None).sum().backward()
    metrics.reset()
    with config.patch(force_disable_caches=True), torch.autocast("cpu", torch.bfloat16):
        torch.compile(block)(x, condition, None).sum().backward()
    assert 0 < metrics.num_bytes_accessed <= 0.7 * eager.total
    print(f"{metrics.num_bytes_accessed / eager.total:.3f} of the bytes")
