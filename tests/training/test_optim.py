"""What moves the weights: optimizers, rates, averages and the guard."""

import math

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.training.objective import Objective
from maetok_lab.training.optim import (
    Ema,
    Guard,
    NonFiniteTraining,
    OptimizerConfig,
    learning_rate_factor,
    load_optimizer_tensors,
    make_optimizers,
    moved_parameters,
    optimizer_tensors,
    set_learning_rate,
)
from maetok_lab.training.presets import TOKENIZER_TRAINING

MUON = OptimizerConfig(name="muon", weight_decay=0.1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def modules() -> dict[str, dict[str, torch.nn.Module]]:
    """Every kind of parameter there is: a tokenizer with its auxiliary decoder, and both kinds of
    diffusion model.
    """
    torch.manual_seed(0)
    tower = {"positions": "rope+ape", "rope": "mixed"}
    changes = {
        f"model.{side}.{key}": value
        for side in ("encoder", "decoder")
        for key, value in tower.items()
    }
    training = TOKENIZER_TRAINING["test"]
    changes |= {"model.class_token": True, "model.layer_scale": 0.1, "losses.perceptual": "none"}
    objective = Objective(override(training, changes))
    kinds = {"norm": "rmsnorm", "mlp": "swiglu", "positions": "rope", "qk_norm": True}
    sit = DiffusionConfig(width=16, depth=1, num_heads=2)
    sizes = {"num_tokens": 4, "latent_dim": 2, "num_classes": 3}
    return {
        "tokenizer": {"tokenizer": objective.tokenizer, "auxiliary": objective.auxiliary},
        "sit": {"model": DiffusionTransformer(sit, **sizes)},
        "lightningdit": {"model": DiffusionTransformer(override(sit, kinds), **sizes)},
    }


def names_of(parameters, modules) -> set[str]:
    wanted = set(map(id, parameters))
    return {
        f"{m}.{n}"
        for m, module in modules.items()
        for n, p in module.named_parameters()
        if id(p) in wanted
    }


each_model = pytest.mark.parametrize("kind", ["tokenizer", "sit", "lightningdit"])

# Optimizers ---------------------------------------------------------------------------------------


@each_model
def test_muon_moves_the_matrices_of_blocks_and_adamw_all_the_rest(modules, kind):
    optimizers = make_optimizers(MUON, modules[kind])
    muon = names_of(moved_parameters([optimizers["muon"]]), modules[kind])
    for name in muon:
        assert ".blocks." in name
        assert name.endswith(
            (
                ".qkv.weight",
                ".proj.weight",
                ".fc1.weight",
                ".fc2.weight",
                ".w12.weight",
                ".w3.weight",
            )
        )
    assert {name.rsplit(".", 2)[1] for name in muon} >= {"qkv", "proj"}
    every = {
        f"{m}.{n}" for m, module in modules[kind].items() for n, p in module.named_parameters()
    }
    rest = names_of(moved_parameters([optimizers["adamw"]]), modules[kind])
    assert rest | muon == every
    assert not rest & muon


@each_model
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_acts_on_matrices_only(modules, kind, name):
    optimizers = make_optimizers(override(MUON, {"name": name}), modules[kind])
    shapes = {
        f"{m}.{n}": p.ndim
        for m, module in modules[kind].items()
        for n, p in module.named_parameters()
    }
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in names_of(group["params"], modules[kind]):
                matrix = shapes[parameter] >= 2 and parameter.endswith("weight")
                assert group["weight_decay"] == (0.1 if matrix else 0.0), parameter
    if kind == "tokenizer":
        free = names_of(optimizers["adamw"].param_groups[1]["params"], modules[kind])
        for part in (
            "mask_token",
            "class_token",
            "latent_tokens",
            "latent_positions",
            "absolute",
            "freqs",
            "gamma",
        ):
            assert any(part in parameter for parameter in free), part


def test_frozen_parameters_are_in_no_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizers = make_optimizers(OptimizerConfig(), {"model": model})
    assert list(optimizers) == ["adamw"]
    assert names_of(moved_parameters(optimizers.values()), {"m": model}) == {
        "m.1.weight",
        "m.1.bias",
    }


def steps(model: torch.nn.Module, optimizers: dict, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(step))
        model(x, torch.full((4,), 0.5), torch.arange(4)).sub(x).square().sum().backward()
        set_learning_rate(optimizers, 1 / (step + 1))
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_survives_as_flat_tensors_bit_for_bit(name):
    def build():
        torch.manual_seed(0)
        config = DiffusionConfig(width=16, depth=1, num_heads=2)
        model = DiffusionTransformer(config, num_tokens=4, latent_dim=2, num_classes=3)
        return model, make_optimizers(override(MUON, {"name": name}), {"model": model})

    whole, optimizers = build()
    steps(whole, optimizers, 0, 3)
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizers).items()}
    weights = {key: value.clone() for key, value in whole.state_dict().items()}
    steps(whole, optimizers, 3, 6)
    continued, fresh = build()
    continued.load_state_dict(weights)
    load_optimizer_tensors(fresh, saved)
    assert {key.split(".")[0] for key in saved} == set(optimizers)
    steps(continued, fresh, 3, 6)
    for key, value in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[key], value), key


