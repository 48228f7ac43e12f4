"""Every draw depends on its seed and stream alone."""

import pytest
import torch

from maetok_lab.rng import generator, seed_step, seeds_for, stream_seed


def test_a_stream_gives_the_same_numbers_whatever_was_drawn_before():
    first = torch.rand(5, generator=generator(0, "mask", 3))
    torch.rand(7)
    torch.rand(2, generator=generator(0, "mask", 2))
    assert torch.equal(first, torch.rand(5, generator=generator(0, "mask", 3)))


def test_every_part_of_a_stream_counts():
    streams = [
        (0,),
        (1,),
        (0, "mask"),
        (0, "mask", 1),
        (0, "mask", 2),
        (0, "mask", "1"),
        (0, "flip", 1),
    ]
    streams.append((1, "mask", 1))
    seeds = [stream_seed(*stream) for stream in streams]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_process_and_release():
    assert stream_seed(3, "noise", 5) == 2474754963038126037
    assert generator(3, "noise", 5).initial_seed() == 2474754963038126037


def test_image_k_has_the_same_seed_in_every_batch():
    together = seeds_for(0, 7)
    assert seeds_for(0, 3) + seeds_for(0, 4, start=3) == together
    assert len({*together, *seeds_for(1, 7), *seeds_for(0, 7, stream="other")}) == 21


@pytest.mark.parametrize("step", [0, 5])
def test_seed_step_sets_the_draws_inside_modules(step):
    def dropped() -> torch.Tensor:
        seed_step(0, step)
        return torch.nn.functional.dropout(torch.ones(64))

    first = dropped()
    torch.rand(3)
    assert torch.equal(first, dropped())
    seed_step(0, step + 1)
    assert not torch.equal(first, torch.nn.functional.dropout(torch.ones(64)))
