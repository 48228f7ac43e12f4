"""Training a diffusion transformer: stopping changes nothing, processes share the work, bad caches are refused."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maetok_lab.config import override
from maetok_lab.data.latents import LatentCaching, LatentDataset, LatentSpace, write_latents
from maetok_lab.diffusion.model import DIFFUSION, DiffusionConfig
from maetok_lab.diffusion.path import velocity_loss
from maetok_lab.runs import Run
from maetok_lab.training.common import Guard, NonFiniteTraining, OptimizerConfig, make_engine
from maetok_lab.training.diffusion import (
    DiffusionTraining,
    by_time,
    check_latents,
    start,
    train_diffusion,
    training_step,
    validation_loss,
)
from maetok_lab.training.presets import DIFFUSION_TRAINING, diffusion_training
from maetok_lab.training.records import StepRecord

SIT = DiffusionTraining(
    model=DiffusionConfig(width=16, depth=1, num_heads=2), num_classes=3, num_steps=20, batch_size=8,
    ema_decays=(0.9, 0.5), optimizer=OptimizerConfig(learning_rate=1e-3), precision="fp32", log_every=2, save_every=9,
)  # fmt: skip
LIGHTNING = {"norm": "rmsnorm", "mlp": "swiglu", "positions": "rope", "qk_norm": True}
CONFIGS = {
    "sit": SIT,
    "lightningdit": dataclasses.replace(
        SIT,
        model=override(SIT.model, LIGHTNING),
        path="cosine",
        optimizer=OptimizerConfig(name="muon"),
        precision="bf16",
    ),
}


class Averages(torch.nn.Module):
    """An encoder: the 2 x 2 patches of a picture, averaged, as 4 tokens of 3 channels."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def make_cache(make_pictures, tmp_path_factory):
    """`make_cache(count, seed)`: a finished latent cache of random pictures with three classes."""

    def make(count: int = 12, seed: int = 0) -> LatentDataset:
        images = make_pictures(count, 8, seed=seed)
        config = LatentCaching(tokenizer="weights", images=images.fingerprint, dtype="fp32")
        run = Run.open("cache", config, root=tmp_path_factory.mktemp("cache"))
        list(write_latents(Averages(), images, config, run, device=torch.device("cpu")))
        return LatentDataset(run)

    return make


@pytest.fixture(scope="module")
def cache(make_cache) -> LatentDataset:
    return make_cache()


def train(config, latents, run, *, steps: int | None = None, **options) -> list:
    """The records of at most `steps` steps; then the generator is left standing, as by a kill."""
    records = []
    for record in train_diffusion(config, latents, run, cpu=True, **options):
        records.append(record)
        if len(records) == steps:
            break
    return records


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMSNorm says it is slow so
@pytest.mark.parametrize("kind", CONFIGS)
def test_twenty_steps_equal_nine_a_stop_and_eleven_bit_for_bit(assert_same_end, tmp_path, cache, kind):
    config = CONFIGS[kind]
    whole = Run.open("whole", config, root=tmp_path)
    assert [r.step for r in train(config, cache, whole, validation=cache)] == list(range(1, 21))
    train(config, cache, Run.open("cut", config, root=tmp_path), steps=9)
    resumed = Run.open("cut", config, root=tmp_path)
    assert [r.step for r in train(config, cache, resumed, validation=cache)] == list(range(10, 21))
    assert_same_end(whole, resumed)
    checkpoint = whole.load_checkpoint()
    assert set(checkpoint.tensors) == {"model", "optimizer", "ema-0.9", "ema-0.5"}
    assert checkpoint.state == {"skipped": 0, "num_tokens": 4, "latent_dim": 3, "num_classes": 3}


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_stop_that_is_asked_for_ends_after_the_step_with_a_checkpoint_and_changes_nothing(assert_same_end, tmp_path, cache):
    config = next(iter(CONFIGS.values()))
    whole = Run.open("whole", config, root=tmp_path)
    train(config, cache, whole, validation=cache)
    run = Run.open("stopped", config, root=tmp_path)
    for record in train_diffusion(config, cache, run, cpu=True):
        if record.step == 5:
            record.stop()
    assert record.step == 5
    assert run.checkpoint_steps() == [5]
    assert not run.finished
    resumed = Run.open("stopped", config, root=tmp_path)
    assert [r.step for r in train(config, cache, resumed, validation=cache)] == list(range(6, 21))
    assert_same_end(whole, resumed)


