"""Decoder tuning on latents that a diffusion model makes anew: the encoder stays, stops change
nothing, and another run than the config's is refused.
"""

import pytest
import torch
from accelerate import Accelerator

from maetok_lab.config import override
from maetok_lab.data.latents import LatentCaching, LatentDataset, load_latent_space, write_latents
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.generation.regeneration import regenerate
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training import loop
from maetok_lab.training.autoencoding import TokenizerTask
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.order import Share
from maetok_lab.training.parents import Regenerator
from maetok_lab.training.presets import DECODER_TUNING, diffusion_training, ladder_training
from maetok_lab.training.recipe import RegenerationConfig, TokenizerTraining
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

CPU = torch.device("cpu")
SMALL = {"num_steps": 2, "batch_size": 4, "precision": "fp32", "log_every": 1}


@pytest.fixture(scope="module")
def pictures(make_pictures):
    return make_pictures(10, 64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, pictures) -> dict[str, Run]:
    """A tokenizer, a cache of its latents, and a diffusion model of classes and one without."""
    root = tmp_path_factory.mktemp("runs")
    config = ladder_training("test", "rms", workers=0, **SMALL)
    runs = {"tokenizer": Run.open("tokenizer", config, root=root)}
    list(train_tokenizer(config, pictures, runs["tokenizer"], cpu=True))

    tokenizer = load_tokenizer(runs["tokenizer"].folder)
    caching = LatentCaching(tokenizer=tokenizer.fingerprint, images=pictures.fingerprint)
    runs["cache"] = Run.open("cache", caching, root=root, parents=[runs["tokenizer"]])
    list(write_latents(tokenizer, pictures, caching, runs["cache"], device=CPU))

    latents = LatentDataset(runs["cache"])
    for name, classes in (("diffusion", 3), ("unconditional", 0)):
        config = diffusion_training("test", latents, num_classes=classes, **SMALL)
        runs[name] = Run.open(name, config, root=root, parents=[runs["cache"]])
        list(train_diffusion(config, latents, runs[name], cpu=True))
    return runs


def tuning_of(runs: dict[str, Run], diffusion: str = "diffusion", **changes) -> TokenizerTraining:
    """Four steps of decoder tuning on latents that a diffusion model makes anew."""
    first = runs["tokenizer"].load_config(TokenizerTraining)
    anew = RegenerationConfig(diffusion=runs[diffusion].fingerprint, start=0.3, num_steps=10)
    options = DECODER_TUNING["test"] | {"num_steps": 4, "save_every": 2, "regeneration": anew}
    return decoder_tuning(first, parent=runs["tokenizer"], **options | changes)


def tune(config, pictures, run, runs, *, diffusion="diffusion", steps: int | None = None) -> None:
    """At most `steps` steps; then the generator is left standing, as by a kill."""
    options = {"parent": runs["tokenizer"], "diffusion": runs.get(diffusion), "cpu": True}
    for record in finetune_decoder(config, pictures, run, **options):
        if record.step == steps:
            break


def test_stops_change_nothing_the_encoder_stays_and_the_decoder_moves(
    assert_same_end, tmp_path, pictures, runs
):
    config = tuning_of(runs)
    assert config.latent_noise > 0  # beside it
    whole, cut = (Run.open(name, config, root=tmp_path) for name in ("whole", "cut"))
    tune(config, pictures, whole, runs)
    tune(config, pictures, cut, runs, steps=2)
    torch.rand(5)
    resumed = Run.open("cut", config, root=tmp_path)
    tune(config, pictures, resumed, runs)
    assert_same_end(whole, resumed)

    before, after = runs["tokenizer"].load_checkpoint().tensors["ema"], whole.load_checkpoint()
    frozen = {name for name in before if name.startswith(("encoder.", "to_latents."))}
    for group in ("model", "ema"):
        still = {n for n, value in after.tensors[group].items() if torch.equal(value, before[n])}
        unused = {name for name in before if name.startswith("decoder.norm_modulation")}
        assert still == frozen | unused
    # no weight of the diffusion model is in it
    assert set(after.tensors) == {"model", "ema", "optimizer"}


def begin(runs, pictures, config, *, parts: int = 1, step: int = 1):
    """The task of a decoder tuning, and a batch with its latents as the decoder gets them."""
    options = {"parent": runs["tokenizer"], "diffusion": runs["diffusion"]}
    state = loop.State(TokenizerTask(config, pictures, **options), Accelerator(cpu=True))
    share = Share(state.engine, step, config.batch_size)
    batch = next(state.task.batches(share))
    state.task.before_step(batch, share.parts(parts), map)
    return state.task, batch


