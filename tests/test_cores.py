"""Parts of a work on a CPU's cores: in order, alike on any number of them, and cleared away."""

import itertools
import threading

import pytest
import torch

from maetok_lab import cores as cores_module
from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.analysis.projection import project
from maetok_lab.cores import Cores, each_part, every_core

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def cores(request):
    cores = Cores(request.param)
    yield cores
    cores.close()


def test_results_come_in_the_order_of_the_parts_on_any_number_of_cores(cores):
    assert cores.map(lambda part: part * part, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    assert cores.map(str, []) == []


def test_as_many_parts_run_at_once_as_there_are_cores():
    cores = Cores(2)
    meeting = threading.Barrier(2, timeout=20)  # raises unless two threads come to it
    turns = cores.map(lambda part: meeting.wait(), range(4))
    assert sorted(turns) == [0, 0, 1, 1]
    cores.close()


def test_parts_are_taken_when_a_core_is_free_for_them(cores):
    taken = []
    parts = (taken.append(part) or part for part in itertools.count())  # no list could hold them
    results = cores.each(lambda part: part, parts)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(taken) <= 4 + cores.count


def test_a_part_runs_in_one_thread_of_torch_and_in_the_callers_gradient_mode(cores):
    weight = torch.ones(3, requires_grad=True)

    def state(_):
        return (
            torch.get_num_threads(),
            torch.is_inference_mode_enabled(),
            (weight * 2).requires_grad,
        )

    threads = torch.get_num_threads()
    try:
        with every_core() as some:
            assert set(some.map(state, range(4))) == {(1, False, True)}
            with torch.no_grad():
                assert set(some.map(state, range(4))) == {(1, False, False)}
            with torch.inference_mode():
                assert set(some.map(state, range(4))) == {(1, True, False)}
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)


def test_the_error_of_a_part_reaches_the_caller_and_threads_are_given_back(cores):
    def fail(part):
        if part == 3:
            raise ValueError("part 3 is bad")
        return part

    results = cores.each(fail, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="part 3 is bad"):
        next(results)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="part 3 is bad"):
        list(each_part(fail, range(6), device=CPU))
    assert torch.get_num_threads() == threads


def test_a_process_that_was_given_one_thread_uses_one_core(monkeypatch):
    monkeypatch.setattr(cores_module, "usable_cores", lambda: 8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with every_core() as cores:
            assert cores.count == 1
        torch.set_num_threads(3)
        with every_core() as cores:
            assert cores.count == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_maps_and_small_mixtures_are_the_same_bits_for_any_number_of_threads():
    latents = torch.randn(1500, 512, generator=torch.Generator().manual_seed(0))
    latents[:750] += 2 * torch.randn(512, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            latent_map = project(latents, method="tsne", seed=0)
            curve = gmm_curve(latents, components=[1, 8], dimensions=64, restarts=2, seed=0)
            results.append((latent_map[["x", "y"]], curve["heldout_nll"]))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results):
        assert one.equals(two)
