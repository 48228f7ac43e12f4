"""Sentences are true of the numbers that they were made of."""

import math

import pandas as pd

from maetok_lab.analysis.sentences import (
    losses_sentence,
    nll_sentence,
    probe_sentence,
    scores_sentence,
    sweep_sentence,
)


def test_a_probe_is_beside_guessing_and_beside_pixels():
    assert probe_sentence(0.546, 0.022, 0.216, 0.520) == (
        "the latents tell the category of unseen names in 54.6% of cases, 2.5 times the commonest "
        "category's share, within two standard errors of small pixels (52.0%)"
    )
    above = probe_sentence(0.6, 0.02, 0.2, 0.5, subject="tokens")
    assert above.startswith("tokens tell")
    assert above.endswith("more than two standard errors above small pixels (50.0%)")
    assert "more than two standard errors below" in probe_sentence(0.4, 0.02, 0.2, 0.5)


def curve(*heldout):
    counts = [1, 5, 20][: len(heldout)]
    return pd.DataFrame({"components": counts, "heldout_nll": heldout, "dimensions": 10})


def test_the_number_of_gaussians_that_is_best_on_held_out_latents_is_named():
    assert nll_sentence(curve(14.0, 13.0, 13.5)) == (
        "5 Gaussians describe unseen latents best of these: 13.0 nats an image, 1.0 less than 1 "
        "(0.10 a dimension)"
    )
    assert "no modes can be told" in nll_sentence(curve(13.0, 13.2, 14.0))
    assert nll_sentence(curve(math.nan, math.nan)) == "there were no held-out latents"


def test_losses_are_compared_from_their_first_tenth_to_their_last():
    metrics = pd.DataFrame({"pixel": [4.0, *[9.0] * 8, 1.0], "hog": [2.0, *[9.0] * 8, 1.0]})
    assert losses_sentence(metrics, ["pixel", "hog"]) == (
        "from the first tenth to the last pixel fell by 75%, hog fell by 50%; pixel fell most"
    )
    metrics["loss"] = [1.0, None, *[9.0] * 7, 1.5]
    assert losses_sentence(metrics, ["loss"]) == "from the first tenth to the last loss rose by 50%"


def test_the_tokenizers_part_of_a_distance_is_above_the_floor():
    said = scores_sentence(0.508, 0.258, 0.008)
    assert said.startswith("samples are 0.508 from the test images, reconstructions 0.258, real")
    assert said.endswith("50% of that distance is there before any diffusion model")
    assert scores_sentence(0.3, 0.4, 0.0).endswith("the diffusion model adds nothing that KID sees")
    assert "no further than real images" in scores_sentence(-0.01, 0.2, 0.0)


def test_scales_whose_intervals_overlap_are_not_told_apart():
    kid = pd.Series({1.0: 0.9, 2.0: 0.5, 3.0: 0.55})
    ends = {1.0: (0.8, 1.0), 2.0: (0.45, 0.55), 3.0: (0.5, 0.6)}
    assert sweep_sentence(kid, ends) == (
        "scale 2 has the smallest KID, 0.500; not told apart from it, their intervals "
        "overlapping: 3"
    )
    alone = sweep_sentence(kid, ends | {3.0: (0.551, 0.6)})
    assert alone.endswith("and no interval overlaps its")
