"""Memory stays what it is over many training steps and many moves: a share of the whole attack."""

from pathlib import Path

import pytest

pytest.importorskip("anywidget")


with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    import memory


def test_growth_is_seen_from_the_second_tenth_to_the_last():
    settled = [300.0] * 10 + [400.0] * 90
    assert memory.growth(settled) == 0
    assert memory.growth([400.0 + 0.1 * moment for moment in range(100)]) == pytest.approx(2, 0.02)
    assert memory.growth([*[400.0] * 99, 900.0]) == 0  # one sample says nothing


def test_a_leak_is_seen():
    kept = []
    samples = []
    for _ in range(20):
        kept.append(bytearray(8_000_000))
        samples.append(memory.resident())
    assert memory.growth(samples) > memory.LIMIT


@pytest.mark.parametrize("what", memory.MEASURES)
def test_memory_does_not_grow_over_thirty_of_them(what):
    assert memory.growth(memory.measured(what, 30)) < memory.LIMIT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("grows", "count"), [(memory.steps_memory, 5000), (memory.moves_memory, 1000)]
)
def test_memory_does_not_grow(grows, count, survives):
    percent = grows(count)
    failures = [f"{percent:.2f} % more"] if percent >= memory.LIMIT else []
    survived = 0 if failures else count
    facts = {"tried": count, "survived": survived, "failures": failures}
    survives(facts | {"growth in %": round(percent, 2)})
