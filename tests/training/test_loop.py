"""One step: in parts it is the step of the whole batch, and compiled it is the same training."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import maetok_lab
from maetok_lab.config import override
from maetok_lab.cores import every_core
from maetok_lab.data.images import open_images
from maetok_lab.identity import fingerprint
from maetok_lab.rng import seed_step
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.autoencoding import TokenizerTask
from maetok_lab.training.loop import (
    State,
    goes_side_by_side,
    make_engine,
    parts_in_turn,
    parts_side_by_side,
)
from maetok_lab.training.objective import Objective
from maetok_lab.training.optim import OptimizerConfig
from maetok_lab.training.order import Share, join_parts
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import train_tokenizer

LIBRARY = Path(maetok_lab.__file__).parent
TOWER = TowerConfig(width=16, depth=2, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=4,
    num_latent_tokens=4,
    latent_dim=2,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
    bottleneck="kl",
)
CRITIC = AdversarialConfig(
    discriminator="patchgan",
    norm="group",
    width=8,
    layers=2,
    trains_from=1,
    counts_from=3,
    learning_rate=1e-3,
    adaptive=False,
)
CONFIG = TokenizerTraining(
    model=MODEL,
    targets=(AuxiliaryConfig(), AuxiliaryConfig(target="pixel")),
    num_steps=6,
    batch_size=6,
    precision="fp32",
    losses=LossConfig(perceptual="none", kl_weight=1e-3, adversarial=CRITIC),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    log_every=1,
    ema_decay=0.9,
)


def trained(config: TokenizerTraining, images, root) -> Run:
    run = Run.open("a", config, root=root)
    list(train_tokenizer(config, images, run, cpu=True))
    return run


def close(mine: Run, theirs: Run, tolerance: float) -> None:
    """Both runs logged the same losses and ended at the same weights, up to rounding."""
    first, second = (run.metrics("train").drop(columns="split") for run in (mine, theirs))
    assert (first - second).abs().max().max() < tolerance
    groups = mine.load_checkpoint().tensors, theirs.load_checkpoint().tensors
    for group in ("model", "ema", "auxiliary", "discriminator"):
        assert set(groups[0][group]) == set(groups[1][group])
        for name, value in groups[0][group].items():
            assert (value - groups[1][group][name]).abs().max() < tolerance, name


def test_a_batch_in_parts_gives_the_losses_and_weights_of_the_whole(tmp_path, make_pictures):
    images, runs = make_pictures(10, 16), {}
    for parts in (1, 2, 3):
        runs[parts] = trained(
            dataclasses.replace(CONFIG, accumulate=parts), images, tmp_path / str(parts)
        )
    for parts in (2, 3):
        close(runs[1], runs[parts], 1e-4)
    seed_step(CONFIG.seed, -1)  # as a training starts
    moved = (
        runs[1].load_checkpoint().tensors["model"]["to_pixels.weight"]
        - Objective(CONFIG).tokenizer.to_pixels.weight
    )
    assert (moved.abs() > 0).all()
    assert moved.abs().max() > 1e-3


def test_a_part_sees_its_share_of_the_batch_only(tmp_path, make_pictures, monkeypatch):
    seen, forward = [], Objective.forward

    def spy(self, images, mask, noise, *rest):
        seen.append((len(images), len(mask), len(noise)))
        return forward(self, images, mask, noise, *rest)

    monkeypatch.setattr(Objective, "forward", spy)
    trained(override(CONFIG, {"accumulate": 3, "num_steps": 4}), make_pictures(10, 16), tmp_path)
    assert seen == [(2, 2, 2)] * 12


def test_the_parts_of_a_share_are_its_rows_each_once():
    engine = Accelerator(cpu=True)
    share, rows = Share(engine, 0, 12), torch.arange(12)
    parts = share.parts(3)
    assert sorted(torch.cat([rows[part.rows] for part in parts]).tolist()) == list(range(12))
    for part in parts:
        assert torch.equal(rows[share.rows][part.local], rows[part.rows])
    halves = [{"a": torch.tensor(1.0), "b": torch.tensor([1.0])}]
    halves.append({"a": torch.tensor(3.0), "b": torch.tensor([2.0])})
    terms = join_parts(halves)
    assert terms["a"] == 2
    assert terms["b"].tolist() == [1.0, 2.0]


def test_a_batch_that_cannot_be_split_is_refused_and_parts_are_no_part_of_the_fingerprint():
    with pytest.raises(
        ValueError, match="a batch of 6 cannot be split into accumulate=4 equal parts"
    ):
        dataclasses.replace(CONFIG, accumulate=4)
    with pytest.raises(
        ValueError, match="1 processes cannot share a batch of 6 equally in 4 parts"
    ):
        make_engine(6, parts=4, cpu=True)
    assert fingerprint(dataclasses.replace(CONFIG, accumulate=2, compile=True)) == fingerprint(
        CONFIG
    )


def without_critic(**changes) -> TokenizerTraining:
    """A training whose parts are independent, in two of them."""
    return override(CONFIG, {"losses.adversarial": None, "accumulate": 2, **changes})


def same_bits(mine: Run, theirs: Run) -> None:
    groups = mine.load_checkpoint().tensors, theirs.load_checkpoint().tensors
    for group, tensors in groups[0].items():
        for name, value in tensors.items():
            assert torch.equal(value, groups[1][group][name]), (group, name)
    losses = [run.metrics("train") for run in (mine, theirs)]
    assert losses[0].equals(losses[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_core_and_several_give_the_same_bits_also_when_they_take_turns(
    tmp_path, make_pictures, monkeypatch, optimizer
):
    images = make_pictures(10, 16)
    config = without_critic(optimizer__name=optimizer)
    threads = torch.get_num_threads()
    runs = []
    try:
        for cores in (1, 2, 3):
            monkeypatch.setattr("maetok_lab.cores.usable_cores", lambda cores=cores: cores)
            torch.set_num_threads(3)
            runs.append(trained(config, images, tmp_path / str(cores)))
            assert torch.get_num_threads() == 3

        # stopped on one core, finished on two
        monkeypatch.setattr("maetok_lab.cores.usable_cores", lambda: 1)
        run = Run.open("a", config, root=tmp_path / "stopped")
        for record in train_tokenizer(config, images, run, cpu=True):
            if record.step == 3:
                record.stop()
        run.close()
        monkeypatch.setattr("maetok_lab.cores.usable_cores", lambda: 2)
        runs.append(trained(config, images, tmp_path / "stopped"))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        same_bits(runs[0], run)


def test_parts_side_by_side_have_the_gradient_of_parts_in_turn(make_pictures):
    task = TokenizerTask(without_critic(), make_pictures(10, 16))
    engine = Accelerator(cpu=True)
    state = State(task, engine)
    share = Share(engine, 0, 6)
    batch = next(task.batches(share))
    gradients = []
    with every_core() as cores:
        for backward, used in ((parts_in_turn, None), (parts_side_by_side, cores)):
            state.use(used)
            terms = join_parts(backward(state, batch, share.parts(2)))
            gradients.append([parameter.grad for parameter in state.parameters])
            for parameter in state.parameters:
                parameter.grad = None
            assert set(terms) == {"pixel", "kl", "auxiliary/hog", "auxiliary/pixel"}
    for first, second in zip(*gradients):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)


def test_parts_that_draw_or_meet_a_discriminator_are_not_computed_at_once(make_pictures):
    engine = Accelerator(cpu=True)
    drops = without_critic(model__encoder__drop_path=0.1)
    for config, expected in (
        (without_critic(), True),
        (without_critic(accumulate=1), False),
        (override(CONFIG, {"accumulate": 2}), False),
        (drops, False),
    ):
        task = TokenizerTask(config, make_pictures(10, 16))
        task.build(torch.device("cpu"))
        assert goes_side_by_side(task, engine) == expected


@pytest.mark.slow
def test_a_compiled_training_has_the_losses_weights_and_names_of_a_plain_one(
    tmp_path, make_pictures, monkeypatch
):
    images, compiled = make_pictures(10, 16), []
    monkeypatch.setattr(torch.nn.Module, "compile", spy_on(torch.nn.Module.compile, compiled))
    plain, fast = (
        trained(override(CONFIG, {"compile": c}), images, tmp_path / str(c)) for c in (False, True)
    )
    assert compiled == ["Objective"]
    close(plain, fast, 1e-3)


def spy_on(method, calls):
    """`method`, whose callers' class names are noted."""

    def noted(self, *args, **kwargs):
        calls.append(type(self).__name__)
        return method(self, *args, **kwargs)

    return noted


