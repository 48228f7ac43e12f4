"""From latents to the loss of a small diffusion model and a card: made once, and comparable."""

import dataclasses
import math

import pytest

from maetok_lab.analysis.card import CardSettings, cards_of
from maetok_lab.data.caching import cached_latents
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.experiments.cards import (
    card_run,
    diffusion_loss,
    generation_scores,
    loss_by_time,
    plain_name,
    trained_card,
)
from maetok_lab.nets import load_net
from maetok_lab.runs import Run
from maetok_lab.tokenizer.foreign import RawPixels
from maetok_lab.training.presets import TOKENIZER_TRAINING

SIZE = 8
SETTINGS = CardSettings(components=(1, 2), dimensions=3, decoded=6, pairs=2, noise_levels=(0.1,))
FLOW = {"num_classes": 3, "num_steps": 4, "precision": "fp32"}  # four steps, saved at their end


@pytest.fixture
def caches(tmp_path, make_pictures):
    """Latents of 40 training and 30 test pictures, as raw pixels."""
    pixels = RawPixels(SIZE)
    return [
        cached_latents(
            pixels, make_pictures(count, SIZE, seed=seed), f"pixels-{seed}", root=tmp_path
        )
        for seed, count in enumerate((40, 30))
    ]


def test_losses_are_by_time_and_trained_once(tmp_path, caches, monkeypatch):
    run = diffusion_loss("flow", "test", *caches, root=tmp_path, **FLOW)
    losses = loss_by_time(run)
    assert losses["loss"] == run.summary["val_loss"]
    assert {name.partition("/")[0] for name in losses} == {"loss"}
    assert len(losses) > 2
    assert run.summary["steps"] == 4
    monkeypatch.setattr(
        "maetok_lab.training.loop.training_step", lambda *_: pytest.fail("it trained again")
    )
    again = diffusion_loss("flow", "test", *caches, root=tmp_path, **FLOW)
    assert loss_by_time(again) == losses
    with pytest.raises(ValueError, match="run pixels-0 has no loss on held-out latents"):
        loss_by_time(Run(tmp_path / "pixels-0"))


@pytest.mark.parametrize(
    "changes", [{}, {"prediction": "data"}, {"prediction": "data", "time_shift": "dimension"}]
)
def test_a_card_has_the_loss_under_any_prediction_and_shift(tmp_path, caches, changes):
    train, test = caches
    trained = diffusion_loss("flow", "test", train, test, root=tmp_path, **FLOW, **changes)
    images = (train, train.labels, test, test.labels)
    settings = dataclasses.replace(SETTINGS, diffusion_steps=4, **changes)
    run = card_run("card", *images, diffusion=trained, settings=settings, root=tmp_path)
    card = cards_of([run])["card"]
    assert card.value["diffusion_loss"] == trained.summary["val_loss"]
    assert "t drawn as in training" in card.attrs["definitions"]["diffusion_loss"]["formula"]


def test_a_card_is_a_run_with_a_file_and_is_made_once(tmp_path, caches, monkeypatch):
    train, test = caches
    trained = diffusion_loss("flow", "test", train, test, root=tmp_path, **FLOW)
    settings = dataclasses.replace(SETTINGS, diffusion_steps=4)
    parts = {
        "tokenizer": RawPixels(SIZE),
        "diffusion": trained,
        "beside": {"psnr": 30.0},
        "settings": settings,
    }
    images = (train, train.labels, test, test.labels)
    with pytest.raises(ValueError, match="the loss after 0 steps, but there were 4"):
        card_run("card", *images, root=tmp_path, **parts | {"settings": SETTINGS})
    run = card_run("card", *images, root=tmp_path, **parts)
    card = cards_of([run])["card"]
    assert card.value["diffusion_loss"] == trained.summary["val_loss"]
    assert card.value["psnr"] == 30
    assert {"psnr_at_noise_0.1", "gmm_nll_2", "probe_top1"} <= set(card.index)
    assert card.attrs["settings"]["diffusion_steps"] == 4
    assert run.summary["probe_top1"] == card.value["probe_top1"]
    assert [parent["run"] for parent in run.provenance["parents"]] == [
        "pixels-0",
        "pixels-1",
        "flow",
    ]
    monkeypatch.setattr(
        "maetok_lab.experiments.cards.diffusability_card",
        lambda *_, **__: pytest.fail("made again"),
    )
    assert card_run("card", *images, root=tmp_path, **parts).folder == run.folder


def test_a_trained_card_has_the_loss_after_the_steps_of_its_settings(tmp_path, caches):
    train, test = caches
    settings = dataclasses.replace(SETTINGS, diffusion_steps=4)

    def made(settings):
        data = (train, train.labels, test, test.labels)
        options = {"labels": "category", "num_classes": 3, "tokenizer": RawPixels(SIZE)}
        return trained_card("pixels-s0", "test", data, settings=settings, root=tmp_path, **options)

    run = made(settings)
    assert run.name == "card-pixels-s0-3d-2026"
    # the same under another prediction and another shift stands beside it
    changed = made(dataclasses.replace(settings, prediction="data", time_shift=2.0))
    assert changed.name == "card-pixels-s0-3d-data-shift-2-2026"
    assert changed.summary["diffusion_loss"] != run.summary["diffusion_loss"]
    with pytest.raises(ValueError, match="with prediction 'velocity', but flow-pixels-s0-c"):
        card_run(
            "card",
            *(train, train.labels, test, test.labels),
            diffusion=Run(tmp_path / "flow-pixels-s0-category-data-shift-2"),
            settings=settings,
            root=tmp_path,
        )
    flow = Run(tmp_path / "flow-pixels-s0-category")
    assert flow.summary["steps"] == 4
    assert run.summary["diffusion_loss"] == flow.summary["val_loss"]
    assert "psnr_at_noise_0.1" in run.summary


