"""Weights and configs that somebody damaged load or are refused by name, and execute nothing."""

import importlib.util
from pathlib import Path

import pytest

ATTACK = Path(__file__).with_name("weights.py")


@pytest.fixture(scope="module")
def attack():
    spec = importlib.util.spec_from_file_location("attack_weights", ATTACK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_forty_mutated_weights(attack):
    result = attack.mutated_weights(40, seed=0)
    assert result == {"tried": 40, "survived": 40, "failures": []}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_mutated_weights(attack, survives):
    survives(attack.mutated_weights(500, seed=1))
