"""Robustness and smoothness of decoders whose answer is known."""

import math

import pytest
import torch

from maetok_lab.analysis.decoding import (
    decoder_robustness,
    interpolation_smoothness,
    local_perceptual_continuity,
)
from maetok_lab.rng import generator


def linear(latents):
    return latents.transpose(1, 2).unflatten(2, (4, 4)) * 0.2


def latents(count=40):
    return torch.randn(count, 16, 3, generator=generator(0, "latents"))


def test_noise_on_latents_costs_the_psnr_that_a_linear_decoder_says():
    table = decoder_robustness(linear, latents(2000), levels=(0.1, 0.4), batch_size=500)
    # the pixel error is 0.2 * level * std on a scale of 2: noise of 25.5 * level grey levels
    # (rounding to 8 bits costs 0.1 dB at most, a mean over images of decibels wins as much back)
    for level, value in zip(table.noise, table.psnr):
        assert value == pytest.approx(-20 * math.log10(0.1 * level), abs=0.1)
    assert (table.error > 0).all()
    assert (
        decoder_robustness(lambda z: torch.zeros(len(z), 3, 4, 4), latents()).psnr.tolist()
        == [100.0] * 4
    )


def test_noise_is_measured_in_each_channels_own_unit():
    wide = latents() * torch.tensor([1.0, 10.0, 100.0])
    scaled = decoder_robustness(lambda z: linear(z / torch.tensor([1.0, 10.0, 100.0])), wide)
    torch.testing.assert_close(
        torch.tensor(scaled.psnr),
        torch.tensor(decoder_robustness(linear, latents()).psnr),
        atol=1e-3,
        rtol=0,
    )


def test_a_linear_decoder_goes_straight_and_a_jumping_one_does_not():
    straight = interpolation_smoothness(linear, latents(), pairs=6)
    assert straight.detour.tolist() == pytest.approx([1.0] * 6)
    assert straight.unevenness.tolist() == pytest.approx([1.0] * 6)
    jump = interpolation_smoothness(lambda z: linear(z).sign(), latents(), pairs=6)
    assert (jump.unevenness > 1.1).all()
    turn = interpolation_smoothness(lambda z: torch.sin(8 * linear(z)), latents(), pairs=6)
    assert (turn.detour > 1.2).all()


def test_errors_say_what_came():
    with pytest.raises(ValueError, match="need at least two latents to go between, not 1"):
        interpolation_smoothness(linear, latents(1))
    with pytest.raises(ValueError, match="one image"):
        interpolation_smoothness(lambda z: torch.zeros(len(z), 3, 4, 4), latents())


# Local perceptual continuity --------------------------------------------------------------------


def squared(images, reference):
    return (images - reference).square().flatten(1).mean(dim=1)


def test_a_constant_decoder_never_moves():
    table = local_perceptual_continuity(lambda z: torch.ones(len(z), 3, 4, 4), latents(), squared)
    assert table.lpc.tolist() == [0.0] * 4
    assert table.error.tolist() == [0.0] * 4
    assert (table.attrs["lpc"], table.attrs["error"]) == (0, 0)


def test_a_linear_decoder_moves_by_the_square_of_the_radius():
    z = latents(50)
    table = local_perceptual_continuity(linear, z, squared, batch_size=16)
    # every direction is alike: 0.2 radius |z| in 48 pixels
    sizes = (z - z.mean(dim=0)).double().flatten(1).square().sum(dim=1)
    moves = 0.2**2 * sizes / 48
    for radius, lpc, error in table[["radius", "lpc", "error"]].itertuples(index=False):
        assert lpc == pytest.approx(radius**2 * float(moves.mean()), rel=1e-5)
        assert error == pytest.approx(radius**2 * float(moves.std()) / 50**0.5, rel=1e-5)
    # weights 1 / radius: sum of radii over sum of their inverses
    share = (0.1 + 0.5 + 1 + 2) / (10 + 2 + 1 + 0.5)
    assert table.attrs["lpc"] == pytest.approx(share * float(moves.mean()), rel=1e-5)
    assert table.attrs["error"] == pytest.approx(share * float(moves.std()) / 50**0.5, rel=1e-5)
    assert table.attrs["definition"]["measure"] == "lpc"


def test_both_ways_count_and_an_offset_of_all_latents_does_not():
    def bent(z):  # moves on one side of the latents alone, and there in proportion
        return linear(z - 7).relu()

    one = local_perceptual_continuity(bent, latents() + 7, squared, seed=1)
    mirrored = local_perceptual_continuity(lambda z: bent(14 - z), 7 - latents(), squared, seed=1)
    torch.testing.assert_close(torch.tensor(one.lpc), torch.tensor(mirrored.lpc), rtol=1e-3, atol=0)
    centred = local_perceptual_continuity(lambda z: bent(z + 7), latents(), squared, seed=1)
    torch.testing.assert_close(torch.tensor(one.lpc), torch.tensor(centred.lpc), rtol=1e-3, atol=0)


def test_the_shipped_perceptual_distance_fits():
    from maetok_lab.nets import load_net
    from maetok_lab.tokenizer.perceptual import SqueezePerceptual

    def decode(z):
        return torch.nn.functional.interpolate(linear(z).tanh(), size=32)

    distance = SqueezePerceptual(load_net("squeezenet1_1"))
    table = local_perceptual_continuity(decode, latents(6), distance, radii=(0.1, 1))
    assert 0 < table.lpc[0] < table.lpc[1]


def test_too_few_latents_and_no_radius_are_refused():
    with pytest.raises(ValueError, match="need two latents or more and radii above 0, not 1 and"):
        local_perceptual_continuity(linear, latents(1), squared)
    with pytest.raises(ValueError, match=r"not 40 and \[0, 1\]"):
        local_perceptual_continuity(linear, latents(), squared, radii=(0, 1))
