"""Weights and configs that somebody damaged load or are refused by name, and execute nothing."""

from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from weights import mutated_weights


def test_forty_mutated_weights():
    result = mutated_weights(40, seed=0)
    assert result == {"tried": 40, "survived": 40, "failures": []}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_mutated_weights(survives):
    survives(mutated_weights(500, seed=1))
