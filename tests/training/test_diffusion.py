"""Training a diffusion transformer: stopping and drawing samples change nothing, bad caches are
refused.
"""

import signal

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.config import from_json, override, to_json
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.evaluation.sample_sets import sampling_options, sampling_protocol
from maetok_lab.generation.images import generate
from maetok_lab.identity import fingerprint
from maetok_lab.pictures import image_grid
from maetok_lab.runs import Run
from maetok_lab.training import loop
from maetok_lab.training.diffusion import DiffusionTask, DiffusionTraining, train_diffusion
from maetok_lab.training.presets import DIFFUSION_TRAINING, diffusion_training


def train(config, latents, run, *, steps: int | None = None, **options) -> list:
    """The records of at most `steps` steps; then the generator is left standing, as by a kill."""
    records = []
    for record in train_diffusion(config, latents, run, cpu=True, **options):
        records.append(record)
        if len(records) == steps:
            break
    return records


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch's RMSNorm says it is slow so
def test_twenty_steps_equal_nine_a_stop_and_eleven_bit_for_bit(
    assert_same_end, tmp_path, cache, diffusion_config
):
    whole = Run.open("whole", diffusion_config, root=tmp_path)
    assert [r.step for r in train(diffusion_config, cache, whole, validation=cache)] == list(
        range(1, 21)
    )
    train(diffusion_config, cache, Run.open("cut", diffusion_config, root=tmp_path), steps=9)
    resumed = Run.open("cut", diffusion_config, root=tmp_path)
    assert [r.step for r in train(diffusion_config, cache, resumed, validation=cache)] == list(
        range(10, 21)
    )
    assert_same_end(whole, resumed)
    checkpoint = whole.load_checkpoint()
    assert set(checkpoint.tensors) == {"model", "optimizer", "ema-0.9", "ema-0.5"}
    assert checkpoint.state == {"skipped": 0, "num_tokens": 4, "latent_dim": 3, "num_classes": 3}


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_stop_that_is_asked_for_ends_after_the_step_with_a_checkpoint_and_changes_nothing(
    assert_same_end, tmp_path, cache, sit
):
    whole = Run.open("whole", sit, root=tmp_path)
    train(sit, cache, whole, validation=cache)
    run = Run.open("stopped", sit, root=tmp_path)
    for record in train_diffusion(sit, cache, run, cpu=True):
        if record.step == 5:
            record.stop()
    assert record.step == 5
    assert run.checkpoint_steps() == [5]
    assert not run.finished
    resumed = Run.open("stopped", sit, root=tmp_path)
    assert [r.step for r in train(sit, cache, resumed, validation=cache)] == list(range(6, 21))
    assert_same_end(whole, resumed)


def interrupted(training, *, at: int) -> list[int]:
    """The steps of a training that hears ^C during step `at`, and raises it after that one."""
    steps = []

    def go_on() -> None:
        for record in training:
            steps.append(record.step)
            if record.step == at:
                signal.raise_signal(signal.SIGINT)

    # Python ignores it where a shell started it in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        go_on()
    return steps


def test_a_signal_ends_a_training_after_its_step_and_is_passed_on(
    assert_same_end, tmp_path, cache, sit
):
    config = override(sit, {"num_steps": 8, "save_every": 100})
    whole, cut = (Run.open(name, config, root=tmp_path) for name in ("whole", "cut"))
    train(config, cache, whole)
    steps = interrupted(train_diffusion(config, cache, cut, cpu=True), at=3)
    assert steps == [1, 2, 3]
    assert cut.checkpoint_steps() == [3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(config, cache, cut)[0].step == 4
    assert_same_end(whole, cut)


def test_a_signal_in_the_last_step_is_passed_on_too_and_a_second_one_does_not_wait(
    tmp_path, cache, sit
):
    config = override(sit, {"num_steps": 2})
    run = Run.open("last", config, root=tmp_path)
    assert interrupted(train_diffusion(config, cache, run, cpu=True), at=2) == [1, 2]
    assert run.finished
    run = Run.open("twice", config, root=tmp_path)
    steps = train_diffusion(config, cache, run, cpu=True)
    next(steps)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    steps.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_is_written_after_some_minutes_too_and_judged_by_nobody(tmp_path, cache, sit):
    config = override(sit, {"num_steps": 4, "save_every": 3, "save_minutes": 1e-9})
    judged = []
    task = DiffusionTask(config, cache)
    run = Run.open("timed", config, root=tmp_path)
    for _ in loop.train(task, run, cpu=True, stop_when=lambda run: judged.append(run.finished)):
        pass
    # the newest two are kept; which ones a condition sees depends on steps alone: 3, and the last
    assert run.checkpoint_steps() == [3, 4]
    assert len(judged) == 2
    with pytest.raises(ValueError, match="save_minutes must be above 0, not 0"):
        override(sit, {"save_minutes": 0.0})


def test_a_stop_between_checkpoints_logs_nothing_twice(assert_same_end, tmp_path, cache, sit):
    config = override(sit, {"num_steps": 8, "save_every": 3})
    whole, cut = (Run.open(name, config, root=tmp_path) for name in ("whole", "cut"))
    train(config, cache, whole)
    train(config, cache, cut, steps=5)
    assert train(config, cache, cut)[0].step == 4
    assert_same_end(whole, cut)
    assert train(config, cache, cut) == []


def test_a_kill_between_the_validation_and_the_summary_logs_it_once(
    tmp_path, cache, sit, monkeypatch
):
    config = override(sit, {"num_steps": 2})
    run = Run.open("a", config, root=tmp_path)

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, cache, run, validation=cache)
    monkeypatch.undo()
    assert train(config, cache, run, validation=cache) == []
    assert len(run.metrics("val")) == 1
    assert run.finished


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    assert_same_end, tmp_path, cache, sit
):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(runs))
        config = override(sit, {"seed": seed, "num_steps": 6})
        runs.append(Run.open(name, config, root=tmp_path))
        train(config, cache, runs[-1])
    assert_same_end(runs[0], runs[1])
    assert runs[2].metrics()["loss"].tolist() != runs[0].metrics()["loss"].tolist()


