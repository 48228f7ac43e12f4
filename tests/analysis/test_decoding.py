"""Robustness and smoothness of decoders whose answer is known."""

import math

import pytest
import torch

from maetok_lab.analysis.decoding import decoder_robustness, interpolation_smoothness
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