def test_one_process_takes_any_batch():
    assert make_engine(7, cpu=True).num_processes == 1


def test_one_step_of_a_tokenizer_runs_through_few_files(tmp_path):
    config = override(TOKENIZER_TRAINING["test"], {"precision": "fp32", "num_steps": 3})
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    steps = train_tokenizer(config, images, Run.open("a", config, root=tmp_path), cpu=True)
    next(steps)  # what a first step makes once is not counted
    files = set()
    before = sys.gettrace()  # that of coverage, where it is measured
    sys.settrace(lambda frame, event, argument: files.add(frame.f_code.co_filename))
    next(steps)
    sys.settrace(before)
    ours = sorted(file for file in files if Path(file).is_relative_to(LIBRARY))
    # an aim of fifteen did not know of cores.py, nor of stopping.py between two steps, nor that
    # pixels travel as 8 bits (pictures.py), nor of the rivals: bottlenecks, perturbations, and with
    # them an objective of its own file
    assert 10 < len(ours) <= 21, "\n".join(ours)


LAUNCHED = """
import torch
from maetok_lab.training.loop import make_engine
engine = make_engine(8, cpu=True)
layer = engine.prepare(torch.nn.Linear(4, 4))
print(engine.mixed_precision, engine.gradient_accumulation_steps, layer(torch.ones(1, 4)).dtype)
"""


@pytest.mark.parametrize(
    "variables",
    [{"ACCELERATE_MIXED_PRECISION": "bf16"}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}],
)
def test_what_a_launcher_puts_into_the_environment_changes_nothing(variables):
    command = [sys.executable, "-W", "ignore", "-c", LAUNCHED]
    environment = os.environ | variables
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "no 1 torch.float32"
