"""Training a tokenizer: stopping changes nothing, previews change nothing, bad steps stay out."""

import contextlib
import dataclasses
import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.generation.images import reconstruct
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.autoencoding import TokenizerTask
from maetok_lab.training.optim import NonFiniteTraining, OptimizerConfig
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import train_tokenizer

TOWER = TowerConfig(width=16, depth=2, num_heads=2, drop_path=0.1)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=4,
    num_latent_tokens=4,
    latent_dim=2,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)
AE = TokenizerTraining(
    model=MODEL,
    masking=MaskingConfig(ratio="none"),
    targets=(),
    losses=LossConfig(perceptual="none"),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    num_steps=20,
    batch_size=6,
    ema_decay=0.9,
    precision="fp32",
    log_every=2,
    save_every=9,
)
HOG = (AuxiliaryConfig(tower=dataclasses.replace(TOWER, depth=1)),)
PERCEPTUAL = {"losses.perceptual": "squeezenet"}
MASKED = {"masking.ratio": "uniform", "masking.kind": "block"}
CONFIGS = {
    "ae": AE,
    "kl": override(
        AE, {"model.bottleneck": "kl", "losses.kl_weight": 1e-3, "model.masked": "drop", **MASKED}
    ),
    "hog": dataclasses.replace(AE, masking=MaskingConfig(), targets=HOG, precision="bf16"),
    "preset": override(
        TOKENIZER_TRAINING["test"], {"save_every": 9, "batch_size": 2, **PERCEPTUAL}
    ),
}


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(10, 16)


def train(config, images, run, *, steps: int | None = None, **options) -> list:
    """The records of at most `steps` steps; then the generator is left standing, as by a kill."""
    records = []
    for record in train_tokenizer(config, images, run, cpu=True, **options):
        records.append(record)
        if len(records) == steps:
            break
    return records


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_twenty_steps_equal_nine_a_stop_and_eleven_bit_for_bit(
    assert_same_end, tmp_path, make_pictures, kind
):
    config = CONFIGS[kind]
    images = make_pictures(10, config.model.image_size)
    whole = Run.open("whole", config, root=tmp_path)
    assert [r.step for r in train(config, images, whole)] == list(range(1, 21))
    train(config, images, Run.open("cut", config, root=tmp_path), steps=9)
    resumed = Run.open("cut", config, root=tmp_path)
    assert [r.step for r in train(config, images, resumed)] == list(range(10, 21))
    assert_same_end(whole, resumed)
    groups = {"model", "ema", "optimizer"} | ({"auxiliary"} if config.targets else set())
    assert set(whole.load_checkpoint().tensors) == groups


def test_a_stop_that_is_asked_for_ends_after_the_step_with_a_checkpoint_and_changes_nothing(
    assert_same_end, tmp_path, pictures
):
    whole = Run.open("whole", AE, root=tmp_path)
    train(AE, pictures, whole)
    run, steps = Run.open("stopped", AE, root=tmp_path), []
    for record in train_tokenizer(AE, pictures, run, cpu=True):
        steps.append(record.step)
        if record.step == 5:
            record.stop()
    assert steps == [1, 2, 3, 4, 5]
    assert run.checkpoint_steps() == [5]
    assert not run.finished
    for record in train_tokenizer(AE, pictures, Run.open("stopped", AE, root=tmp_path), cpu=True):
        steps.append(record.step)
        record.stop() if record.step == 20 else None  # too late: the last step finishes the run
    assert steps == list(range(1, 21))
    assert run.finished
    assert_same_end(whole, run)


def test_a_stop_between_checkpoints_does_the_lost_steps_again_and_logs_them_once(
    assert_same_end, tmp_path, pictures
):
    config = override(AE, {"num_steps": 8, "save_every": 3})
    whole, cut = (Run.open(name, config, root=tmp_path) for name in ("whole", "cut"))
    train(config, pictures, whole)
    train(config, pictures, cut, steps=5)
    assert cut.metrics()["step"].tolist() == [2, 4]
    assert train(config, pictures, cut)[0].step == 4
    assert cut.metrics()["step"].tolist() == [2, 4, 6, 8]
    assert_same_end(whole, cut)