# Rates --------------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_then_follows_its_schedule():
    cosine = OptimizerConfig(schedule="cosine", warmup=0.1, final_fraction=0.2)
    factors = [learning_rate_factor(cosine, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.6)
    assert factors[99] == pytest.approx(0.2, abs=0.001)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    constant = OptimizerConfig(schedule="constant", warmup=0.0)
    assert {learning_rate_factor(constant, step, 100) for step in range(100)} == {1.0}


def test_a_factor_scales_every_groups_own_rate(modules):
    optimizers = make_optimizers(override(MUON, {"muon_learning_rate": 0.5}), modules["sit"])
    for factor in (0.5, 0.1):
        set_learning_rate(optimizers, factor)
        assert {g["lr"] for g in optimizers["adamw"].param_groups} == {1e-2 * factor}
        assert {g["lr"] for g in optimizers["muon"].param_groups} == {0.5 * factor}


@pytest.mark.parametrize(
    "changes", [{"warmup": 1.0}, {"learning_rate": 0.0}, {"clip": 0.0}, {"warmup": -0.1}]
)
def test_rates_that_cannot_train_are_refused(changes):
    with pytest.raises(
        ValueError, match=r"need warmup in \[0, 1\), learning_rate > 0 and clip > 0, not"
    ):
        OptimizerConfig(**changes)


# Averages -----------------------------------------------------------------------------------------


def test_the_average_follows_its_formula_and_warms_up():
    model = torch.nn.Linear(1, 1)
    ema, wanted = Ema(model, 0.5), model.weight.detach().clone()
    assert not ema.module.training
    assert not ema.module.weight.requires_grad
    for step in range(12):
        with torch.no_grad():
            model.weight += 1
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * model.weight.detach()
        ema.update(step)
        assert torch.allclose(ema.module.weight, wanted)
    assert torch.equal(
        ema.module.bias, model.bias
    )  # what does not move stays the same to the last bit


def test_the_average_goes_on_after_its_weights_were_loaded():
    model = torch.nn.Linear(1, 1)
    ema = Ema(model, 0.5)
    ema.module.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update(100)
    assert ema.module.weight.item() == 2


# The guard ----------------------------------------------------------------------------------------


def test_non_finite_steps_are_counted_and_five_in_a_row_end_it_with_step_and_terms():
    guard = Guard()
    nan = torch.tensor(math.nan)
    one = torch.tensor(1.0)
    terms = {"pixel": torch.tensor(math.inf), "kl": one}
    skipped = [bool(guard.step([], norm)) for norm in [one, nan, nan, nan, nan, one, nan]]
    assert skipped == [False, True, True, True, True, False, True]
    assert guard.skipped == 0  # nothing is read off the device before it settles
    guard.settle(6, terms)
    assert (guard.skipped, guard.in_a_row) == (5, 1)
    for _ in range(4):  # the row goes on where it was
        guard.step([], nan)
    message = r"5 steps in a row, not later than step 10, .* not finite: \{'pixel': inf\}"
    with pytest.raises(NonFiniteTraining, match=message):
        guard.settle(10, terms)
    assert guard.skipped == 9


def test_five_in_a_row_between_two_finite_steps_end_it_too():
    guard = Guard(limit=3)
    for norm in [math.nan, math.nan, 1.0, math.nan, math.nan, math.nan, 1.0]:
        guard.step([], torch.tensor(norm))
    with pytest.raises(NonFiniteTraining, match="3 steps in a row, not later than step 6"):
        guard.settle(6, {})
    assert guard.skipped == 5


def test_finite_terms_with_infinite_gradients_are_told_apart():
    guard = Guard(limit=1)
    guard.step([], torch.tensor(math.inf))
    message = r"1 steps in a row, .* that are not finite: none"
    with pytest.raises(NonFiniteTraining, match=message):
        guard.settle(3, {"pixel": torch.tensor(1.0)})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_guarded_step_is_the_optimizers_own_or_changes_nothing(name):
    """Beside optimizers that are called, or not, by somebody who reads the norm."""
    ends = []
    for guarded in (True, False):
        torch.manual_seed(0)
        config = DiffusionConfig(width=16, depth=1, num_heads=2)
        model = DiffusionTransformer(config, num_tokens=4, latent_dim=2, num_classes=3)
        optimizers = make_optimizers(override(MUON, {"name": name}), {"model": model})
        guard = Guard()
        for step, bad in enumerate([True, False, True, True, False]):
            for parameter in model.parameters():
                draws = torch.Generator().manual_seed(step)
                gradient = torch.randn(parameter.shape, generator=draws)
                parameter.grad = gradient * (math.nan if bad else 1)
            before = {key: value.clone() for key, value in model.state_dict().items()}
            if guarded:
                guard.step(optimizers.values(), torch.tensor(math.nan if bad else 1.0))
            elif not bad:
                for optimizer in optimizers.values():
                    optimizer.step()
            same = all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
            assert same == bad
        ends.append([*model.parameters(), *optimizer_tensors(optimizers).values()])
    for mine, theirs in zip(*ends, strict=True):
        assert mine.isfinite().all()
        assert torch.equal(mine, theirs)
