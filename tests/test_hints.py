"""A name that nobody knows is answered with the one that was meant."""

import re

import pytest

from maetok_lab.hints import LISTED, check_choice, choose, did_you_mean
from maetok_lab.training.presets import DIFFUSION_TRAINING


def test_choose_gives_the_choice_or_names_the_nearest():
    assert choose("a", {"a": 1}, "thing") == 1
    with pytest.raises(ValueError, match=re.escape("unknown preset 'tinny'; did you mean 'tiny'?")):
        choose("tinny", DIFFUSION_TRAINING, "preset")


def test_where_none_is_near_the_choices_are_listed_unless_they_are_too_many():
    assert did_you_mean("q", ["b", "a"]) == "; choose one of ['a', 'b']"
    many = [f"model-{number}" for number in range(LISTED + 1)]
    assert did_you_mean("q", many) == ""
    assert did_you_mean("model-7", many[:7]) == "; did you mean 'model-6'?"


def test_any_collection_of_names_can_be_checked():
    check_choice("b", ("a", "b"), "letter")
    with pytest.raises(ValueError, match=r"unknown letter 'q'; choose one of \['a', 'b'\]"):
        check_choice("q", ("a", "b"), "letter")