def test_a_stop_after_the_last_step_only_has_to_be_finished(tmp_path, pictures):
    config = override(AE, {"num_steps": 3})
    run = Run.open("a", config, root=tmp_path)
    train(config, pictures, run, steps=3)
    assert not run.finished
    assert train(config, pictures, run) == []
    assert run.finished
    assert train(config, pictures, Run(run.folder)) == []


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    assert_same_end, tmp_path, pictures
):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(runs))
        torch.rand(3)
        config = dataclasses.replace(CONFIGS["hog"], seed=seed, num_steps=6)
        runs.append(Run.open(name, config, root=tmp_path))
        train(config, pictures, runs[-1])
    assert_same_end(runs[0], runs[1])
    assert runs[2].metrics()["pixel"].tolist() != runs[0].metrics()["pixel"].tolist()


# What it does -------------------------------------------------------------------------------------


def test_the_loss_falls_on_eight_images(tmp_path, make_pictures):
    images = make_pictures(8, 64)
    images.images = open_images("emoji", split="val", image_size=64).batch(range(8))[0]
    changes = {
        "num_steps": 40,
        "log_every": 1,
        "save_every": 100,
        "precision": "fp32",
        "masking.ratio": "none",
    }
    config = override(TOKENIZER_TRAINING["test"], changes)
    run = Run.open("a", config, root=tmp_path)
    train(config, images, run)
    table = run.metrics("train")
    assert table["pixel"].iloc[-1] < 0.35 * table["pixel"].iloc[0]
    assert table["auxiliary/hog"].iloc[-1] < 0.8 * table["auxiliary/hog"].iloc[0]
    assert run.summary["pixel"] == table["pixel"].iloc[-1]
    assert run.summary["images"] == 320


def test_a_record_says_how_far_it_is_and_has_losses_when_they_are_logged(tmp_path, pictures):
    config = dataclasses.replace(CONFIGS["kl"], num_steps=5, targets=HOG)
    records = train(config, pictures, Run.open("a", config, root=tmp_path))
    assert [(r.step, r.num_steps, r.images) for r in records] == [
        (s, 5, 6 * s) for s in range(1, 6)
    ]
    assert [r.losses is not None for r in records] == [False, True, False, True, True]
    assert set(records[-1].losses) == {"pixel", "kl", "auxiliary/hog"}


def test_previews_are_written_and_scored_and_change_nothing(tmp_path, pictures, make_pictures):
    config = override(AE, {"num_steps": 6, "picture_every": 4})
    plain, shown = (Run.open(name, config, root=tmp_path) for name in ("plain", "shown"))
    train(config, pictures, plain)
    records = train(config, pictures, shown, preview=make_pictures(20, 16, seed=1))
    assert [r.picture is not None for r in records] == [False, False, False, True, False, True]
    assert {r.picture for r in records if r.picture} == {
        str(shown.sample_path(4)),
        str(shown.sample_path(6)),
    }
    assert shown.sample_path(6).exists()
    decibels = shown.metrics("val")["psnr"]
    assert len(decibels) == 2
    assert decibels.between(1, 20).all()
    for name, value in plain.load_checkpoint().tensors["model"].items():
        assert torch.equal(shown.load_checkpoint().tensors["model"][name], value)


def test_the_preview_scores_the_averaged_weights(tmp_path, pictures):
    config = override(AE, {"num_steps": 4, "picture_every": 4})
    run = Run.open("a", config, root=tmp_path)
    train(config, pictures, run, preview=pictures)
    tokenizer = Tokenizer(MODEL).eval()
    tokenizer.load_state_dict(run.load_checkpoint().tensors["ema"])
    # the number of `evaluation`, not one like it
    expected = psnr(reconstruct(tokenizer, pictures.images), pictures.images).mean().item()
    assert run.metrics("val")["psnr"].item() == expected


def test_the_psnr_of_a_preview_without_error_is_infinite(tmp_path, pictures):
    # a formula of its own, which clamped errors at 1e-12, gave 168.13 dB
    logged = []
    run = SimpleNamespace(log=logged.append, sample_path=lambda step: tmp_path / f"{step}.png")
    task = TokenizerTask(override(AE, {"num_steps": 4}), pictures, preview=pictures)
    task.autocast = contextlib.nullcontext()
    task.picture({"ema": SimpleNamespace(module=torch.nn.Identity())}, 4, run)
    assert [record["psnr"] for record in logged] == [math.inf]


