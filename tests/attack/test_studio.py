"""Ten visitors of the studio at once."""

from pathlib import Path

import pytest

pytest.importorskip("voila", reason="a studio's server needs voila: pip install voila")
pytest.importorskip("websocket")

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from studio import ten_visitors


@pytest.mark.slow
def test_ten_visitors_at_once_are_served_or_told_to_wait_and_leave_nothing():
    numbers = ten_visitors()
    print(numbers)
    assert numbers["served at once"] >= 1
    assert numbers["served at once"] + numbers["told to wait"] == 10
    assert numbers["slowest page"] <= 30
    assert numbers["slowest word to wait"] <= 5
    assert numbers["served in the end"] == min(10, numbers["limit"])
    assert numbers["most kernels"] <= numbers["limit"]
    assert numbers["most GB"] <= 0.75 * numbers["limit"]
    assert numbers["kernels a minute after"] == 0
