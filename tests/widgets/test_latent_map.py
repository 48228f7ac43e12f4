"""Clicks, the lasso and the controls of the latent map show what the plain functions give."""

import asyncio
import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from maetok_lab.analysis import maps
from maetok_lab.analysis.maps import decode_between
from maetok_lab.analysis.projection import fit_projection
from maetok_lab.plots.curves import CLASS_COLOURS
from maetok_lab.plots.masks import picture_of
from maetok_lab.tokenizer.foreign import RawPixels
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
    return walk


def click(walk, point):
    """As the page says it."""
    walk.view.set_state({"point": point, "clicks": walk.view.clicks + 1})


def lasso(walk, *points):
    content = memoryview(np.array(points, np.int32).tobytes())
    walk.view.set_state({"lasso": content})


def tiles(walk, pixels):
    """The pictures of the inspector by their order on the page."""
    inspected = walk.view.inspected
    side = inspected["side"]
    sheet = pixels(inspected["sheet"])
    return [sheet[:, start : start + side] for start in range(0, sheet.shape[1], side)]


def numbers(content, kind):
    return np.frombuffer(bytes(content), kind)


def test_all_is_there_when_the_widget_is_made(walk, source, pixels):
    """Places, colours, thumbnails and the first point: a page needs no kernel to show and hover."""
    view = walk.view
    assert len(numbers(view.places["x"], np.uint16)) == 43
    assert numbers(view.thumbnails["points"], np.int32).tolist() == list(range(43))
    sheet = Image.open(io.BytesIO(view.thumbnails["sheet"])).convert("RGB")
    side = view.thumbnails["side"]
    thumbnail = Image.fromarray(picture_of(source.images[7])).resize((side, side))
    shown = sheet.crop((7 * side, 0, 8 * side, side))
    difference = np.asarray(shown, float) - np.asarray(thumbnail, float)
    assert np.abs(difference).mean() < 25  # WebP, and another way of enlarging 8 px
    assert np.array_equal(tiles(walk, pixels)[0], picture_of(source.images[0]))


