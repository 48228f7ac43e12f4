"""The atlas knows of every point what the source, the overlays and the mixture say."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from maetok_lab.analysis.maps import (
    REAL,
    class_counts,
    decode_between,
    decoded_psnr,
    make_atlas,
    mean_image,
    velocity_losses,
)
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.rng import generator
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


def test_decoded_psnr_is_that_of_each_latents_own_image(make_pictures):
    source = make_pictures(70, 8)
    tokenizer = RawPixels(8)
    latents = tokenizer.encode(source.images)
    latents[3] += 0.1
    scores = decoded_psnr(latents, source, tokenizer)
    assert scores.shape == (70,)
    decoded = tokenizer.decode(latents[3:4])
    assert scores[3] == pytest.approx(psnr(decoded, source.images[3:4]).item())
    assert scores[[*range(3), *range(4, 70)]].min() == 100.0  # no error at all


def test_velocity_losses_are_each_latents_own_whatever_the_batch():
    torch.manual_seed(0)
    model = DiffusionTransformer(DIFFUSION["test"], num_tokens=4, latent_dim=2, num_classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents = torch.randn(10, 4, 2)
    labels = torch.arange(10) % 3
    losses = velocity_losses(model.eval(), latents, labels, times=2)
    assert losses.shape == (10,)
    torch.testing.assert_close(
        velocity_losses(model, latents, labels, times=2, batch_size=3), losses
    )
    expected = 0
    for step, t in enumerate((0.25, 0.75)):
        noise = torch.randn(4, 2, generator=generator(0, "velocity losses", step))[None]
        with torch.inference_mode():
            x_t = (1 - t) * latents[5:6] + t * noise
            velocity = model(x_t, torch.tensor([t]), labels[5:6])
        expected += (velocity - (noise - latents[5:6])).square().mean() / 2
    assert losses[5] == pytest.approx(expected.item(), rel=1e-5)


def test_the_velocity_losses_of_a_data_prediction_are_clipped_as_its_velocity_is():
    model = DiffusionTransformer(DIFFUSION["test"], num_tokens=4, latent_dim=2, num_classes=3)
    model.set_training("linear", "data")
    latents = torch.randn(3, 4, 2, generator=generator(0, "latents"))
    losses = velocity_losses(model.eval(), latents, torch.arange(3), times=20)
    # a fresh network's estimate is zero
    times = (torch.arange(20) + 0.5) / 20
    share = (1 / times.clamp(min=0.05).square()).mean()
    torch.testing.assert_close(losses, share * latents.square().mean((1, 2)), rtol=1e-4, atol=0)
