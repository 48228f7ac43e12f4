"""Ways to sample one model: each is drawn and scored once, under its own protocol."""

import copy
import dataclasses

import pytest
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.sampling import NULL_CLASS
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.sample_sets import sampling_options
from maetok_lab.experiments import settings as module
from maetok_lab.experiments.generator import Generator
from maetok_lab.experiments.settings import (
    Scorer,
    Setting,
    load_score,
    setting_grid,
    settings_table,
)
from maetok_lab.generation.images import generate
from maetok_lab.identity import tensors_fingerprint
from maetok_lab.runs import Run

SPACE = LatentSpace("weights", torch.tensor([0.5, -0.5]), torch.tensor([2.0, 0.5]))
BASE = EvalProtocol(image_size=8, labels="random", path="linear", seed=3)
LISTS = {
    "scales": [1, 2.5],
    "intervals": [[0, 0.8], [0.0, 1.0]],
    "steps": [2, 3],
    "samplers": ["euler", "heun"],
}


class Colours(torch.nn.Module):
    """Mean and spread of each channel: a feature network of no weights."""

    name, weight_hash = "colours", "none"

    def features(self, images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def pictures(count, seed):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def scorer(model, tokenizer, tmp_path):
    net = Colours()
    return Scorer(
        generator=Generator("toy", tokenizer, {0.9: model}, SPACE, parents=[]),
        name="toy",
        protocol=BASE,
        labels=torch.arange(12) % 4,
        real=make_reference(pictures(20, 0), net, name="val"),
        second=make_reference(pictures(20, 1), net, name="train"),
        net=net,
        root=tmp_path,
    )


def test_a_grid_is_every_combination_the_scale_fastest():
    grid = setting_grid(**LISTS, ema_rates=[0.9, None])
    assert len(set(grid)) == len(grid) == 32
    assert [setting.scale for setting in grid[:4]] == [1.0, 2.5, 1.0, 2.5]
    assert (grid[0].low, grid[0].high, grid[0].steps, grid[0].sampler, grid[0].ema) == (
        0.0,
        0.8,
        2,
        "euler",
        0.9,
    )
    assert grid[-1] == Setting(scale=2.5, low=0.0, high=1.0, steps=3, sampler="heun", ema=None)
    with pytest.raises(ValueError, match=r"no values for \['steps'\]"):
        setting_grid(**LISTS | {"steps": []}, ema_rates=[None])
    with pytest.raises(ValueError, match=r"an interval is \[low, high\], not \[0.5\]"):
        setting_grid(**LISTS | {"intervals": [[0.5]]}, ema_rates=[None])


def test_a_setting_is_scored_as_its_protocol_says_once(scorer, model, tokenizer, monkeypatch):
    setting = Setting(scale=2.5, low=0.0, high=0.8, steps=3, sampler="heun", ema=0.9)
    run = scorer.score(setting)
    result = load_score(run)
    images = generate(model, tokenizer, SPACE, scorer.labels, **sampling_options(result.protocol))
    by_hand = evaluate_generation(
        images,
        scorer.real,
        net=scorer.net,
        protocol=result.protocol,
        metrics=["kid"],
        second_reference=scorer.second,
    )
    assert result.metrics == by_hand.metrics
    assert result.floor == by_hand.floor
    assert (result.protocol.guidance_scale, result.protocol.sampler, result.protocol.steps) == (
        2.5,
        "heun",
        3,
    )
    assert (
        run.summary["model_rows"] == 5 + 3
    )  # five evaluations; the two of the first step, at t = 1, are not guided
    assert run.sample_path(0).exists()
    monkeypatch.setattr(module, "generate", None)  # a second call draws nothing
    assert scorer.score(setting).folder == run.folder


def test_without_guidance_the_interval_makes_no_other_run(scorer):
    grid = setting_grid(**LISTS | {"steps": [2], "samplers": ["euler"]}, ema_rates=[0.9])
    scored = {setting: scorer.score(setting) for setting in grid}
    table = settings_table(scored, scorer.net)
    assert len(table) == 4
    assert table["run"].nunique() == 3
    assert table[table["scale"] == 1]["kid_colours"].nunique() == 1
    assert (table["kid_low"] <= table["kid_colours"]).all()
    assert (table["kid_colours"] <= table["kid_high"]).all()
    assert table["model_rows"].tolist() == [2, 3, 2, 4]
    assert (table["images_per_second"] > 0).all()
    assert table["interval"].tolist() == ["0 to 0.8", "0 to 0.8", "0 to 1", "0 to 1"]


def test_a_weaker_model_guides_where_the_setting_says_so(scorer, model, tokenizer):
    weak = copy.deepcopy(model)
    with torch.no_grad():
        weak.final_layer.linear.weight.mul_(0.5)
    guides = {NULL_CLASS: None, 250: weak, "diffusion-same": copy.deepcopy(model)}
    scorer = dataclasses.replace(
        scorer, generator=dataclasses.replace(scorer.generator, weak_models=guides)
    )
    lists = LISTS | {"intervals": [[0, 0.8]], "steps": [2], "samplers": ["euler"]}
    grid = setting_grid(**lists, ema_rates=[0.9], guides=list(guides))
    assert [setting.guide for setting in grid[::2]] == list(guides)
    assert grid[3].describe() == "scale 2.5 on 0 to 0.8 by step 250, euler 2, EMA 0.9"
    assert grid[3] == Setting(
        scale=2.5, low=0.0, high=0.8, steps=2, sampler="euler", ema=0.9, guide=250
    )
    scored = {setting: scorer.score(setting) for setting in grid}
    plain, plain_guided, autoguided_1, autoguided, _, same = scored.values()

    # at scale 1 nothing guides: the same run, bit for bit the unguided samples
    assert plain.folder == autoguided_1.folder
    assert len({run.folder for run in scored.values()}) == 4
    protocols = {run.folder: load_score(run).protocol for run in scored.values()}
    assert protocols[plain.folder].weak_model is None
    assert protocols[plain_guided.folder].weak_model is None
    assert protocols[autoguided.folder].weak_model == tensors_fingerprint(weak.state_dict())
    values = {folder: load_score(Run(folder)).metrics["kid_colours"] for folder in protocols}
    assert len(set(values.values())) >= 3
    # a model guided away from itself stays where it is
    assert values[same.folder] == pytest.approx(values[plain.folder], rel=1e-4, abs=1e-6)
    by_hand = generate(
        model, tokenizer, SPACE, scorer.labels,
        **sampling_options(protocols[autoguided.folder], weak),
    )  # fmt: skip
    result = evaluate_generation(
        by_hand,
        scorer.real,
        net=scorer.net,
        protocol=protocols[autoguided.folder],
        metrics=["kid"],
        second_reference=scorer.second,
    )
    assert result.metrics["kid_colours"] == values[autoguided.folder]


def test_a_setting_stopped_half_way_is_free_for_the_next_and_other_real_images_are_another_run(
    scorer, monkeypatch
):
    setting = Setting(scale=1.0, low=0.0, high=1.0, steps=2, sampler="euler", ema=0.9)
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "evaluate_generation", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            scorer.score(setting)
    run = scorer.score(setting)
    assert run.finished
    other = dataclasses.replace(scorer, real=scorer.second, second=scorer.real)
    assert other.score(setting).folder != run.folder
