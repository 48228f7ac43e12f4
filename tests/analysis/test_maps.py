"""The atlas knows of every point what the source, the overlays and the mixture say."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from maetok_lab.analysis.maps import REAL, class_counts, decode_between, make_atlas, mean_image
from maetok_lab.tokenizer.foreign import RawPixels


@pytest.fixture(scope="module")
def source():
    """Two classes of noisy 8 px images, far apart."""
    labels = torch.arange(60) % 2
    noise = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = labels[:, None, None, None] * 1.6 - 0.8 + 0.1 * noise
    return Pictures(
        images=images,
        labels=labels,
        class_names=["dark", "light"],
        records=pd.DataFrame({"style": ["a", "b", "c"] * 20}),
        batch=lambda rows: (images[rows], labels[rows]),
    )


class Pictures(SimpleNamespace):
    def __len__(self):
        return len(self.labels)


@pytest.fixture(scope="module")
def tokenizer():
    return RawPixels(8)


@pytest.fixture(scope="module")
def latents(source, tokenizer):
    return tokenizer.encode(source.images)


def test_each_point_has_its_class_records_and_component(source, latents):
    frame = make_atlas(latents, source, components=2).frame
    assert frame["class"].tolist() == ["dark", "light"] * 30
    assert frame["style"].tolist() == ["a", "b", "c"] * 20
    assert frame["row"].tolist() == list(range(60))
    assert set(frame["run"]) == {REAL}
    assert pd.crosstab(frame["class"], frame["component"]).to_numpy().max(1).tolist() == [30, 30], (
        "one Gaussian a class"
    )
    assert "component" not in make_atlas(latents, source, components=0).frame


def test_a_part_of_the_rows_keeps_its_place_in_the_source(source, latents):
    atlas = make_atlas(latents, source, components=0, max_rows=20)
    assert len(atlas.frame) == 20
    assert atlas.frame["class"].tolist() == [
        ["dark", "light"][row % 2] for row in atlas.frame["row"]
    ]
    point = 7
    assert torch.equal(atlas.latent(point), latents[atlas.frame["row"][point]])


def test_overlays_lie_on_the_same_map(source, latents):
    atlas = make_atlas(latents, source, overlays={"generated": latents[10:15]}, components=2)
    real, more = (
        atlas.frame[atlas.frame["run"] == REAL],
        atlas.frame[atlas.frame["run"] == "generated"],
    )
    assert len(more) == 5
    np.testing.assert_allclose(more[["x", "y"]], real[["x", "y"]][10:15], atol=1e-5)
    assert set(more["class"]) == {"not known"}
    assert more["component"].tolist() == real["component"].tolist()[10:15]
    assert torch.equal(atlas.latent(62), latents[12])


def test_latents_of_other_images_are_refused(source, latents):
    with pytest.raises(ValueError, match="59 latents for 60 images"):
        make_atlas(latents[:-1], source)


def test_counts_come_most_first():
    counts = class_counts(pd.DataFrame({"class": ["b", "a", "b", "b"]}))
    assert counts.to_dict("list") == {"class": ["b", "a"], "count": [3, 1], "share": [0.75, 0.25]}
    assert len(class_counts(pd.DataFrame({"class": []}))) == 0


def test_the_mean_image_is_of_the_rows(source):
    rows = torch.tensor([1, 4, 9])
    torch.testing.assert_close(mean_image(source, rows), source.images[rows].mean(0))
    torch.testing.assert_close(
        mean_image(source, torch.arange(60), limit=2), source.images[[0, 59]].mean(0)
    )
    with pytest.raises(ValueError, match="a mean image needs at least one row"):
        mean_image(source, torch.tensor([], dtype=torch.long))


def test_the_line_has_both_ends_and_is_straight_for_pixels(source, latents, tokenizer):
    images = decode_between(tokenizer, latents[0], latents[1], steps=5)
    torch.testing.assert_close(images[0], source.images[0].clamp(-1, 1))
    torch.testing.assert_close(images[4], source.images[1].clamp(-1, 1))
    torch.testing.assert_close(images[2], ((source.images[0] + source.images[1]) / 2).clamp(-1, 1))
    with pytest.raises(ValueError, match="two ends, not 1"):
        decode_between(tokenizer, latents[0], latents[1], steps=1)
