"""Sentences say what the numbers say, and change where the numbers do."""

import pandas as pd
import pytest

from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.experiments.sentences import against_floor, beside_study, loss_left


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


def test_a_metric_without_a_floor_is_refused_and_those_with_one_are_listed():
    with pytest.raises(ValueError, match=r"'recall' has no interval .* both: \['kid_net'\]"):
        against_floor(result(0.4, 0.37, 0.42, 0.008), "recall")


def test_what_is_left_of_a_loss_leaves_out_terms_that_begin_at_nothing():
    metrics = pd.DataFrame(
        {
            "pixel": [0.4, 0.2, 0.1],
            "auxiliary/hog": [0.1, 0.09, 0.08],
            "adversarial": [0.0, 0.0, 0.3],
            "late": [float("nan"), 1.0, 1.0],
        }
    )
    words = loss_left(metrics, list(metrics))
    assert words.endswith("first value: pixel 25%, auxiliary/hog 80%")
    assert loss_left(metrics, ["late"]).endswith(": nothing")


def test_a_row_stands_beside_the_study_only_where_the_study_has_it():
    assert "(preset tiny, seeds: 3): psnr 25" in beside_study("ae")
    assert "seeds: 1" in beside_study("denoise")
    assert beside_study("1c-0-60").endswith("has no row 1c-0-60")
