"""A name that nobody knows is answered with the one that was meant."""

import re

import pytest

from maetok_lab.hints import LISTED, check_choice, choose, did_you_mean, printable, printable_lines
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


def test_printed_text_does_nothing_to_a_terminal():
    assert printable("Grüße, 写真 a-b_c") == "Grüße, 写真 a-b_c"
    assert printable("a\x1b[31mb\r\x07\x9b\u202e") == r"a\x1b[31mb\r\x07\x9b\u202e"
    # bytes of a name that are no text, and what only JSON can hold
    assert printable("caf\udce9") == r"caf\xe9"
    assert printable("\ud800") == r"\ud800"
    family = "\U0001f468\u200d\U0001f469"  # joined by what is no letter
    assert printable(family) == family
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"