# Samples, unconditional models, compilation -------------------------------------------------------


class Decoder(torch.nn.Module):
    """What draws latents (B, 4, 3) as pictures of 2 x 2 pixels."""

    fingerprint = "weights"

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.transpose(1, 2).unflatten(2, (2, 2))


def test_samples_of_fixed_seeds_are_written_at_intervals_and_change_nothing(
    assert_same_end, tmp_path, cache, sit
):
    config = override(sit, {"num_steps": 5, "picture_every": 2})
    plain, drawn = (Run.open(name, config, root=tmp_path) for name in ("plain", "drawn"))
    train(config, cache, plain)
    records = train(config, cache, drawn, tokenizer=Decoder())
    assert [record.step for record in records if record.picture] == [2, 4, 5]
    assert sorted(p.name for p in (drawn.folder / "samples").iterdir()) == [
        f"step-{s:07d}.png" for s in (2, 4, 5)
    ]
    assert_same_end(plain, drawn)
    other = Decoder()
    other.fingerprint = "others"
    with pytest.raises(
        ValueError, match="the latent space belongs to tokenizer weights, not to others"
    ):
        train(config, cache, Run.open("other", config, root=tmp_path), tokenizer=other)


def test_an_unconditional_model_trains_on_labelled_latents(tmp_path, cache, sit):
    config = override(sit, {"num_steps": 3, "num_classes": 0})
    run = Run.open("a", config, root=tmp_path)
    train(config, cache, run, validation=cache, tokenizer=Decoder())
    assert run.load_checkpoint().tensors["model"]["y_embedder.embedding_table.weight"].shape == (
        1,
        16,
    )
    assert run.summary["val_loss"] > 0


def test_compiling_is_in_place_and_leaves_the_names_alone(tmp_path, cache, sit, monkeypatch):
    wrapped = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: wrapped.append(module))
    config = override(sit, {"num_steps": 1})
    for name, asked in (("plain", False), ("compiled", True)):
        run = Run.open(name, override(config, {"compile": asked}), root=tmp_path)
        train(override(config, {"compile": asked}), cache, run)
        assert len(wrapped) == asked
        assert "x_embedder.weight" in run.load_checkpoint().tensors["model"]


def test_a_batch_in_parts_gives_the_losses_and_weights_of_the_whole(tmp_path, cache, sit):
    runs = []
    for parts in (1, 2, 4):
        config = override(sit, {"accumulate": parts, "num_steps": 6, "log_every": 1})
        runs.append(Run.open(f"in-{parts}", config, root=tmp_path))
        train(config, cache, runs[-1])
    whole, *others = runs
    for run in others:
        assert run.fingerprint == whole.fingerprint
        difference = run.metrics("train")["loss"] - whole.metrics("train")["loss"]
        assert difference.abs().max() < 1e-5
        tensors = run.load_checkpoint().tensors["model"]
        for name, value in whole.load_checkpoint().tensors["model"].items():
            assert (tensors[name] - value).abs().max() < 1e-4, name
    with pytest.raises(ValueError, match="a batch of 8 cannot be split into accumulate=3 equal"):
        override(sit, {"accumulate": 3})


# Prediction and time shift ------------------------------------------------------------------------