def test_a_step_among_several_processes_does_not_stop_alone():
    record = StepRecord(5, 20, 100)
    record.stop()
    assert record.stops(1)
    assert not record.stops(2)
    last = StepRecord(20, 20, 100)
    last.stop()
    assert not last.stops(1)


def test_a_stop_between_checkpoints_logs_nothing_twice(assert_same_end, tmp_path, cache):
    config = override(SIT, {"num_steps": 8, "save_every": 3})
    whole, cut = (Run.open(name, config, root=tmp_path) for name in ("whole", "cut"))
    train(config, cache, whole)
    train(config, cache, cut, steps=5)
    assert train(config, cache, cut)[0].step == 4
    assert_same_end(whole, cut)
    assert train(config, cache, cut) == []


def test_a_kill_between_the_validation_and_the_summary_logs_it_once(tmp_path, cache, monkeypatch):
    config = override(SIT, {"num_steps": 2})
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


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(assert_same_end, tmp_path, cache):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(runs))
        config = override(SIT, {"seed": seed, "num_steps": 6})
        runs.append(Run.open(name, config, root=tmp_path))
        train(config, cache, runs[-1])
    assert_same_end(runs[0], runs[1])
    assert runs[2].metrics()["loss"].tolist() != runs[0].metrics()["loss"].tolist()


def test_the_loss_falls_on_eight_latents(tmp_path, make_cache):
    latents = make_cache(8)
    changes = {"num_steps": 250, "batch_size": 32, "log_every": 50, "save_every": 999, "model.width": 32}
    changes |= {"optimizer.learning_rate": 1e-2, "time_sampling": "uniform", "ema_decays": (0.98,)}
    config = override(SIT, changes)
    run = Run.open("a", config, root=tmp_path)
    train(config, latents, run, validation=latents)
    assert run.summary["val_loss"] < 1.45  # 2 for a velocity of zero: data and noise have variance 1
    assert run.summary["steps"] == 250
    assert run.summary["images"] == 8000


