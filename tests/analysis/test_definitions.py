"""An entry's name says of which measure it is, as the card itself does."""

import torch

from maetok_lab.analysis.card import CardSettings, diffusability_card
from maetok_lab.analysis.definitions import MEASURES, better, measure_of
from maetok_lab.analysis.grids import ENTRIES
from maetok_lab.rng import generator

SETTINGS = CardSettings(components=(1, 3), dimensions=4, decoded=12, pairs=4, noise_levels=(0.1,))


def test_the_measure_of_every_entry_of_a_card_is_that_of_its_definition():
    latents = torch.randn(60, 4, 2, generator=generator(0, "latents"))
    labels = torch.arange(60) % 3
    losses = {"loss": 0.4, "loss/t0.25": 0.6}
    card = diffusability_card(
        latents,
        labels,
        latents[:30],
        labels[:30],
        decode=lambda z: z.mean(dim=(1, 2))[:, None, None, None].expand(-1, 3, 8, 8),
        diffusion_loss=losses,
        beside={"psnr": 18.0},
        settings=SETTINGS,
    )
    assert len(card) > 40
    for entry, row in card.iterrows():
        assert measure_of(entry) == card.attrs["definitions"][entry]["measure"], entry
        assert better(measure_of(entry)) == row["better"], entry


def test_further_entries_are_of_their_measures_too():
    assert {entry: measure_of(entry) for entry in ENTRIES} == {
        entry: measure for entry, (measure, _) in ENTRIES.items()
    }
    assert {name: measure_of(name) for name in MEASURES} == {name: name for name in MEASURES}
    assert measure_of("ikid_gap_squeezenet1_1") == "ikid_gap"
    assert measure_of("ikid_squeezenet1_1") == "ikid"
    assert measure_of("lds_of_nobody") == "lds"
    # a name that only begins with the letters of one
    assert measure_of("ldsx") == "given"