def test_with_test_images_and_a_network_a_card_has_grids_and_mixed_latents(
    tmp_path, caches, make_pictures
):
    train, test = caches
    trained = diffusion_loss("flow", "test", train, test, root=tmp_path, **FLOW)
    settings = dataclasses.replace(SETTINGS, diffusion_steps=4, mixed=20, denoised=20, ways=6)
    images = make_pictures(30, SIZE, seed=1)  # those of the test latents
    net = load_net("squeezenet1_1", input_size=32)
    data = (train, train.labels, test, test.labels)
    parts = {"tokenizer": RawPixels(SIZE), "diffusion": trained, "settings": settings}
    run = card_run("card", *data, images=images, net=net, root=tmp_path, **parts)
    card = cards_of([run])["card"]
    stated = card.attrs["definitions"]

    # raw pixels are their own reconstructions, and turn as images do
    (rkid,) = [name for name in card.index if name.startswith("rkid")]
    assert card.value[rkid] < card.value[rkid.replace("rkid", "ikid_gap")]
    assert "20 images" in stated[rkid]["settings"]["protocol"]
    assert math.isnan(card.value["lds"])
    assert "no value" in stated["lds"]["settings"]
    assert 0 < card.value["path_efficiency"] <= 1
    assert stated["path_efficiency"]["settings"] == {"steps": 50, "guidance": "none", "images": 6}
    assert "denoiser_gain_0.95" in card.index
    assert stated["denoiser_loss_linear"]["settings"]["images"] == 20

    # the network is part of what a card is, and parts of it can be left out
    with pytest.raises(ValueError, match="net"):
        card_run("card", *data, images=images, root=tmp_path, **parts)
    parts["settings"] = dataclasses.replace(settings, mixed=0, ways=0)
    run = card_run("less", *data, images=images, net=net, root=tmp_path, **parts)
    assert not {"grid", "interpolation", "paths"} & set(cards_of([run])["less"].group)


def test_a_source_becomes_a_part_of_a_name():
    assert plain_name("diffusers:owner/dc_ae-f32") == "diffusers-owner-dc-ae-f32"
    assert plain_name("tokenizer-tiny-s0-tuned") == "tokenizer-tiny-s0-tuned"
    assert plain_name("/models/mine/") == "models-mine"


def test_a_card_of_other_labels_or_settings_is_another_run(tmp_path, caches):
    train, test = caches
    images = (train, train.labels, test, test.labels)
    run = card_run("card", *images, settings=SETTINGS, root=tmp_path)
    assert "decoder" not in set(cards_of([run])["card"].group)
    with pytest.raises(ValueError, match="made with another config"):
        card_run(
            "card",
            train,
            (train.labels + 1) % 3,
            test,
            test.labels,
            settings=SETTINGS,
            root=tmp_path,
        )
    with pytest.raises(ValueError, match=r"settings\.seed"):
        card_run("card", *images, settings=dataclasses.replace(SETTINGS, seed=1), root=tmp_path)


def test_generation_scores_go_by_the_tokenizer_that_decoded_the_samples(tmp_path):
    assert generation_scores(tmp_path).empty
    training = TOKENIZER_TRAINING["test"]
    for seed, (name, kid) in enumerate({"a": 0.5, "b": 0.25}.items()):
        with Run.open(name, dataclasses.replace(training, seed=seed), root=tmp_path) as tokenizer:
            tokenizer.finish({})
        protocol = EvalProtocol(sampler="euler", steps=4, seed=seed)
        with Run.open(f"evaluation-{name}", protocol, root=tmp_path, parents=[tokenizer]) as run:
            result = EvalResult(
                metrics={"kid_efflite2": kid, "fd_efflite2": 9.0}, protocol=protocol
            )
            result.save(run.folder / "samples-to-test.json")
            run.finish({})
    assert generation_scores(tmp_path).to_dict() == {"kid_efflite2": {"a": 0.5, "b": 0.25}}
    other = EvalResult(
        metrics={"kid_efflite2": 0.1}, protocol=EvalProtocol(sampler="euler", steps=9)
    )
    other.save(tmp_path / "evaluation-b" / "samples-to-test.json")
    with pytest.raises(ValueError, match="different protocols"):
        generation_scores(tmp_path)
    # those of other images do not stand in the way of a tokenizer's own
    actual = generation_scores(tmp_path, tokenizers=["a"])
    assert actual.to_dict() == {"kid_efflite2": {"a": 0.5}}