def test_the_first_loss_is_that_of_a_velocity_of_zero_by_quarters_of_time(tmp_path, cache):
    config = override(SIT, {"num_steps": 1, "batch_size": 256})
    run = Run.open("a", config, root=tmp_path)
    losses = train(config, cache, run)[0].losses
    assert losses["loss"] == pytest.approx(2.0, abs=0.1)
    assert set(losses) == {"loss", "loss/t0.00", "loss/t0.25", "loss/t0.50", "loss/t0.75"}
    found = by_time(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
    assert found == {"loss": 3.0, "loss/t0.00": 2.0, "loss/t0.75": 5.0}


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (0.25, 0.25)])
def test_classes_are_dropped_as_often_as_asked_and_views_are_drawn_evenly(tmp_path, cache, monkeypatch, dropout, share):
    seen, views = [], []

    def spy(model, x, labels, **options):
        seen.append(labels)
        return velocity_loss(model, x, labels, **options)

    monkeypatch.setattr("maetok_lab.training.diffusion.velocity_loss", spy)
    spied = SimpleNamespace(**{n: getattr(cache, n) for n in ("num_tokens", "latent_dim", "views", "labels", "space", "place")})

    def batch(indices, *, view=0):
        views.append(torch.as_tensor(view).expand(len(indices)))
        return cache.batch(indices, view=view)

    class Spied(SimpleNamespace):
        def __len__(self):
            return len(cache)

    spied = Spied(**vars(spied), batch=batch)
    config = override(SIT, {"class_dropout": dropout, "num_steps": 4, "batch_size": 500})
    train(config, spied, Run.open("a", config, root=tmp_path))
    labels = torch.cat(seen)
    assert (labels == 3).float().mean().item() == pytest.approx(share, abs=0.04)
    assert (torch.bincount(labels, minlength=4)[:3] / len(labels) - (1 - share) / 3).abs().max() < 0.04
    assert torch.cat(views[1:]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_validation_normalises_with_the_training_statistics_and_has_fixed_draws(cache):
    seen = []

    class Zero(torch.nn.Module):
        def forward(self, x_t, t, labels):
            seen.append(labels)
            return torch.zeros_like(x_t)

    first, again = (validation_loss(SIT, Zero(), cache, cache.space) for _ in range(2))
    assert first == again
    scaled = LatentSpace("weights", cache.space.mean, cache.space.std / 3)
    assert validation_loss(SIT, Zero(), cache, scaled)["loss"] > 3 * first["loss"]
    assert torch.equal(seen[0], cache.labels)  # no class is dropped
    assert len(seen) == 12


# Bad steps ------------------------------------------------------------------------------------------------------------


class Poisoned:
    """A cache whose batches are NaN from one call of `batch` on, for so many calls."""

    def __init__(self, latents: LatentDataset, first: int, count: int):
        self.latents, self.calls, self.bad = latents, -1, range(first, first + count)

    def __getattr__(self, name):
        return getattr(self.latents, name)

    def __len__(self):
        return len(self.latents)

    def batch(self, indices, *, view=0):
        self.calls += 1
        x, labels = self.latents.batch(indices, view=view)
        return (x * torch.nan if self.calls in self.bad else x), labels


def test_a_step_without_a_finite_loss_is_skipped_counted_and_never_reaches_the_weights(tmp_path, cache):
    config = override(SIT, {"num_steps": 6, "save_every": 1})
    run = Run.open("a", config, root=tmp_path)
    found = {}
    poisoned = Poisoned(cache, 3, 2)  # call 0 checks the cache: these are the third and the fourth step
    for record in train_diffusion(config, poisoned, run, cpu=True):
        found[record.step] = run.load_checkpoint()
    for step in (3, 4):
        for group, tensors in found[step].tensors.items():
            for name, value in tensors.items():
                assert torch.equal(value, found[step - 1].tensors[group][name]), name
    assert not torch.equal(*(found[step].tensors["model"]["final_layer.linear.bias"] for step in (4, 5)))
    assert run.summary["skipped"] == 2
    assert all(value.isfinite().all() for group in found[6].tensors.values() for value in group.values())


def test_five_bad_steps_in_a_row_end_the_training_and_name_step_and_term(tmp_path, cache):
    run = Run.open("a", SIT, root=tmp_path)
    with pytest.raises(NonFiniteTraining, match=r"5 steps in a row up to step 13 .*\{'velocity': nan\}"):
        train(SIT, Poisoned(cache, 10, 99), run)
    assert run.checkpoint_steps() == [9]


# Samples, unconditional models, compilation ---------------------------------------------------------------------------


class Decoder(torch.nn.Module):
    """What draws latents (B, 4, 3) as pictures of 2 x 2 pixels."""

    fingerprint = "weights"

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.transpose(1, 2).unflatten(2, (2, 2))


def test_samples_of_fixed_seeds_are_written_at_intervals_and_change_nothing(assert_same_end, tmp_path, cache):
    config = override(SIT, {"num_steps": 5, "picture_every": 2})
    plain, drawn = (Run.open(name, config, root=tmp_path) for name in ("plain", "drawn"))
    train(config, cache, plain)
    records = train(config, cache, drawn, tokenizer=Decoder())
    assert [record.step for record in records if record.picture] == [2, 4, 5]
    assert sorted(p.name for p in (drawn.folder / "samples").iterdir()) == [f"step-{s:07d}.png" for s in (2, 4, 5)]
    assert_same_end(plain, drawn)
    other = Decoder()
    other.fingerprint = "others"
    with pytest.raises(ValueError, match="the latent space belongs to tokenizer weights, not to others"):
        train(config, cache, Run.open("other", config, root=tmp_path), tokenizer=other)


def test_an_unconditional_model_trains_on_labelled_latents(tmp_path, cache):
    config = override(SIT, {"num_steps": 3, "num_classes": 0})
    run = Run.open("a", config, root=tmp_path)
    train(config, cache, run, validation=cache, tokenizer=Decoder())
    assert run.load_checkpoint().tensors["model"]["y_embedder.embedding_table.weight"].shape == (1, 16)
    assert run.summary["val_loss"] > 0


def test_compiling_wraps_the_forward_pass_and_leaves_the_names_alone(tmp_path, cache, monkeypatch):
    wrapped = []
    monkeypatch.setattr(torch, "compile", lambda module: wrapped.append(module) or module)
    config = override(SIT, {"num_steps": 1})
    for name, asked in (("plain", False), ("compiled", True)):
        run = Run.open(name, override(config, {"compile": asked}), root=tmp_path)
        train(override(config, {"compile": asked}), cache, run)
        assert len(wrapped) == asked
        assert "x_embedder.weight" in run.load_checkpoint().tensors["model"]


def test_the_direction_loss_is_trained_and_logged(tmp_path, cache):
    found = {}
    for weight in (0.0, 1.0):
        config = override(SIT, {"num_steps": 1, "batch_size": 256, "direction_weight": weight})
        found[weight] = train(config, cache, Run.open(f"w{weight:g}", config, root=tmp_path))[0].losses["loss"]
    assert found[1.0] - found[0.0] == pytest.approx(1.0, abs=1e-4)  # of a velocity of zero the cosine is 0


# Nothing waits ----------------------------------------------------------------------------------------------------


class Unread(TorchDispatchMode):
    """Fails where the host reads a number off a tensor: item(), bool(), float(), an `if`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMSNorm says it is slow so
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_step_reads_nothing_off_the_device(tmp_path, cache, monkeypatch, kind):
    config = CONFIGS[kind]
    run = Run.open("a", config, root=tmp_path)
    engine = make_engine(config.batch_size, cpu=True)
    state = start(config, cache, run, engine.device)
    state.guard = Guard(deferred=True)  # as on a GPU
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits for a tensor"))
    with Unread():
        for state.step in range(3):
            losses, _ = training_step(config, state, state.model, engine, cache)
    monkeypatch.undo()
    state.guard.settle(2, {})
    assert losses.isfinite().all()
    state.guard = Guard()  # it asks at every step: the test can fail
    with Unread(), pytest.raises(AssertionError, match="the host waits for a number"):
        training_step(config, state, state.model, engine, cache)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_step_on_a_gpu_waits_for_nothing(tmp_path, cache, kind):
    config = override(CONFIGS[kind], {"num_steps": 12, "log_every": 100, "save_every": 100})
    held = LatentDataset(cache.run, device="cuda")
    steps = train_diffusion(config, held, Run.open("a", config, root=tmp_path))
    list(itertools.islice(steps, 3))  # the first ones copy the order of the epoch, and a guard's counts
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(itertools.islice(steps, 4))) == 4
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": "another"}, "the run was configured for latent cache another, but this is"),
        ({"tokenizer": "others"}, "these latents belong to tokenizer weights, not to others"),
        ({"num_classes": 2}, "the cache has labels 0 .. 2, but num_classes is 2"),
    ],
)
def test_another_cache_than_the_configs_is_one_clear_line_and_writes_nothing(tmp_path, cache, changes, message):
    config = override(SIT, changes)
    run = Run.open("a", config, root=tmp_path)
    with pytest.raises(ValueError, match=message):
        train(config, cache, run)
    assert sorted(p.name for p in run.folder.iterdir()) == ["config.json", "lock.json", "provenance.json"]
    check_latents(override(SIT, {"latents": cache.fingerprint, "tokenizer": "weights"}), cache)


def test_a_cache_with_negative_labels_is_refused(make_cache):
    latents = make_cache()
    latents.labels[3] = -1
    with pytest.raises(ValueError, match=r"the cache has labels -1 .. 2, but num_classes is 3"):
        check_latents(SIT, latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps and batch_size must be at least 1, not 0 and 8"),
        ({"class_dropout": 1.0}, r"class_dropout must be in \[0, 1\), not 1.0"),
        ({"ema_decays": ()}, "need at least one ema_decay: sampling uses the averaged weights"),
    ],
)
def test_a_training_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(SIT, changes)


def test_presets_are_bound_to_their_cache(cache):
    for preset in DIFFUSION_TRAINING:
        config = diffusion_training(preset, cache, num_classes=3)
        assert (config.latents, config.tokenizer, config.model) == (cache.fingerprint, "weights", DIFFUSION[preset])
    assert diffusion_training("test", cache, num_classes=3, seed=7, precision="fp32").seed == 7
    with pytest.raises(ValueError, match=r"unknown preset 'tinny'; did you mean 'tiny'\?"):
        diffusion_training("tinny", cache, num_classes=3)
