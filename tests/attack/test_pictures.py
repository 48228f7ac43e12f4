"""Damaged and hostile pictures, tars and Parquet files: each is read, or refused in one line."""

from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from pictures import Reader, mutated_containers, mutated_images


def test_some_mutated_pictures_and_shards_are_read_or_refused_in_one_line():
    with Reader() as child:
        for mutated, count in ((mutated_images, 60), (mutated_containers, 20)):
            outcome = mutated(count, 1, child)
            assert outcome.failures == []
            assert (outcome.tried, outcome.survived) == (count, count)
            assert 0 < outcome.read < count


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("mutated", "count"), [(mutated_images, 1000), (mutated_containers, 300)])
def test_many_mutated_pictures_and_shards_are_read_or_refused_in_one_line(mutated, count, survives):
    survives(mutated(count, 0)._asdict())
