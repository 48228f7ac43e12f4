"""The diffusion transformer is the released SiT, and its presets are what they say."""

import json

import pytest
import torch
from safetensors.torch import load_file

from maetok_lab.config import override
from maetok_lab.device import autocast
from maetok_lab.diffusion.model import DIFFUSION, DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.path import PATHS
from maetok_lab.layers.transformer import SwiGLU
from maetok_lab.rng import generator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(num_classes: int = 5, **changes) -> DiffusionTransformer:
    """A model whose every weight is random, so that nothing is hidden behind a zero."""
    torch.manual_seed(0)
    config = DiffusionConfig(**{"width": 16, "depth": 2, "num_heads": 2} | changes)
    model = DiffusionTransformer(config, num_tokens=6, latent_dim=3, num_classes=num_classes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


LIGHTNING = {"norm": "rmsnorm", "mlp": "swiglu", "positions": "rope", "qk_norm": True}
each_kind = pytest.mark.parametrize("parts", [{}, LIGHTNING], ids=["sit", "lightningdit"])

# The released SiT ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture(repository) -> dict[str, torch.Tensor]:
    return load_file(repository / "tests" / "fixtures" / "sit-small.safetensors")


def test_the_fixed_table_of_the_release_is_ours(fixture):
    config = DiffusionConfig(width=48, depth=0, num_heads=3)
    fresh = DiffusionTransformer(config, num_tokens=16, latent_dim=8, num_classes=10)
    assert torch.allclose(fresh.pos_embed, fixture["weights.pos_embed"], atol=1e-6)
    assert "pos_embed" not in dict(fresh.named_parameters())


def test_sit_xl_has_the_released_names_shapes_and_number_of_values(repository):
    expected = json.loads(
        (repository / "tests" / "fixtures" / "released-state-dicts.json").read_text()
    )
    with torch.device("meta"):
        model = DiffusionTransformer(
            DIFFUSION["sit-xl"], num_tokens=128, latent_dim=32, num_classes=1000
        )
    actual = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert actual == {name: list(shape) for name, shape in expected["sit-xl_maetok-b-128"].items()}
    assert sum(value.numel() for value in model.state_dict().values()) == 675_000_608


# Parts --------------------------------------------------------------------------------------------


def test_a_fresh_model_predicts_zero_and_its_blocks_do_nothing():
    for preset in ("test", "tiny"):
        torch.manual_seed(0)
        model = DiffusionTransformer(DIFFUSION[preset], num_tokens=6, latent_dim=3, num_classes=5)
        assert model(noise(2, 6, 3), torch.rand(2), torch.tensor([0, 5])).abs().max() == 0
        condition = model.t_embedder(torch.rand(2)) + model.y_embedder(torch.tensor([0, 5]))
        x = noise(2, 6, DIFFUSION[preset].width)
        assert torch.equal(model.blocks[0](x, condition, None), x)


@each_kind
def test_time_label_and_the_order_of_tokens_all_matter_and_samples_do_not_mix(parts):
    model, x, t, y = make(**parts), noise(2, 6, 3), torch.tensor([0.2, 0.7]), torch.tensor([1, 5])
    v = model(x, t, y)
    assert v.shape == x.shape
    for other in (model(x, t + 0.2, y), model(x, t, y - 1), model(x.flip(1), t, y).flip(1)):
        assert not torch.allclose(other, v, atol=1e-3)
    assert torch.allclose(model(x[1:], t[1:], y[1:]), v[1:], atol=1e-5)


@each_kind
def test_every_weight_learns(parts):
    model = make(**parts)
    model(noise(4, 6, 3), torch.rand(4), torch.tensor([1, 2, 3, 5])).square().sum().backward()
    idle = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()
    ]
    assert idle == []


def test_an_unconditional_model_has_only_the_null_label():
    model = make(num_classes=0)
    assert model.y_embedder.embedding_table.num_embeddings == 1
    assert model(noise(2, 6, 3), torch.rand(2), torch.zeros(2, dtype=torch.long)).shape == (2, 6, 3)


def test_lightningdit_has_its_parts():
    model = make(**LIGHTNING)
    assert isinstance(model.blocks[0].mlp, SwiGLU)
    assert model.blocks[0].mlp.w3.in_features == int(16 * 8 / 3)
    assert isinstance(model.blocks[0].norm1, torch.nn.RMSNorm)
    assert isinstance(model.blocks[0].attn.q_norm, torch.nn.RMSNorm)
    assert "pos_embed" not in model.state_dict()


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch's RMSNorm says it is slow so
@each_kind
def test_bf16_is_close_to_float32(parts):
    model, x, t, y = make(**parts), noise(2, 6, 3), torch.tensor([0.2, 0.7]), torch.tensor([1, 5])
    exact = model(x, t, y)
    with autocast("cpu", "bf16"):
        low = model(x, t, y)
    assert (low - exact).norm() < 0.05 * exact.norm()


