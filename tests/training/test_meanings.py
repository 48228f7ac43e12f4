"""Every rung has a meaning in words, and rungs that are one training say so."""

import re

import pytest

from maetok_lab.identity import fingerprint
from maetok_lab.training.meanings import MEANINGS, OWN_RECIPE, meaning_of
from maetok_lab.training.presets import ladder_training
from maetok_lab.training.rungs import LADDER, RIVALS, RUNGS


def test_every_rung_has_a_meaning_in_the_order_of_the_rungs():
    assert list(MEANINGS) == list(RUNGS)
    for rung, meaning in MEANINGS.items():
        for words in (meaning.change, meaning.place, meaning.expected):
            assert 2 <= len(words) <= 100, rung
            assert not words.endswith("."), rung


def test_rungs_that_a_meaning_names_exist():
    for rung, meaning in MEANINGS.items():
        named = re.findall(r"`([^`]+)`", f"{meaning.change} {meaning.place} {meaning.expected}")
        assert set(named) <= set(RUNGS), rung


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_that_is_said_to_be_another_is_that_training(rung):
    same = re.search(r"the same as `([^`]+)`", MEANINGS[rung].change)
    mine = fingerprint(ladder_training("tiny", rung))
    for other in LADDER:
        equal = mine == fingerprint(ladder_training("tiny", other))
        if other != rung:
            assert equal == bool(same and same[1] == other), other


def test_places_are_tables_of_the_paper_for_rows_that_are_named_after_one():
    for rung, meaning in MEANINGS.items():
        number, _, _ = rung.partition("-")
        if number[0].isdigit():
            assert meaning.place == f"Table {number}", rung
        if rung in RIVALS:
            assert not meaning.place.startswith("Table"), rung


def test_a_meaning_is_one_sentence_to_print():
    assert meaning_of("ae-mask").startswith("ae-mask (Table 6): 40 to 60 % of the patches")
    assert meaning_of("preset") == f"preset: {OWN_RECIPE}."
    with pytest.raises(ValueError, match="did you mean 'hog'"):
        meaning_of("hogg")
