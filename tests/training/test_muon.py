"""Muon against torch's own, in stacks and on cores alike, and a step that is skipped."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from maetok_lab.cores import Cores
from maetok_lab.training.optim import Muon, orthogonalise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPES = [(12, 12), (36, 12), (48, 12), (12, 48), (12, 12), (12, 48), (48, 12), (8, 20)]
RATES = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}


def parameters(seed=0):
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def train(optimizer, weights, steps=5, seed=1):
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()


def test_it_steps_as_torchs_own_does_up_to_the_rounding_of_bf16():
    mine = parameters()
    theirs = copy.deepcopy(mine)
    train(Muon(mine, **RATES), mine)
    train(torch.optim.Muon(theirs, **RATES), theirs)
    for first, second, start in zip(mine, theirs, parameters()):
        assert (second - start).abs().max() > 0.01
        torch.testing.assert_close(first, second, rtol=0, atol=2e-3)


def test_singular_values_become_about_one_whatever_the_scale():
    matrices = torch.randn(5, 16, 40, generator=torch.Generator().manual_seed(0)) * 1e4
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_cores_gives_the_same_bits(count):
    alone = parameters()
    train(Muon(alone, **RATES), alone)
    shared = parameters()
    optimizer = Muon(shared, **RATES)
    cores = Cores(count)
    optimizer.spread = cores.map
    train(optimizer, shared)
    cores.close()
    for first, second in zip(alone, shared):
        assert torch.equal(first, second)


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing():
    weights = parameters()
    optimizer = Muon(weights, **RATES)
    train(optimizer, weights)
    before = [weight.detach().clone() for weight in weights]
    momenta = [optimizer.state[weight]["momentum_buffer"].clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for weight, old, momentum in zip(weights, before, momenta):
        assert torch.equal(weight, old)
        assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    optimizer.found_inf = torch.tensor(0.0)
    train(optimizer, weights, steps=1)
    assert all((weight != old).any() for weight, old in zip(weights, before))


def test_a_parameter_without_a_gradient_stays():
    weights = parameters()[:2]
    optimizer = Muon(weights, **RATES)
    weights[0].grad = torch.ones_like(weights[0])
    start = weights[1].detach().clone()
    optimizer.step()
    assert torch.equal(weights[1], start)


# (processes, parts of a batch); what has other processes takes over ten seconds
WAYS = [(1, 4), pytest.param((2, 1), marks=pytest.mark.slow)]


@pytest.mark.parametrize("way", WAYS)
def test_another_order_of_sums_moves_losses_by_as_little_as_is_said(tmp_path, monkeypatch, way):
    monkeypatch.syspath_prepend(BENCHMARKS)
    drift = runpy.run_path(str(BENCHMARKS / "processes.py"))["drift"]
    losses, weights = drift("adamw", [way], "test", 20, tmp_path)[way]
    assert losses < 1e-6
    assert weights < 1e-5
    losses, weights = drift("muon", [way], "test", 20, tmp_path)[way]
    assert losses < 3e-3
    assert 1e-3 < weights < 0.2  # else what is written of bf16 is no longer so
