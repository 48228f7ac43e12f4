"""The device is picked once, and it is said which one."""

import pytest
import torch

from maetok_lab import device as device_module
from maetok_lab.device import autocast, describe, free_memory, pick_device, pick_precision

CPU = torch.device("cpu")


def test_the_cpu_is_taken_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == CPU


def test_auto_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device().type == "cuda"


def test_a_device_that_is_unknown_or_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"unknown device 'cud'; did you mean 'cuda'\?"):
        pick_device("cud")
    with pytest.raises(
        ValueError, match="device 'cuda:2' was asked for, but torch sees 2 CUDA devices"
    ):
        pick_device("cuda:2")
    with pytest.raises(ValueError, match="device 'mps' was asked for, but torch sees none"):
        pick_device("mps")


def test_precision_is_bf16_only_where_it_is_fast(monkeypatch):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device_module, "has_fast_bf16", lambda _, fast=fast: fast)
        assert pick_precision(CPU) == precision
        assert describe(CPU, precision).endswith("bf16" if fast else "fp32 (no fast bf16 here)")
    assert pick_precision(CPU, "fp16") == "fp16"
    with pytest.raises(ValueError, match=r"unknown precision 'bf61'; did you mean 'bf16'\?"):
        pick_precision(CPU, "bf61")


def test_autocast_multiplies_in_bf16_and_does_nothing_for_fp32():
    a = torch.ones(2, 2)
    with autocast("cpu", "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32


def test_the_description_names_device_threads_and_precision():
    assert describe(CPU, "bf16").startswith("cpu (")
    assert f"{torch.get_num_threads()} threads), bf16" in describe(CPU, "bf16")


def test_free_memory_is_some_of_what_the_machine_has():
    assert 1e6 < free_memory(torch.device("cpu")) < 1e14