def test_presets_are_the_designs_and_all_run():
    sits = ["sit-s", "sit-b", "sit-l", "sit-xl"]
    lightning = ["lightningdit-b", "lightningdit-l", "lightningdit-xl"]
    assert list(DIFFUSION) == ["test", "tiny", "small", *sits, *lightning]
    counts = {}
    for name in ("test", "tiny", "small", "sit-s", "lightningdit-b", "lightningdit-xl"):
        with torch.device("meta"):
            model = DiffusionTransformer(
                DIFFUSION[name], num_tokens=16, latent_dim=16, num_classes=9
            )
            v = model(torch.empty(2, 16, 16), torch.empty(2), torch.zeros(2, dtype=torch.long))
        assert v.shape == (2, 16, 16), name
        counts[name] = sum(p.numel() for p in model.parameters())
    assert (
        counts["test"]
        < counts["tiny"]
        < counts["small"]
        < counts["sit-s"]
        < counts["lightningdit-b"]
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("sit-s", 33),
        ("sit-b", 130),
        ("sit-l", 458),
        ("sit-xl", 675),
        ("lightningdit-b", 130),
        ("lightningdit-l", 458),
        ("lightningdit-xl", 675),
    ],
)
def test_presets_have_the_papers_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        model = DiffusionTransformer(
            DIFFUSION[name], num_tokens=128, latent_dim=32, num_classes=1000
        )
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6) == pytest.approx(millions, abs=1)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 heads do not divide the width 16"):
        DiffusionConfig(width=16, depth=1, num_heads=5)


@pytest.mark.parametrize("positions", ["sincos-2d", "rope-2d", "lightningdit"])
def test_two_dimensional_positions_tell_rows_from_columns(positions):
    torch.manual_seed(0)
    config = DiffusionConfig(width=16, depth=2, num_heads=2, positions=positions)
    model = DiffusionTransformer(config, num_tokens=9, latent_dim=3, num_classes=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t, y = noise(1, 9, 3), torch.tensor([0.3]), torch.tensor([1])
    v = model(x, t, y)
    for order in (x.unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2), x.flip(1)):
        back = model(order, t, y)
        back = (
            back.flip(1)
            if torch.equal(order, x.flip(1))
            else back.unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)
        )
        assert not torch.allclose(back, v, atol=1e-3)
    assert ("pos_embed" in model.state_dict()) == (positions != "rope-2d")


@pytest.mark.parametrize("positions", ["sincos-2d", "rope-2d", "lightningdit"])
def test_two_dimensional_positions_need_a_square(positions):
    config = DiffusionConfig(width=16, depth=1, num_heads=2, positions=positions)
    with pytest.raises(
        ValueError, match="2-D positions need a square grid of tokens, not 8 tokens"
    ):
        DiffusionTransformer(config, num_tokens=8, latent_dim=3, num_classes=5)


def test_the_fixed_2d_table_is_that_of_rows_and_columns():
    config = DiffusionConfig(width=16, depth=0, num_heads=2, positions="sincos-2d")
    table = (
        DiffusionTransformer(config, num_tokens=9, latent_dim=3, num_classes=5)
        .pos_embed[0]
        .reshape(3, 3, 16)
    )
    assert torch.equal(table[1, 0, :8], table[1, 2, :8])  # the first half knows the row alone
    assert torch.equal(table[0, 1, 8:], table[2, 1, 8:])
    assert torch.equal(table[1, 2, :8], table[2, 1, 8:])
    assert len(table.reshape(9, 16).unique(dim=0)) == 9


@pytest.mark.parametrize("preset", ["sit-s", "lightningdit-b"])
def test_the_residual_stream_is_float32_under_autocast(preset):
    # The release's is: in bf16 it lost more at every block, 0.012 after 28 of them.
    config = override(DIFFUSION[preset], {"depth": 28, "width": 256, "num_heads": 4})
    model = DiffusionTransformer(config, num_tokens=64, latent_dim=32, num_classes=10)
    draws = generator(0, "weights")
    for parameter in model.parameters():
        if not parameter.any():  # gates and ends
            torch.nn.init.normal_(parameter, std=0.02, generator=draws)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda *found: seen.append(found[2].dtype))
    x = torch.randn(2, 64, 32, generator=draws)
    inputs = (x, torch.tensor([0.2, 0.8]), torch.tensor([1, 2]))
    with torch.no_grad():
        reference = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(*inputs)
    assert set(seen) == {torch.float32}
    assert (rounded - reference).norm() / reference.norm() < 0.006


@pytest.mark.parametrize("path", PATHS)
def test_a_network_that_predicts_data_gives_its_velocity(path):
    torch.manual_seed(0)
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=4, latent_dim=3, num_classes=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_t, t, labels = torch.randn(3, 4, 3), torch.tensor([0.1, 0.5, 1.0]), torch.tensor([0, 5, 2])
    output = model(x_t, t, labels)
    model.set_training(path, "data")
    velocity = model(x_t, t, labels)
    data = PATHS[path].data(x_t, velocity, t[:, None, None])
    assert torch.allclose(data, output, atol=1e-5)


def test_a_training_that_is_none_is_refused():
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=4, latent_dim=4, num_classes=5)
    model.set_training("cosine", "data", "dimension")
    told = (model.trained_path, model.trained_prediction, model.trained_shift)
    assert told == ("cosine", "data", 1 / 16)
    with pytest.raises(ValueError, match=r"unknown path 'cosin'; did you mean 'cosine'\?"):
        model.set_training("cosin")
    with pytest.raises(ValueError, match=r"unknown prediction 'noise'; choose one of \['data', 'v"):
        model.set_training("linear", "noise")
    with pytest.raises(ValueError, match=r"time_shift must be above 0 \(1 is none\), not 0"):
        model.set_training("linear", "data", 0)