# Bad steps ----------------------------------------------------------------------------------------


def poisoned(pictures, calls: set[int]):
    """The same pictures, but NaN on the given calls of `batch`."""
    count, batch = [], pictures.batch

    def poisoned_batch(*args, **kwargs):
        images, labels = batch(*args, **kwargs)
        count.append(None)
        return (images * torch.nan if len(count) - 1 in calls else images), labels

    pictures.batch = poisoned_batch
    return pictures


def test_a_step_without_a_finite_loss_is_skipped_counted_and_never_reaches_the_weights(
    tmp_path, pictures
):
    config = override(CONFIGS["hog"], {"num_steps": 8, "save_every": 1, "log_every": 1})
    run = Run.open("a", config, root=tmp_path)
    found = {}
    for record in train_tokenizer(config, poisoned(pictures, {2, 3, 6}), run, cpu=True):
        found[record.step] = run.load_checkpoint()
    for step in (3, 4, 7):  # the third, fourth and seventh step
        # averages go on towards weights that did not move
        for group in ("model", "auxiliary", "optimizer"):
            for name, value in found[step].tensors[group].items():
                assert torch.equal(value, found[step - 1].tensors[group][name]), name
    assert not torch.equal(*(found[s].tensors["model"]["to_pixels.weight"] for s in (4, 5)))
    assert all(
        value.isfinite().all() for group in found[8].tensors.values() for value in group.values()
    )
    assert [found[step].state["skipped"] for step in range(1, 9)] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert run.summary["skipped"] == 3
    assert run.metrics("train")["pixel"].isna().tolist() == [
        step in (3, 4, 7) for step in range(1, 9)
    ]


def test_five_bad_steps_in_a_row_end_the_training_and_name_step_and_terms(tmp_path, pictures):
    config = CONFIGS["hog"]
    run = Run.open("a", config, root=tmp_path)
    source = poisoned(pictures, set(range(7, 99)))
    with pytest.raises(
        NonFiniteTraining, match=r"later than step 12, had .*\{'pixel': nan, 'auxiliary/hog': nan\}"
    ):
        train(config, source, run)
    assert all(value.isfinite().all() for value in run.load_checkpoint().tensors["model"].values())
    assert not run.finished


# Errors -------------------------------------------------------------------------------------------


def test_images_that_are_not_the_configs_are_one_clear_line_and_write_nothing(
    tmp_path, pictures, make_pictures
):
    bound = dataclasses.replace(AE, images=pictures.fingerprint)
    run = Run.open("a", bound, root=tmp_path)
    with pytest.raises(
        ValueError, match="the tokenizer takes images of 16 px, the source gives 32 px"
    ):
        train(bound, make_pictures(10, 32), run)
    with pytest.raises(
        ValueError, match="configured for images pictures-10-16-0, but these are pictures-10-16-5"
    ):
        train(bound, make_pictures(10, 16, seed=5), run)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "config.json",
        "lock",
        "provenance.json",
    ]
    assert len(train(bound, pictures, run, steps=1)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps and batch_size must be at least 1, not 0 and 6"),
        ({"batch_size": 0}, "num_steps and batch_size must be at least 1, not 20 and 0"),
        ({"targets": HOG * 2}, r"each target can be asked for once, not \['hog', 'hog'\]"),
        ({"trains": "decoder"}, "decoder tuning needs a parent run and has no auxiliary targets"),
    ],
)
def test_a_training_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(AE, changes)


def test_a_damaged_newest_checkpoint_costs_steps_but_changes_nothing(
    assert_same_end, tmp_path, pictures
):
    config = override(AE, {"num_steps": 5, "save_every": 2})
    whole, cut = (Run.open(name, config, root=tmp_path) for name in ("whole", "cut"))
    train(config, pictures, whole)
    train(config, pictures, cut, steps=4)
    (cut.folder / "checkpoints" / "step-0000004" / "optimizer.safetensors").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train(config, pictures, cut)[0].step == 3
    assert any("step-0000004/optimizer.safetensors is damaged" in str(w.message) for w in caught)
    assert_same_end(whole, cut)
