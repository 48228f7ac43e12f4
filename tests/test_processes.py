"""Outside of a process group everything is one's own; inside is tested where the work is (features,
sample sets).
"""

import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from maetok_lab.processes import (
    join_group,
    own_share,
    process_group,
    share_images,
    share_rows,
    wait_for_all,
)


def test_one_process_does_all_rows():
    assert process_group() == (0, 1)
    rows = share_rows(5, lambda rows: {"rows": rows, "fact": len(rows)})
    assert rows["rows"].tolist() == [0, 1, 2, 3, 4]
    assert rows["fact"] == 5
    assert list(own_share(3)) == [0, 1, 2]
    wait_for_all()


def test_rows_come_back_in_order_from_every_process(monkeypatch):
    parts = [{"rows": torch.arange(3), "fact": 1}, None, {"rows": torch.arange(3, 5), "fact": 1}]

    def gather(results, own):
        results[:] = parts

    monkeypatch.setattr("maetok_lab.processes.process_group", lambda: (1, 3))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert share_rows(5, lambda rows: {"rows": rows})["rows"].tolist() == [0, 1, 2, 3, 4]


def test_every_image_is_somebodys_and_comes_back_in_order(monkeypatch):
    images = torch.rand(7, 3, 2, 2)
    shares = []
    for rank in range(3):
        monkeypatch.setattr("maetok_lab.processes.process_group", lambda rank=rank: (rank, 3))
        shares += own_share(7)
        monkeypatch.setattr(
            torch.distributed, "all_gather_object", lambda results, own: results.__setitem__(0, own)
        )
        own = share_images(images, lambda part: {"images": part.batch(torch.arange(len(part)))[0]})
        assert torch.equal(own["images"], images.tensor_split(3)[rank])
    assert sorted(shares) == list(range(7))


def test_an_error_in_one_process_is_raised_in_every_one(monkeypatch):
    monkeypatch.setattr("maetok_lab.processes.process_group", lambda: (0, 2))
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda results, own: results.__setitem__(slice(None), [own, ValueError("the other's")]),
    )
    with pytest.raises(ValueError, match="the other's"):
        share_rows(4, lambda rows: {"rows": rows})
    with pytest.raises(ZeroDivisionError):
        share_rows(4, lambda rows: 1 / 0)


def test_a_kernel_that_trained_on_a_gpu_can_train_on_the_cpu():
    # accelerate holds on to the first device; what a machine with a GPU would have left
    PartialState(cpu=False).device = torch.device("cuda", 0)
    try:
        assert join_group(cpu=True) == (0, 1)
        assert Accelerator(cpu=True).device == torch.device("cpu")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


LATE = """
import threading, time
from maetok_lab import processes

processes.process_group = lambda: (0, 2)
assert processes.join_group(cpu=True) == (0, 2)

def let_go():
    time.sleep(0.1)
    print("let go", flush=True)

threading.Thread(target=let_go, daemon=True).start()
"""


def test_a_script_leaves_the_threads_of_its_last_exchange_time_to_let_go():
    ended = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    assert ended.stdout == "let go\n"