def test_a_training_of_velocities_without_a_shift_keeps_its_fingerprint(sit):
    # of commit 62983de
    assert fingerprint(sit) == "b5553cc0e95a2375"
    for change in ({"prediction": "data"}, {"time_shift": 2}, {"time_shift": "dimension"}):
        changed = override(sit, change)
        assert fingerprint(changed) != fingerprint(sit)
        assert from_json(DiffusionTraining, to_json(changed)) == changed
    before = to_json(sit)
    del before["prediction"], before["time_shift"]
    assert from_json(DiffusionTraining, before) == sit


def test_a_trained_model_comes_back_with_its_prediction_and_shift(tmp_path, cache, sit):
    drawn = []
    for changes in ({}, {"prediction": "data", "time_shift": "dimension"}):
        config = override(sit, {"num_steps": 5, "ema_decays": (0.0,)} | changes)
        run = Run.open(f"run-{len(drawn)}", config, root=tmp_path)
        train(config, cache, run, tokenizer=Decoder())
        model = load_diffusion(run.folder)
        told = (model.trained_prediction, model.trained_shift)
        assert told == (("data", (12 / 4096) ** 0.5) if changes else ("velocity", None))
        protocol = sampling_protocol(run, steps=25)
        assert protocol.time_shift == model.trained_shift

        # the pictures on the way are drawn as the loaded model draws
        labels = torch.linspace(0, 2, 16).long()
        drawing = sampling_options(protocol) | {"precision": "fp32"}
        images = generate(model, Decoder(), cache.space, labels, **drawing)
        drawn.append(image_grid(images, columns=8))
        picture = Image.open(run.folder / "samples" / "step-0000005.png")
        small = picture.resize(drawn[-1].shape[1::-1], Image.NEAREST)
        assert np.abs(np.asarray(small).astype(int) - np.asarray(drawn[-1])).max() <= 1
    assert not np.array_equal(*drawn)


def test_a_notebooks_changes_reach_prediction_and_shift(cache):
    changes = {"prediction": "data", "time_shift": "dimension"}
    config = diffusion_training("test", cache, num_classes=3, architecture="sit")
    changed = override(config, changes)
    assert changed == diffusion_training(
        "test", cache, num_classes=3, architecture="sit", **changes
    )
    assert (changed.prediction, changed.time_shift) == ("data", "dimension")


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": "another"}, "the run was configured for latent cache another, but this is"),
        ({"tokenizer": "others"}, "these latents belong to tokenizer weights, not to others"),
        ({"num_classes": 2}, "the cache has labels 0 .. 2, but num_classes is 2"),
    ],
)
def test_another_cache_than_the_configs_is_one_clear_line_and_writes_nothing(
    tmp_path, cache, sit, changes, message
):
    config = override(sit, changes)
    run = Run.open("a", config, root=tmp_path)
    with pytest.raises(ValueError, match=message):
        train(config, cache, run)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "config.json",
        "lock",
        "provenance.json",
    ]
    bound = override(sit, {"latents": cache.fingerprint, "tokenizer": "weights"})
    DiffusionTask(bound, cache).check()


def test_a_cache_with_negative_labels_is_refused(make_cache, sit):
    latents = make_cache()
    latents.labels[3] = -1
    with pytest.raises(ValueError, match=r"the cache has labels -1 .. 2, but num_classes is 3"):
        DiffusionTask(sit, latents).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps and batch_size must be at least 1, not 0 and 8"),
        ({"class_dropout": 1.0}, r"class_dropout must be in \[0, 1\), not 1.0"),
        ({"ema_decays": ()}, "need at least one ema_decay: sampling uses the averaged weights"),
        ({"time_shift": 0}, r"time_shift must be above 0 \(1 is none\), not 0"),
        ({"prediction": "noise"}, r"prediction must be one of \['velocity', 'data'\], not 'noise'"),
    ],
)
def test_a_training_that_cannot_be_is_refused(sit, changes, message):
    with pytest.raises(ValueError, match=message):
        override(sit, changes)


def test_presets_are_bound_to_their_cache(cache):
    for preset in DIFFUSION_TRAINING:
        config = diffusion_training(preset, cache, num_classes=3)
        assert (config.latents, config.tokenizer, config.model) == (
            cache.fingerprint,
            "weights",
            DIFFUSION[preset],
        )
    assert diffusion_training("test", cache, num_classes=3, seed=7, precision="fp32").seed == 7
    sit = diffusion_training("test", cache, num_classes=3, architecture="sit", direction_weight=0.5)
    assert (sit.model.norm, sit.model.positions, sit.direction_weight) == (
        "layernorm",
        "sincos",
        0.5,
    )
    with pytest.raises(ValueError, match="unknown architecture 'sitt'"):
        diffusion_training("test", cache, num_classes=3, architecture="sitt")
    with pytest.raises(ValueError, match=r"unknown preset 'tinny'; did you mean 'tiny'\?"):
        diffusion_training("tinny", cache, num_classes=3)
