"""Clicks, the lasso and the controls of the latent map show what the plain functions give."""

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from maetok_lab.analysis.maps import decode_between
from maetok_lab.pictures import image_grid
from maetok_lab.plots.masks import picture_of
from maetok_lab.tokenizer.foreign import RawPixels
from maetok_lab.widgets.front import BLANK, png_bytes
from maetok_lab.widgets.latent_map import STRIP, LatentMap


@pytest.fixture(scope="module")
def source(make_pictures):
    source = make_pictures(40, 8)
    source.class_names = ["cat", "dog", "<fish>"]
    source.records = pd.DataFrame({"style": ["flat", "round"] * 20})
    return source


@pytest.fixture
def walk(source):
    tokenizer = RawPixels(8)
    latents = tokenizer.encode(source.images)
    walk = LatentMap(
        latents, source, tokenizer, overlays={"generated": latents[:3] * 0.5}, components=2
    )
    assert walk.view
    return walk


def clicked(walk, name):
    """Call what plotly calls for an event on the points."""
    points = walk.chart.data[0]
    return {
        "hover": points._hover_callbacks,
        "click": points._click_callbacks,
        "select": points._select_callbacks,
    }[name][0]


def fire(walk, name, *points):
    from plotly.callbacks import Points

    clicked(walk, name)(walk.chart.data[0], Points(point_inds=list(points)), None)


def shows(walk, name, image):
    return walk.pictures[name].image.value == png_bytes(picture_of(image), size=128)


def test_the_points_are_the_atlas_and_their_colours_the_classes(walk):
    points = walk.chart.data[0]
    np.testing.assert_allclose(points.x, walk.atlas.frame["x"])
    codes, names = walk.codes()
    assert [names[code] for code in codes] == walk.atlas.frame["class"].tolist()
    assert points.marker.color.tolist() == codes.tolist()
    assert "&lt;fish&gt;" in walk.legend.value
    walk.controls.colour.value = "style"
    assert len(set(points.marker.color[:40])) == 2
    assert {"class", "style", "run", "component"} <= set(walk.controls.colour.options)


def test_hover_shows_the_image_and_a_click_what_is_decoded(walk, source):
    fire(walk, "hover", 5)
    assert shows(walk, "near", source.images[5])
    assert "5: &lt;fish&gt;" in walk.pictures["near"].caption.value
    fire(walk, "click", 7)
    assert shows(walk, "original", source.images[7])
    assert shows(walk, "decoded", walk.decoded(7))
    torch.testing.assert_close(walk.decoded(7), source.images[7])
    assert walk.controls.point.value == 7
    fire(walk, "click", 41)  # an overlay has no image but the decoded one
    assert shows(walk, "original", source.images[1] * 0.5)


def test_two_points_have_a_strip_between_them_and_are_ringed(walk):
    walk.controls.point.value = 3
    assert walk.strip.value == BLANK
    walk.controls.point.value = 8
    expected = decode_between(
        walk.tokenizer, walk.atlas.latent(3), walk.atlas.latent(8), steps=STRIP
    )
    assert walk.strip.value == png_bytes(
        image_grid(expected, columns=STRIP, padding=0), size=64 * STRIP
    )
    assert list(walk.chart.data[1].x) == walk.atlas.frame["x"][[3, 8]].tolist()


def test_the_first_point_can_be_clicked_although_the_control_stands_on_it(walk, source):
    fire(walk, "click", 0)
    assert walk.point == 0
    assert shows(walk, "original", source.images[0])


def test_the_lasso_gives_rows_a_histogram_and_the_mean_image(walk, source):
    fire(walk, "select", 0, 1, 3, 41)
    assert walk.selection["row"].tolist() == [0, 1, 3, 1]
    assert shows(walk, "mean", source.images[[0, 1, 3]].mean(0))
    assert "4 points" in walk.counted.value
    assert walk.counted.value.index("cat") < walk.counted.value.index("dog")
    fire(walk, "select")
    assert len(walk.selection) == 0


def test_another_method_moves_the_points(source):
    walk = LatentMap(RawPixels(8).encode(source.images), source, RawPixels(8), components=0)
    assert walk.view
    before = np.array(walk.chart.data[0].x)
    walk.controls.method.value = "tsne"
    assert not np.allclose(walk.chart.data[0].x, before)
    assert walk.chart.layout.xaxis.title.text == "tsne 1 (no unit)"


def test_overlays_are_placed_by_methods_that_can(walk):
    assert walk.controls.method.options == ("pca", "umap")


def test_fifty_thousand_points_are_drawn_by_webgl(make_pictures):
    source = make_pictures(50_000, 4)
    source.class_names = ["a", "b", "c"]
    walk = LatentMap(torch.randn(50_000, 1, 8), source, RawPixels(4), components=0)
    assert walk.view
    assert walk.chart.data[0].type == "scattergl"
    assert len(walk.chart.data[0].x) == 50_000


def test_the_twin_is_the_same_map(walk):
    import matplotlib.pyplot

    figure = walk.twin()
    drawn = np.concatenate([part.get_offsets() for part in figure.axes[0].collections])
    assert sorted(drawn[:, 0]) == pytest.approx(sorted(walk.atlas.frame["x"]))
    matplotlib.pyplot.close(figure)


def test_an_unknown_colour_or_point_says_what_there_is(walk, source):
    with pytest.raises(ValueError, match="unknown colour 'size'"):
        LatentMap(RawPixels(8).encode(source.images), source, RawPixels(8), colour="size")
    with pytest.raises(ValueError, match=r"points are 0 \.\. 42, not 43"):
        walk.click(43)
