"""Runs under attack: kills, full disks, two writers, thousands of folders."""

import sys
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    import disks
    import kills
    import listing
    import writers

small_disks = pytest.mark.skipif(
    sys.platform != "linux" or not disks.can_mount(), reason="no disk can be mounted here"
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills(survives):
    survives(kills.kills(100))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@small_disks
def test_full_disks(survives):
    survives(disks.full_disks(60))


@pytest.mark.slow
def test_two_writers(survives):
    survives(writers.two_writers())


@pytest.mark.slow
def test_ten_thousand_runs(survives):
    numbers = listing.many_runs(10_000)
    survives(numbers)
    assert numbers["seconds"] < 3


# What of it is in every test run ------------------------------------------------------------------


def test_some_kills(survives):
    survives(kills.kills(5))


def test_a_holder_that_was_stopped_and_goes_on(survives, tmp_path):
    problem = writers.stopped_for_longer_than_its_lease(tmp_path)
    survives({"tried": 1, "survived": int(not problem), "failures": [problem] if problem else []})


def test_some_hundred_runs(survives):
    survives(listing.many_runs(300))
