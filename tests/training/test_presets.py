"""Presets say what the paper and the release say, and every rung of the ladder stands on every
size.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from maetok_lab.config import from_json, override, to_json
from maetok_lab.identity import fingerprint
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.model import TOKENIZERS
from maetok_lab.training.objective import Objective
from maetok_lab.training.optim import learning_rate_factor
from maetok_lab.training.presets import (
    DECODER_TUNING,
    LADDER,
    TOKENIZER_TRAINING,
    diffusion_training,
    ladder_training,
)
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import decoder_tuning, train_tokenizer

each_size = pytest.mark.parametrize("size", TOKENIZER_TRAINING)
PARENT = SimpleNamespace(fingerprint="parent")


def names(config: TokenizerTraining) -> list[str]:
    return [target.target for target in config.targets]


def test_every_model_has_a_training_and_a_tuning_by_its_name():
    assert list(TOKENIZER_TRAINING) == list(TOKENIZERS) == list(DECODER_TUNING)
    for name, config in TOKENIZER_TRAINING.items():
        assert config.model == TOKENIZERS[name]


@each_size
def test_every_training_survives_as_json(size):
    config = TOKENIZER_TRAINING[size]
    again = from_json(TokenizerTraining, json.loads(json.dumps(to_json(config))))
    assert (again, fingerprint(again)) == (config, fingerprint(config))


def test_the_papers_recipe_has_the_papers_numbers():
    config = TOKENIZER_TRAINING["maetok-b-128"]
    steps, optimizer, losses = config.num_steps, config.optimizer, config.losses
    assert (steps, config.batch_size, config.ema_decay, config.crop) == (
        500_000,
        512,
        0.9999,
        "scale",
    )
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay, optimizer.clip) == (
        "adamw",
        (0.9, 0.95),
        1e-4,
        1.0,
    )
    rates = [
        optimizer.learning_rate * learning_rate_factor(optimizer, step, steps)
        for step in (5000, steps - 1)
    ]
    assert rates == pytest.approx([2e-4, 2e-5])  # the warm-up's end, and a tenth at the end
    assert losses.perceptual_warmup * steps == 10_000
    assert (losses.pixel, losses.perceptual, losses.pixel_weight, losses.perceptual_weight) == (
        "mse",
        "lpips",
        1,
        1,
    )
    critic = losses.adversarial
    assert (critic.discriminator, critic.weight, critic.adaptive, critic.counts_from) == (
        "dino",
        0.4,
        True,
        30_000,
    )
    assert (critic.lecam_weight, critic.consistency_weight, critic.learning_rate) == (
        0.001,
        4.0,
        2e-4,
    )
    assert (config.masking.ratio, config.masking.low, config.masking.high) == (
        "truncated_normal",
        0.4,
        0.6,
    )
    assert names(config) == ["hog", "dinov2", "clip"]
    assert {target.weight for target in config.targets} == {1.0}
    tuning = decoder_tuning(config, parent=PARENT, **DECODER_TUNING["maetok-b-128"])
    assert (tuning.num_steps, tuning.masking.ratio, tuning.masking.high, tuning.masking.low) == (
        50_000,
        "linear",
        0.6,
        0.0,
    )
    assert (tuning.latent_noise, tuning.losses.adversarial.trains_from) == (0.0, 0)


def test_the_papers_training_is_built_as_the_release_is(monkeypatch):
    monkeypatch.setattr(
        "maetok_lab.training.objective.share_networks", lambda decoders: None
    )  # teachers are downloads
    monkeypatch.setattr("maetok_lab.training.objective.make_perceptual", lambda losses: None)
    with torch.device("meta"):
        objective = Objective(TOKENIZER_TRAINING["maetok-b-128"])
    widths = {name: decoder.to_target.out_features for name, decoder in objective.auxiliary.items()}
    assert widths == {"hog": 108, "dinov2": 1024, "clip": 1152}
    for decoder in objective.auxiliary.values():
        blocks = decoder.decoder.blocks
        assert (len(blocks), blocks[0].attn.num_heads, decoder.to_target.in_features) == (3, 3, 192)


def test_the_ladder_climbs_in_its_order():
    assert list(LADDER) == ["ae", "kl", "ae-mask", "hog", "semantic", "all"]
    rungs = [override(TOKENIZER_TRAINING["tiny"], changes) for changes in LADDER.values()]
    assert [names(rung) for rung in rungs] == [
        [],
        [],
        [],
        ["hog"],
        ["semantic"],
        ["hog", "semantic"],
    ]
    assert [rung.masking.ratio for rung in rungs] == ["none"] * 2 + ["truncated_normal"] * 4
    assert [rung.model.bottleneck for rung in rungs] == ["ae", "kl", "ae", "ae", "ae", "ae"]


@each_size
@pytest.mark.parametrize("rung", LADDER)
def test_every_rung_stands_on_every_size_and_can_be_tuned(size, rung):
    config = ladder_training(size, rung, seed=3)
    assert config == override(TOKENIZER_TRAINING[size], LADDER[rung] | {"seed": 3})
    assert decoder_tuning(config, parent=PARENT, **DECODER_TUNING[size]).trains == "decoder"


@pytest.mark.parametrize("rung", LADDER)
def test_twenty_steps_of_a_rung_equal_nine_a_stop_and_eleven_against_a_discriminator(
    assert_same_end, tmp_path, make_pictures, rung
):
    critic = AdversarialConfig(
        discriminator="patchgan", width=8, layers=2, trains_from=4, counts_from=12
    )
    config = ladder_training(
        "test", rung, batch_size=2, save_every=9, precision="fp32", losses__adversarial=critic
    )
    images = make_pictures(10, 64)
    whole = Run.open("whole", config, root=tmp_path)
    list(train_tokenizer(config, images, whole, cpu=True))
    cut = Run.open("cut", config, root=tmp_path)
    for record in train_tokenizer(config, images, cut, cpu=True):
        if record.step == 9:
            break
    torch.rand(5)
    resumed = Run.open("cut", config, root=tmp_path)
    assert [record.step for record in train_tokenizer(config, images, resumed, cpu=True)] == list(
        range(10, 21)
    )
    assert_same_end(whole, resumed)
    assert whole.summary["adversarial"] != 0
    assert {name for name in whole.summary if name.startswith("auxiliary/")} == {
        f"auxiliary/{name}" for name in names(config)
    }


def test_a_teacher_stands_for_the_shipped_network_and_changes_are_checked():
    config = ladder_training(
        "tiny",
        "all",
        teacher="dinov2",
        weights={"dinov2": "dinov2.safetensors"},
        optimizer__clip=0.5,
    )
    assert [(target.target, target.weights) for target in config.targets] == [
        ("hog", None),
        ("dinov2", "dinov2.safetensors"),
    ]
    assert config.optimizer.clip == 0.5
    assert ladder_training("tiny", "hog", teacher="dinov2") == ladder_training("tiny", "hog")
    for arguments, message in (
        (("tiny", "hogs"), "unknown rung of the ladder 'hogs'; did you mean 'hog'"),
        (("tinny", "hog"), "unknown preset 'tinny'; did you mean 'tiny'"),
    ):
        with pytest.raises(ValueError, match=message):
            ladder_training(*arguments)
    with pytest.raises(ValueError, match="unknown target 'dinov3'; did you mean 'dinov2'"):
        ladder_training("tiny", "semantic", teacher="dinov3")


def test_without_a_rung_the_recipe_is_the_presets_and_its_networks_can_be_files():
    paper = TOKENIZER_TRAINING["maetok-b-128"]
    assert ladder_training("maetok-b-128", "preset") == paper
    files = {"dinov2": "d", "clip": "c", "lpips": "l", "discriminator": "s"}
    config = ladder_training("maetok-b-128", "preset", weights=files)
    assert [target.weights for target in config.targets] == [None, "d", "c"]
    assert config.losses.perceptual_weights == "l"
    assert config.losses.adversarial.weights == "s"
    with pytest.raises(ValueError, match="unknown network of this training 'dino'; did you mean"):
        ladder_training("maetok-b-128", "preset", weights={"dino": "d"})
    with pytest.raises(ValueError, match="unknown network of this training 'discriminator'"):
        ladder_training("tiny", "preset", weights={"discriminator": "d"})


def test_every_part_of_a_config_can_be_written_in_a_notebook():
    changes = {
        "losses.adversarial": {"discriminator": "patchgan", "trains_from": 5, "counts_from": 5},
        "targets": [{"target": "pixel", "weight": 0.5}, {"target": "hog"}],
    }
    config = ladder_training("tiny", "preset", **changes)
    assert config.losses.adversarial == AdversarialConfig(
        discriminator="patchgan", trains_from=5, counts_from=5
    )
    assert config.targets == (
        AuxiliaryConfig(target="pixel", weight=0.5),
        AuxiliaryConfig(target="hog"),
    )
    with pytest.raises(ValueError, match="AuxiliaryConfig has no field 'wieght'; did you mean"):
        ladder_training("tiny", "preset", targets=[{"wieght": 1.0}])
    with pytest.raises(ValueError, match=r"TowerConfig needs the fields .*'width'"):
        ladder_training("tiny", "preset", targets=[{"tower": {"num_heads": 2}}])


def plain_fields(config, path: str = "") -> dict[str, object]:
    """Every field of a config and of those in it, as a notebook would write its value."""
    fields = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{path}{field.name}"
        fields[name] = json.loads(json.dumps(to_json(config)))[field.name]
        if dataclasses.is_dataclass(value):
            fields |= plain_fields(value, f"{name}.")
    return fields


@pytest.mark.parametrize("size", ["tiny", "maetok-b-128"])
def test_every_field_of_a_training_can_be_set_from_its_notebook(size):
    config = TOKENIZER_TRAINING[size]
    fields = plain_fields(config)
    assert len(fields) > 50
    for path, value in fields.items():
        assert ladder_training(size, "preset", **{path: value}) == config, path
        # a value of no type that any field has is refused, and its field named
        with pytest.raises(
            (TypeError, ValueError), match=rf"{path.rpartition('.')[2]}|no field 'no'"
        ):
            ladder_training(size, "preset", **{path: {"no": "such"}})


def test_every_field_of_a_diffusion_training_can_be_set_from_its_notebook():
    cache = SimpleNamespace(fingerprint="cache", space=SimpleNamespace(tokenizer="tokenizer"))
    config = diffusion_training("sit-xl", cache, num_classes=1000)
    for path, value in plain_fields(config).items():
        assert override(config, {path: value}) == config, path
        with pytest.raises(
            (TypeError, ValueError), match=rf"{path.rpartition('.')[2]}|no field 'no'"
        ):
            override(config, {path: {"no": "such"}})
