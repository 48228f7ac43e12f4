"""A recorded model is the model: its numbers, and what samplers ask of it."""

import pytest
import torch

from maetok_lab.device import autocast
from maetok_lab.diffusion.graphs import Graphed
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance, draw_noise, sample
from maetok_lab.inference import with_cast_weights
from maetok_lab.rng import generator

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


@pytest.fixture(params=["velocity", "data"])
def model(request) -> DiffusionTransformer:
    model = DiffusionTransformer(DIFFUSION["test"], num_tokens=8, latent_dim=4, num_classes=3)
    draws = generator(0, "weights")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    model.set_training("linear", request.param, 2.0)
    return model.eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_passes_and_weights_cast_once_give_the_same_bits(model, device, precision):
    model.to(device)
    noise = draw_noise([1, 2, 3], 8, 4, device=device)
    labels = torch.tensor([0, 1, 2], device=device)
    options = {"num_steps": 6, "guidance": Guidance(2.0, 0.0, 0.5)}
    with torch.inference_mode(), autocast(device, precision):
        plain = sample(model, noise, labels, **options)
        recorded = Graphed(with_cast_weights(model, precision))
        # again, from what was recorded
        for _ in range(2):
            assert torch.equal(sample(recorded, noise, labels, **options), plain)


def test_what_a_sampler_asks_of_a_model_it_gets(model):
    graphed = Graphed(model)
    assert (graphed.num_classes, graphed.num_tokens, graphed.latent_dim) == (3, 8, 4)
    assert graphed.trained_shift == 2.0
    with pytest.raises(ValueError, match="noise must be"):
        sample(graphed, torch.zeros(1, 5, 4), torch.zeros(1, dtype=torch.long), num_steps=1)


def test_with_fp32_nothing_is_copied_and_the_model_keeps_its_weights(model):
    assert with_cast_weights(model, "fp32") is model
    cast = with_cast_weights(model, "bf16")
    assert cast.x_embedder.weight.dtype == torch.bfloat16
    assert model.x_embedder.weight.dtype == torch.float32
