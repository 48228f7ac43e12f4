"""Outside of a process group everything is one's own; inside is tested where the work is (features, sample sets)."""

import torch

from maetok_lab.processes import process_group, share_rows, wait_for_all


def test_one_process_does_all_rows():
    assert process_group() == (0, 1)
    found = share_rows(5, lambda rows: {"rows": rows, "fact": len(rows)})
    assert found["rows"].tolist() == [0, 1, 2, 3, 4]
    assert found["fact"] == 5
    wait_for_all()


def test_rows_come_back_in_order_from_every_process(monkeypatch):
    parts = [{"rows": torch.arange(3), "fact": 1}, None, {"rows": torch.arange(3, 5), "fact": 1}]

    def gather(into, mine):
        into[:] = parts

    monkeypatch.setattr("maetok_lab.processes.process_group", lambda: (1, 3))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert share_rows(5, lambda rows: {"rows": rows})["rows"].tolist() == [0, 1, 2, 3, 4]
