"""A function called in several processes: what comes back, what is said, what goes wrong."""

import os
import signal
import warnings

import pytest
import torch

from maetok_lab import ranks
from maetok_lab.processes import own_share, share_rows
from maetok_lab.ranks import Call, Ranks, check_processes, in_processes

CPU = torch.device("cpu")


def test_one_process_calls_here():
    assert in_processes(1, CPU, lambda x: x + 1, 2) == 3


def test_two_processes_share_and_the_first_ones_result_comes_back(capsys):
    assert in_processes(2, CPU, torch.distributed.get_world_size) == 2
    assert in_processes(2, CPU, own_share, 5) == range(0, 5, 2)
    in_processes(2, CPU, print, "said once")
    assert capsys.readouterr().out == "said once\n"
    with pytest.warns(UserWarning, match="careful"):
        in_processes(2, CPU, warnings.warn, "careful")


def test_what_a_process_raises_is_raised_here():
    with pytest.raises(TypeError, match="other processes"):
        in_processes(2, CPU, lambda: None)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        in_processes(2, CPU, int, "many")
    assert "of 2)" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="no rows to share"):
        in_processes(2, CPU, share_rows, 0, torch.arange)


class Unreadable:
    """Cannot be had by another process, which hears of it only there."""

    def __reduce__(self):
        return int, ("many",)


def test_arguments_that_cannot_be_read_there_are_an_error_of_that_process():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        in_processes(2, CPU, print, Unreadable())
    assert "of 2)" in caught.value.__notes__[0]


def test_a_process_that_is_ended_while_it_writes_its_error_leaves_none(tmp_path, monkeypatch):
    def end(*_):
        raise SystemExit

    monkeypatch.setattr(os, "replace", end)
    with pytest.raises(SystemExit):
        ranks._write_error(tmp_path / "error-0", ValueError("many"), 0)
    assert list(tmp_path.glob("error-*")) == []


def test_a_process_that_ends_while_all_are_asked_to_stop_is_let_go(monkeypatch):
    monkeypatch.setattr(ranks, "_pid_files", lambda folder: [folder / "pid-gone"])
    with Ranks(2, CPU, Call(abs, (-1,), {})) as group:
        group.stop()


def test_a_killed_process_is_named():
    with pytest.raises(RuntimeError, match="of 2 was ended by SIGKILL"):
        in_processes(2, CPU, signal.raise_signal, signal.SIGKILL)


def test_what_a_generator_yields_comes_in_order_and_leaving_early_ends_all():
    with Ranks(2, CPU, Call(map, (abs, range(-3, 0)), {})) as ranks:
        assert list(ranks) == []  # no generator
    with Ranks(2, CPU, Call(signal.pause, (), {})) as ranks:
        pass
    assert ranks._launcher.returncode is not None
    assert not ranks.folder.exists()


@pytest.mark.parametrize("processes", [0, -1, True, 2.0, "8"])
def test_a_number_of_processes_that_cannot_be_is_refused(processes):
    with pytest.raises(ValueError, match="processes must be a whole number >= 1"):
        check_processes(processes, CPU)


def test_gpus_that_are_not_there_are_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_processes(2, torch.device("cuda"))
    for device in ("cuda:1", "cuda"):
        with pytest.raises(ValueError, match=r'there are 2; take processes=2 with device="cuda"'):
            check_processes(8, torch.device(device))