def test_the_decoder_sees_what_the_model_makes_of_real_latents_and_is_asked_for_the_image(
    runs, pictures
):
    config = override(tuning_of(runs), {"latent_noise": 0.0, "masking.ratio": "none"})
    task, batch = begin(runs, pictures, config)
    model = load_diffusion(runs["diffusion"].folder)
    space = load_latent_space(runs["cache"].folder)
    real = load_tokenizer(runs["tokenizer"].folder).encode(batch.images)
    noise = torch.randn(4, 32, 4, generator=generator(config.seed, "regeneration", 1))
    expected = regenerate(model, space, real, batch.labels, noise, start=0.3, num_steps=10)
    torch.testing.assert_close(batch.latents, expected)
    assert (batch.latents - real).abs().mean() > 0.1 * real.std()

    share = Share(Accelerator(cpu=True), 1, 4)
    loss, terms = task.loss(task.module, batch, share)
    reconstructions = task.model.decode(expected)
    torch.testing.assert_close(terms["pixel"], (reconstructions - batch.images).square().mean())
    loss.backward()
    for name, parameter in task.model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("encoder.", "to_latents.")) or (
            name.startswith("decoder.norm_modulation")
        )
    assert all(parameter.grad is None for parameter in task.regenerator.model.parameters())


def test_an_early_start_with_a_perfect_memory_is_tuning_without_it(runs, pictures):
    changes = {"latent_noise": 0.0, "masking.ratio": "none"}
    plain = override(tuning_of(runs), changes | {"regeneration": None})
    near = RegenerationConfig(diffusion=runs["diffusion"].fingerprint, start=1e-4, num_steps=10)
    _, batch = begin(runs, pictures, plain)
    _, other = begin(runs, pictures, override(plain, {"regeneration": near}))
    torch.testing.assert_close(other.latents, batch.latents, rtol=0, atol=2e-3)


@pytest.mark.parametrize("parts", [2, 4])
def test_new_latents_are_the_same_in_any_parts(runs, pictures, parts):
    config = tuning_of(runs)
    _, whole = begin(runs, pictures, config)
    _, split = begin(runs, pictures, config, parts=parts)
    torch.testing.assert_close(split.latents, whole.latents, rtol=0, atol=1e-5)


def test_each_step_has_noise_of_its_own(runs, pictures):
    latents = []
    for step in (1, 2):
        task, batch = begin(runs, pictures, tuning_of(runs), step=step)
        batch.images = torch.zeros_like(batch.images)
        batch.noise = torch.zeros_like(batch.noise)
        batch.mask = None
        task.before_step(batch, Share(Accelerator(cpu=True), step, 4).parts(1), map)
        latents.append(batch.latents)
    assert not torch.allclose(*latents, atol=1e-2)


def test_an_unconditional_model_takes_images_of_any_classes(tmp_path, pictures, runs):
    config = tuning_of(runs, "unconditional", num_steps=1)
    assert pictures.labels.max() > 0
    run = Run.open("tuned", config, root=tmp_path)
    tune(config, pictures, run, runs, diffusion="unconditional")
    assert run.finished


def test_it_needs_the_diffusion_run_of_its_config(tmp_path, pictures, runs):
    config = tuning_of(runs)
    needs = f"needs the diffusion run with fingerprint {runs['diffusion'].fingerprint}, not "
    other = runs["unconditional"]
    for name, came in (
        (None, "none"),
        ("unconditional", f"run {other.name} with {other.fingerprint}"),
    ):
        run = Run.open(f"tuned-{name}", config, root=tmp_path)
        with pytest.raises(ValueError, match=f"this decoder tuning {needs}{came}"):
            tune(config, pictures, run, runs, diffusion=name)
        assert run.checkpoint_steps() == []
    with pytest.raises(ValueError, match=f"{needs}none"):
        Regenerator(config.regeneration, None, CPU)


def test_a_diffusion_run_without_a_cache_is_refused_in_one_line(runs, monkeypatch):
    config = tuning_of(runs)
    monkeypatch.setattr(Run, "provenance", property(lambda run: {"parents": []}))
    name = runs["diffusion"].name
    with pytest.raises(ValueError, match=f"diffusion run {name} names no cache of latents"):
        Regenerator(config.regeneration, runs["diffusion"], CPU)


def test_new_latents_are_for_decoder_tuning_and_have_a_start_between_data_and_noise(runs):
    first = runs["tokenizer"].load_config(TokenizerTraining)
    anew = RegenerationConfig(diffusion="x")
    with pytest.raises(ValueError, match="regeneration is for decoder tuning"):
        override(first, {"regeneration": anew})
    for changes in ({"start": 0.0}, {"start": 1.0}, {"num_steps": 0}):
        with pytest.raises(ValueError, match=r"needs a start in \(0, 1\) and at least one step"):
            override(anew, changes)
