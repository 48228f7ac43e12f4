"""Sentences say what the numbers say, and change where the numbers do."""

import pandas as pd

from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.experiments.sentences import against_floor, beside_study, loss_change, row_meaning
from maetok_lab.training.meanings import meaning_of


def result(value, low, high, floor):
    return EvalResult(
        metrics={"kid_net": value, "recall": 0.5},
        protocol=EvalProtocol(task="generation"),
        intervals={"kid_net": (low, high)},
        floor={"kid_net": floor},
    )


def test_samples_are_told_from_real_images_where_their_whole_interval_lies_above_the_floor():
    far = against_floor(result(0.4, 0.37, 0.42, 0.008), "kid_net")
    assert far.startswith("kid_net is 0.400 (95 %: 0.370 to 0.420), the floor 0.008: ")
    assert far.endswith("can be told from real images")
    near = against_floor(result(0.02, -0.01, 0.05, 0.008), "kid_net")
    assert near.endswith("cannot be told from real images")
    assert against_floor(result(0.02, 0.01, 0.03, -0.01), "kid_net").endswith(
        "samples can be told from real images"
    )


def test_too_few_images_leave_nothing_to_hold_a_distance_against():
    no_floor = result(0.4, 0.37, 0.42, float("nan"))
    no_interval = result(0.4, float("nan"), float("nan"), 0.008)
    missing = EvalResult(metrics={"kid_net": 0.4}, protocol=EvalProtocol(task="generation"))
    for scores in (no_floor, no_interval, missing):
        words = against_floor(scores, "kid_net")
        assert words == "kid_net is 0.400, without an interval or a floor to hold it against"


def test_a_loss_is_told_from_first_to_last_and_only_a_positive_one_has_a_share():
    metrics = pd.DataFrame(
        {
            "pixel": [0.4, 0.2, 0.1],
            "auxiliary/semantic": [-0.1, -0.2, -0.3],
            "adversarial": [0.0, 0.0, 0.3],
            "late": [float("nan"), 1.0, 1.0],
        }
    )
    assert loss_change(metrics, list(metrics)) == (
        "first log to last: pixel from 0.4 to 0.1 (25% of it); "
        "auxiliary/semantic from -0.1 to -0.3; adversarial from 0 to 0.3; late from nan to 1"
    )


def test_a_row_stands_beside_the_study_only_where_the_study_has_it():
    assert "(preset tiny, seeds: 3): psnr 25" in beside_study("ae")
    assert "seeds: 1" in beside_study("denoise")
    assert beside_study("1c-0-60").endswith("has no row 1c-0-60")


def test_a_row_is_a_rung_and_what_follows_it_or_a_control():
    assert row_meaning("all") == meaning_of("all")
    assert row_meaning("all-tuned").startswith(meaning_of("all"))
    assert row_meaning("all-tuned").endswith("on real images (section 3.3).")
    assert row_meaning("ae-mask-post").startswith(meaning_of("ae-mask"))
    assert "RobusTok" in row_meaning("ae-mask-post")
    assert row_meaning("control-20.5dB").startswith("control-20.5dB (the control for blur)")