def test_the_places_are_the_atlas_between_0_and_1_upwards(walk):
    frame = walk.atlas.frame
    x, y = (numbers(walk.view.places[side], np.uint16) / 65535 for side in "xy")
    assert 0 < x.min() < x.max() < 1
    assert np.corrcoef(x, frame["x"])[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(y, frame["y"])[0, 1] == pytest.approx(-1, abs=1e-6)


def test_the_colours_are_those_of_the_figures(walk, source):
    column = walk.view.columns["class"]
    assert column["names"] == ["cat", "dog", "<fish>", "not known"]
    assert column["colours"] == list(CLASS_COLOURS[:4])
    codes = numbers(column["codes"], np.uint16)
    assert [column["names"][code] for code in codes] == walk.atlas.frame["class"].tolist()
    assert numbers(walk.view.overlays, np.uint8).tolist() == [0] * 40 + [1] * 3
    assert {"class", "style", "run", "component"} <= set(walk.view.columns)


def test_numbers_of_images_colour_the_map_from_dark_to_bright(source):
    latents = RawPixels(8).encode(source.images)
    loss = np.arange(40.0)
    walk = LatentMap(latents, source, RawPixels(8), components=0, values={"loss": loss})
    column = walk.view.columns["loss"]
    codes = numbers(column["codes"], np.uint16)
    assert (np.diff(codes[np.argsort(walk.atlas.frame["row"])].astype(int)) >= 0).all()
    assert column["ramp"]
    with pytest.raises(ValueError, match="3 values of 'loss' for 40 images"):
        LatentMap(latents, source, RawPixels(8), values={"loss": [1, 2, 3]})


def test_a_click_shows_the_image_what_is_decoded_and_the_neighbours(walk, source, pixels):
    click(walk, 7)
    image, decoded, *near = tiles(walk, pixels)
    assert np.array_equal(image, picture_of(source.images[7]))
    assert np.array_equal(decoded, picture_of(walk.decoded(7)))
    torch.testing.assert_close(walk.decoded(7), source.images[7])
    rows = walk.atlas.projection.reducer.transform(RawPixels(8).encode(source.images))
    far = (rows - rows[7]).square().sum(1)
    real = [point for point in walk.view.inspected["near_points"] if point < 40]
    assert real == far.argsort()[1:].tolist()[: len(real)]
    assert np.array_equal(near[0], picture_of(walk.original(walk.view.inspected["near_points"][0])))
    click(walk, 41)  # an overlay has no image but the decoded one
    assert np.array_equal(tiles(walk, pixels)[0], picture_of(source.images[1] * 0.5))


def test_two_points_have_a_strip_between_them(walk, pixels):
    assert walk.view.inspected["between"] == 0
    click(walk, 3)
    click(walk, 8)
    assert (walk.view.inspected["previous"], walk.view.inspected["point"]) == (3, 8)
    ends = walk.atlas.latent(3), walk.atlas.latent(8)
    expected = decode_between(walk.tokenizer, *ends, steps=STRIP)
    strip = tiles(walk, pixels)[-STRIP:]
    for tile, image in zip(strip, expected):
        assert np.array_equal(tile, picture_of(image))


def test_the_lasso_gives_rows_and_the_mean_image(walk, source, pixels):
    lasso(walk, 0, 1, 3, 41)
    assert walk.selection["row"].tolist() == [0, 1, 3, 1]
    assert np.array_equal(pixels(walk.view.mean), picture_of(source.images[[0, 1, 3]].mean(0)))
    lasso(walk)
    assert len(walk.selection) == 0
    assert walk.view.mean == b""


def test_a_picture_that_the_page_lacks_is_given_when_it_is_pointed_at(walk, source, pixels):
    walk.view.set_state({"hovered": 9})
    assert walk.view.near["point"] == 9
    assert np.array_equal(pixels(walk.view.near["picture"]), picture_of(source.images[9]))


def test_another_method_moves_the_points(source):
    walk = LatentMap(RawPixels(8).encode(source.images), source, RawPixels(8), components=0)
    before = walk.view.places
    walk.view.set_state({"method": "tsne"})
    assert walk.view.places["x"] != before["x"]
    assert walk.view.places["note"].startswith("t-SNE map")
    assert (before["straight"], walk.view.places["straight"]) == (True, False)
    assert walk.view.message == ""


def test_a_map_is_made_beside_a_living_kernel(source):
    """UMAP takes a minute: clicks are answered meanwhile."""
    walk = LatentMap(RawPixels(8).encode(source.images), source, RawPixels(8), components=0)
    assert walk.view

    async def choose():
        walk.view.set_state({"method": "tsne"})
        assert "making the t-SNE map" in walk.view.message
        click(walk, 5)
        assert walk.view.inspected["point"] == 5
        while walk.view.message:
            await asyncio.sleep(0.02)

    asyncio.run(choose())
    assert walk.view.places["note"].startswith("t-SNE")


def test_a_map_that_is_there_is_not_made_again(source, monkeypatch):
    latents = RawPixels(8).encode(source.images)
    projection = fit_projection(latents, labels=source.labels, method="tsne", seed=0)
    monkeypatch.setattr(maps, "fit_projection", None)
    walk = LatentMap(latents, source, RawPixels(8), components=0, projection=projection)
    assert walk.method == "tsne"
    assert walk.atlas.frame["x"].tolist() == projection.frame["x"].tolist()


def test_overlays_are_placed_by_methods_that_can(walk):
    assert walk.view.about["methods"] == ["pca", "umap"]


def test_fifty_thousand_points_fit_a_stored_notebook(make_pictures):
    source = make_pictures(50_000, 4)
    source.class_names = ["a", "b", "c"]
    walk = LatentMap(torch.randn(50_000, 1, 48), source, RawPixels(4), components=0)
    assert len(walk.still()) < 2e6
    assert len(numbers(walk.view.thumbnails["points"], np.int32)) >= 500


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
