"""The steps of a diffusion training: their losses and draws, bad ones stay out, and none waits for
a number.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maetok_lab.config import override
from maetok_lab.data.latents import LatentCaching, LatentDataset, LatentSpace, write_latents
from maetok_lab.diffusion.path import draw_times, velocity_loss
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.training.diffusion import DiffusionTask, by_time, train_diffusion, validation_loss
from maetok_lab.training.loop import State, make_engine, training_step
from maetok_lab.training.optim import NonFiniteTraining
from maetok_lab.training.order import Share


def test_the_loss_falls_on_eight_latents(tmp_path, make_cache, sit):
    latents = make_cache(8)
    changes = {
        "num_steps": 250,
        "batch_size": 32,
        "log_every": 50,
        "save_every": 999,
        "model.width": 32,
    }
    changes |= {"optimizer.learning_rate": 1e-2, "time_sampling": "uniform", "ema_decays": (0.98,)}
    config = override(sit, changes)
    run = Run.open("a", config, root=tmp_path)
    list(train_diffusion(config, latents, run, validation=latents, cpu=True))
    assert (
        run.summary["val_loss"] < 1.45
    )  # 2 for a velocity of zero: data and noise have variance 1
    assert run.summary["steps"] == 250
    assert run.summary["images"] == 8000


def test_the_first_loss_is_that_of_a_velocity_of_zero_by_quarters_of_time(tmp_path, cache, sit):
    config = override(sit, {"num_steps": 1, "batch_size": 256})
    run = Run.open("a", config, root=tmp_path)
    [record] = train_diffusion(config, cache, run, cpu=True)
    losses = record.losses
    assert losses["loss"] == pytest.approx(2.0, abs=0.1)
    assert set(losses) == {"loss", "loss/t0.00", "loss/t0.25", "loss/t0.50", "loss/t0.75"}
    found = by_time(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
    assert found == {"loss": 3.0, "loss/t0.00": 2.0, "loss/t0.75": 5.0}


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (0.25, 0.25)])
def test_classes_are_dropped_as_often_as_asked_and_views_are_drawn_evenly(
    tmp_path, cache, sit, monkeypatch, dropout, share
):
    seen, views = [], []

    def spy(model, x, labels, **options):
        seen.append(labels)
        return velocity_loss(model, x, labels, **options)

    monkeypatch.setattr("maetok_lab.training.diffusion.velocity_loss", spy)
    spied = SimpleNamespace(
        **{
            n: getattr(cache, n)
            for n in ("num_tokens", "latent_dim", "views", "labels", "space", "place")
        }
    )

    def batch(indices, *, view=0):
        views.append(torch.as_tensor(view).expand(len(indices)))
        return cache.batch(indices, view=view)

    class Spied(SimpleNamespace):
        def __len__(self):
            return len(cache)

    spied = Spied(**vars(spied), batch=batch)
    config = override(sit, {"class_dropout": dropout, "num_steps": 4, "batch_size": 500})
    list(train_diffusion(config, spied, Run.open("a", config, root=tmp_path), cpu=True))
    labels = torch.cat(seen)
    assert (labels == 3).float().mean().item() == pytest.approx(share, abs=0.04)
    assert (
        torch.bincount(labels, minlength=4)[:3] / len(labels) - (1 - share) / 3
    ).abs().max() < 0.04
    assert torch.cat(views[1:]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_validation_normalises_with_the_training_statistics_and_has_fixed_draws(cache, sit):
    seen = []

    class Zero(torch.nn.Module):
        def forward(self, x_t, t, labels):
            seen.append(labels)
            return torch.zeros_like(x_t)

    first, again = (validation_loss(sit, Zero(), cache, cache.space) for _ in range(2))
    assert first == again
    scaled = LatentSpace("weights", cache.space.mean, cache.space.std / 3)
    assert validation_loss(sit, Zero(), cache, scaled)["loss"] > 3 * first["loss"]
    assert torch.equal(seen[0], cache.labels)  # no class is dropped
    assert len(seen) == 12


def test_the_direction_loss_is_trained_and_logged(tmp_path, cache, sit):
    found = {}
    for weight in (0.0, 1.0):
        config = override(sit, {"num_steps": 1, "batch_size": 256, "direction_weight": weight})
        [record] = train_diffusion(
            config, cache, Run.open(f"w{weight:g}", config, root=tmp_path), cpu=True
        )
        found[weight] = record.losses["loss"]
    assert found[1.0] - found[0.0] == pytest.approx(
        1.0, abs=1e-4
    )  # of a velocity of zero the cosine is 0


class Gaussian(torch.nn.Module):
    """An encoder: standard normal numbers, 4 tokens of 3 channels, made of nothing but a count."""

    fingerprint = "weights"

    def __init__(self):
        super().__init__()
        self.draws = generator(0, "gaussian")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(images), 4, 3, generator=self.draws)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_a_data_prediction_learns_one_gaussian(tmp_path, make_pictures, sit, shift):
    images = make_pictures(2000, 2)
    caching = LatentCaching(tokenizer="weights", images=images.fingerprint, dtype="fp32")
    cached = Run.open("cache", caching, root=tmp_path)
    list(write_latents(Gaussian(), images, caching, cached, device=torch.device("cpu")))
    latents = LatentDataset(cached)
    changes = {"num_steps": 300, "batch_size": 64, "log_every": 1, "save_every": 999}
    changes |= {"optimizer.learning_rate": 1e-2, "ema_decays": (0.98,), "model.width": 32}
    changes |= {"prediction": "data", "time_shift": shift, "num_classes": 0}
    config = override(sit, changes)
    run = Run.open("a", config, root=tmp_path)
    list(train_diffusion(config, latents, run, validation=latents, cpu=True))
    # at first the estimate is zero, and its loss the mean of 1 / t^2
    assert run.metrics("train")["loss"].iloc[0] > run.summary["val_loss"]
    # the best estimate, ((1 - t) / b) x_t with b = (1 - t)^2 + t^2, has the loss 1 / b
    t = draw_times(
        100_000, "logit-normal", path="linear", generator=generator(1, "t"), time_shift=shift
    )
    best = (1 / ((1 - t) ** 2 + t**2)).mean().item()
    assert best - 0.05 < run.summary["val_loss"] < best + 0.15


def test_validation_draws_its_times_as_the_training_does(cache, sit):
    class Zero(torch.nn.Module):
        def forward(self, x_t, t, labels):
            times.append(t)
            return torch.zeros_like(x_t)

    drawn = []
    for shift in (1.0, 9.0, "dimension"):
        times = []
        validation_loss(override(sit, {"time_shift": shift}), Zero(), cache, cache.space)
        drawn.append(torch.cat(times).logit())
    for shifted, shift in zip(drawn[1:], (9.0, (12 / 4096) ** 0.5)):
        expected = torch.full_like(shifted, math.log(shift))
        assert torch.allclose(shifted - drawn[0], expected, atol=1e-3)


# Bad steps ----------------------------------------------------------------------------------------


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


def test_a_step_without_a_finite_loss_is_skipped_counted_and_never_reaches_the_weights(
    tmp_path, cache, sit
):
    config = override(sit, {"num_steps": 6, "save_every": 1})
    run = Run.open("a", config, root=tmp_path)
    found = {}
    poisoned = Poisoned(
        cache, 3, 2
    )  # call 0 checks the cache: these are the third and the fourth step
    for record in train_diffusion(config, poisoned, run, cpu=True):
        found[record.step] = run.load_checkpoint()
    for step in (3, 4):
        for group in ("model", "optimizer"):  # averages go on towards weights that did not move
            for name, value in found[step].tensors[group].items():
                assert torch.equal(value, found[step - 1].tensors[group][name]), name
    assert not torch.equal(
        *(found[step].tensors["model"]["final_layer.linear.bias"] for step in (4, 5))
    )
    assert run.summary["skipped"] == 2
    assert all(
        value.isfinite().all() for group in found[6].tensors.values() for value in group.values()
    )


def test_five_bad_steps_in_a_row_end_the_training_and_name_step_and_term(tmp_path, cache, sit):
    run = Run.open("a", sit, root=tmp_path)
    with pytest.raises(
        NonFiniteTraining, match=r"5 steps in a row, not later than step 14, .*\{'velocity': nan\}"
    ):
        list(train_diffusion(sit, Poisoned(cache, 10, 99), run, cpu=True))
    assert run.checkpoint_steps() == [9]


# Nothing waits ------------------------------------------------------------------------------------


class Unread(TorchDispatchMode):
    """Fails where the host reads a number off a tensor: item(), bool(), float(), an `if`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch's RMSNorm says it is slow so
