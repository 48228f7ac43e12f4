"""A diffusion run's checkpoints are scored once each, and say when it drew well."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionConfig, describe_model
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.sample_sets import sampling_options, sampling_protocol
from maetok_lab.experiments import convergence as module
from maetok_lab.experiments.convergence import (
    convergence_run,
    convergence_table,
    curves_beside,
    milestone_steps,
    steps_to_reach,
)
from maetok_lab.generation.images import generate, reconstruct
from maetok_lab.runs import Run
from maetok_lab.training.diffusion import DiffusionTraining, ema_name

CONFIG = DiffusionTraining(
    model=DiffusionConfig(width=16, depth=1, num_heads=2),
    num_classes=4,
    num_steps=40,
    batch_size=8,
    save_every=10,
    ema_decays=(0.9, 0.5),
)
SPACE = LatentSpace("weights", torch.tensor([0.5, -0.5]), torch.tensor([2.0, 0.5]))
LABELS = torch.arange(12) % 4


class Colours(torch.nn.Module):
    """Mean and spread of each channel: a feature network of no weights."""

    name, weight_hash = "colours", "none"

    def features(self, images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


NET = Colours()


def pictures(seed):
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def save(run, model, step):
    """A checkpoint whose weights are the model's, moved on by the step."""
    weights = {name: value + step / 100 for name, value in model.state_dict().items()}
    tensors = {ema_name(rate): weights for rate in CONFIG.ema_decays}
    run.save_checkpoint(step, tensors, {"skipped": 0, **describe_model(model)})
    return weights


@pytest.fixture
def trained(model, tmp_path):
    """A finished run of 40 steps that keeps two milestones and the newest two checkpoints."""
    with Run.open("diffusion-toy", CONFIG, root=tmp_path) as run:
        run.keep_milestones(10, 20)
        for step in (5, 10, 20, 30, 40):
            save(run, model, step)
        run.finish({"steps": 40})
    return run


@pytest.fixture
def references(tokenizer):
    return {
        "kid": make_reference(pictures(0), NET, name="test"),
        "kid_gap": make_reference(reconstruct(tokenizer, pictures(0)), NET, name="rebuilt"),
    }


def score(run, tokenizer, references, **fields):
    protocol = sampling_protocol(run, steps=2, labels="random", **fields)
    return convergence_run(
        run,
        tokenizer,
        SPACE,
        LABELS,
        references,
        protocol=protocol,
        net=NET,
        root=run.folder.parent,
    )


def test_each_milestone_and_the_end_are_scored_as_by_hand(trained, tokenizer, references, model):
    scores = score(trained, tokenizer, references, ema=0.5)
    table = convergence_table(scores)
    assert scores.finished
    assert table["step"].tolist() == [10, 20, 40]  # 30 is no milestone and may be pruned
    assert table["images"].tolist() == [80, 160, 320]

    weights = {name: value + 20 / 100 for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    protocol = sampling_protocol(trained, steps=2, labels="random", ema=0.5)
    images = generate(model, tokenizer, SPACE, LABELS, **sampling_options(protocol))
    for column, side in references.items():
        result = evaluate_generation(images, side, net=NET, protocol=protocol, metrics=["kid"])
        low, high = result.intervals["kid_colours"]
        row = table.loc[1, [column, f"{column}_low", f"{column}_high"]].tolist()
        assert row == [result.metrics["kid_colours"], low, high]
    assert scores.summary["kid"] == table["kid"].iloc[-1]
    assert "euler, 2 steps" in table.attrs["protocol"]
    assert "against test" in table.attrs["protocol"]  # of the first column


def test_nothing_is_scored_twice(trained, tokenizer, references, monkeypatch):
    calls = []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(module, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        score(trained, tokenizer, references)
    scores = score(trained, tokenizer, references)
    assert len(calls) == 4  # three checkpoints, the second of them twice
    monkeypatch.setattr(module, "generate", None)
    assert score(trained, tokenizer, references).folder == scores.folder
    assert len(convergence_table(scores)) == 3


def test_other_settings_are_another_run_and_only_equals_share_a_figure(
    trained, tokenizer, references, model, tmp_path
):
    scores = score(trained, tokenizer, references)
    other_seed = score(trained, tokenizer, references, seed=1)
    assert other_seed.folder != scores.folder
    config = dataclasses.replace(CONFIG, seed=1, ema_decays=(0.5,))
    with Run.open("diffusion-ae", config, root=tmp_path) as run:
        save(run, model, 40)
        run.finish({"steps": 40})
    beside = score(run, tokenizer, references)
    tables = curves_beside(scores, tmp_path)
    assert list(tables) == ["diffusion-toy", "diffusion-ae"]
    assert tables["diffusion-ae"].equals(convergence_table(beside))
    assert list(curves_beside(other_seed, tmp_path)) == ["diffusion-toy"]


def test_a_training_that_goes_on_is_refused(model, tokenizer, references, tmp_path):
    with Run.open("diffusion-toy", CONFIG, root=tmp_path) as run:
        save(run, model, 10)
    with pytest.raises(ValueError, match="made from run diffusion-toy, which is not finished"):
        score(run, tokenizer, references)


def test_milestones_are_steps_that_save():
    def steps(num_steps, save_every, count=6):
        config = dataclasses.replace(CONFIG, num_steps=num_steps, save_every=save_every)
        return milestone_steps(config, count)

    assert steps(600, 10) == [100, 200, 300, 400, 500, 600]
    assert steps(950, 250) == [250, 500, 750, 950]
    assert steps(20, 1000) == [20]
    assert steps(600, 10, count=1) == [600]
    assert all(step % 250 == 0 or step == 950 for step in steps(950, 250, count=50))


def test_images_until_a_threshold_are_on_the_line_between_two_checkpoints():
    table = pd.DataFrame(
        {"images": [100, 200, 400], "kid": [0.5, 0.3, 0.1], "gap": [0.2, 0.1, 0.3]}
    )
    assert steps_to_reach(table, 0.4) == pytest.approx(150)
    assert steps_to_reach(table, 0.3) == 200
    assert steps_to_reach(table, 0.25) == pytest.approx(250)
    assert steps_to_reach(table, 0.1) == 400
    # the first checkpoint is there already: no later than its images
    assert steps_to_reach(table, 0.9) == steps_to_reach(table, 0.5) == 100
    assert math.isnan(steps_to_reach(table, 0.05))
    # the first time counts, though it got worse again
    assert steps_to_reach(table, 0.15, column="gap") == pytest.approx(150)
    table.loc[1, "kid"] = math.nan
    assert steps_to_reach(table, 0.3) == pytest.approx(250)
