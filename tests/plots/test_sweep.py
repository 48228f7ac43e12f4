"""What a sweep's figures show: the front that nothing beats, the best cell, every picture."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from maetok_lab.plots.sweep import pareto_front, plot_gallery, plot_pareto, plot_surface

TABLE = pd.DataFrame(
    {
        "kid": [3.0, 1.0, 2.0, 2.5, None],
        "rate": [9.0, 1.0, 4.0, 4.0, 99.0],
        "steps": [5, 50, 20, 20, 5],
        "scale": [1, 1, 1, 2, 2],
    }
)


def test_the_front_is_what_no_other_row_beats():
    assert pareto_front(TABLE, quality="kid", speed="rate").tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    larger = pareto_front(TABLE, quality="kid", speed="rate", larger_is_better=True)
    assert larger.tolist() == [True, False, False, False, False]
    rng = np.random.default_rng(0)
    cloud = pd.DataFrame(rng.random((60, 2)), columns=["kid", "rate"])
    beaten = [
        ((cloud.kid <= k) & (cloud.rate >= r) & ((cloud.kid < k) | (cloud.rate > r))).any()
        for k, r in cloud.values
    ]
    assert pareto_front(cloud, quality="kid", speed="rate").tolist() == [
        not each for each in beaten
    ]


def test_the_front_is_drawn_and_its_rows_are_named():
    ax = plot_pareto(TABLE, quality="kid", speed="rate", color="steps")
    assert {text.get_text() for text in ax.texts} == {"0", "1", "2"}
    assert ax.get_legend_handles_labels()[1] == ["steps 5", "steps 50", "steps 20"]
    assert "smaller is better" in ax.get_ylabel()
    with pytest.raises(ValueError, match=r"no column \['fid'\]"):
        plot_pareto(TABLE, quality="fid", speed="rate")
    with pytest.raises(ValueError, match="no row has both"):
        plot_pareto(TABLE.tail(1), quality="kid", speed="rate")


def test_a_surface_takes_the_best_of_the_other_settings_and_frames_the_best_cell():
    ax = plot_surface(TABLE, x="steps", y="scale", value="kid")
    cells = ax.images[0].get_array().filled(np.nan)
    assert ax.get_xticklabels()[0].get_text() == "5"
    np.testing.assert_array_equal(cells, [[np.nan, 2.5, np.nan], [3.0, 2.0, 1.0]])
    assert ax.patches[0].get_xy() == (1.5, 0.5)
    assert plot_surface(TABLE, x="steps", y="scale", value="kid", larger_is_better=True).patches[
        0
    ].get_xy() == (-0.5, 0.5)
    with pytest.raises(ValueError, match="no column"):
        plot_surface(TABLE, x="step", y="scale", value="kid")


def test_a_gallery_has_every_picture_under_its_name(tmp_path):
    pictures = {}
    for number in range(5):
        pictures[f"scale $ {number} <b>"] = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    figure = plot_gallery(pictures, columns=4)
    assert [ax.get_title() for ax in figure.axes] == list(pictures)
    with pytest.raises(ValueError, match="no pictures"):
        plot_gallery({})