def test_a_step_reads_nothing_off_the_device(cache, monkeypatch, diffusion_config):
    task = DiffusionTask(diffusion_config, cache)
    engine = make_engine(diffusion_config.batch_size, cpu=True)
    state = State(task, engine)
    batches = task.batches(Share(engine, 0, diffusion_config.batch_size))
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(
            torch.Tensor, name, lambda *_: pytest.fail("the host waits for a tensor")
        )
    with Unread():
        for batch in itertools.islice(batches, 3):
            terms = training_step(state, batch)
    monkeypatch.undo()
    state.settle(terms)
    assert terms["velocity"].isfinite().all()
    # the test can fail: a guard that reads the norm at every step
    monkeypatch.setattr(state.guard, "step", lambda optimizers, norm: bool(norm > 0))
    with Unread(), pytest.raises(AssertionError, match="the host waits for a number"):
        training_step(state, next(batches))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_waits_for_nothing(tmp_path, make_cache, diffusion_config):
    config = override(diffusion_config, {"num_steps": 12, "log_every": 100, "save_every": 100})
    # one epoch for all steps: a new one's order is copied, and waited for
    held = LatentDataset(make_cache(12 * config.batch_size).run, device="cuda")
    steps = train_diffusion(config, held, Run.open("a", config, root=tmp_path))
    list(
        itertools.islice(steps, 3)
    )  # the first ones copy the order of the epoch, and a guard's counts
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(itertools.islice(steps, 4))) == 4
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_process_trains_on_the_cpu_on_a_gpu_and_on_the_cpu(tmp_path, cache, diffusion_config):
    config = override(diffusion_config, {"num_steps": 2, "log_every": 1, "save_every": 2})
    losses = []
    for index, device in enumerate(["cpu", "cuda", "cpu"]):
        held = LatentDataset(cache.run, device=device)
        run = Run.open(f"{index}", config, root=tmp_path)
        records = train_diffusion(config, held, run, cpu=device == "cpu")
        losses.append([record.losses["loss"] for record in records])
    assert losses[0] == losses[2]
    # a GPU draws other noise
    assert all(math.isfinite(loss) for loss in losses[1])
