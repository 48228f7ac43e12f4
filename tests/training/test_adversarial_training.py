"""Adversarial training costs nothing before it starts, counts when it should, and survives stops
and bad steps.
"""

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig, PatchDiscriminator
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training import adversary as module
from maetok_lab.training.adversary import TERMS
from maetok_lab.training.optim import NonFiniteTraining, OptimizerConfig
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=4,
    num_latent_tokens=4,
    latent_dim=2,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)
PATCHGAN = AdversarialConfig(
    discriminator="patchgan",
    width=8,
    layers=2,
    trains_from=4,
    counts_from=12,
    learning_rate=1e-3,
    betas=(0.5, 0.9),
)
PLAIN = TokenizerTraining(
    model=MODEL,
    targets=(AuxiliaryConfig(tower=TOWER),),
    losses=LossConfig(perceptual="none"),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    num_steps=20,
    batch_size=6,
    ema_decay=0.9,
    precision="fp32",
    log_every=1,
    save_every=9,
)
CONFIG = override(PLAIN, {"losses.adversarial": PATCHGAN})
CONFIGS = {
    "spectral": CONFIG,
    "group": override(
        CONFIG, {"precision": "bf16", "model.bottleneck": "kl", "losses.adversarial.norm": "group"}
    ),
    "fixed": override(
        CONFIG, {"losses.adversarial.adaptive": False, "losses.adversarial.consistency_weight": 0.0}
    ),
    "dino": override(
        CONFIG, {"losses.adversarial.discriminator": "dino", "losses.adversarial.diffaug": False}
    ),
}


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(10, 16)


def train(config, images, run, *, steps: int | None = None) -> list:
    """The records of at most `steps` steps; then the generator is left standing, as by a kill."""
    records = []
    for record in train_tokenizer(config, images, run, cpu=True):
        records.append(record)
        if len(records) == steps:
            break
    return records


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_twenty_steps_equal_nine_a_stop_and_eleven_with_a_discriminator(
    assert_same_end, tmp_path, pictures, small_dino, kind
):
    config = CONFIGS[kind]
    whole = Run.open("whole", config, root=tmp_path)
    train(config, pictures, whole)
    train(config, pictures, Run.open("cut", config, root=tmp_path), steps=9)
    torch.rand(5)
    resumed = Run.open("cut", config, root=tmp_path)
    assert [r.step for r in train(config, pictures, resumed)] == list(range(10, 21))
    assert_same_end(whole, resumed)
    tensors = whole.load_checkpoint().tensors
    assert set(tensors) == {
        "model",
        "ema",
        "optimizer",
        "auxiliary",
        "discriminator",
        "discriminator_optimizer",
    }
    assert {name.split(".")[0] for name in tensors["discriminator"]} == {
        "trained",
        "lecam",
    }  # not the frozen network
    assert tensors["discriminator"]["lecam.real"] != 0
    assert {
        v.item() for k, v in tensors["discriminator_optimizer"].items() if k.endswith(".step")
    } == {16}
    assert torch.isfinite(torch.tensor(whole.metrics()[list(TERMS)].values)).all()


# When it starts -----------------------------------------------------------------------------------


def test_before_it_trains_nothing_of_it_is_computed(tmp_path, pictures, monkeypatch):
    looks, augmented, forward, augment = [], [], PatchDiscriminator.forward, module.diff_augment
    monkeypatch.setattr(
        PatchDiscriminator, "forward", lambda self, x: looks.append(len(x)) or forward(self, x)
    )
    monkeypatch.setattr(
        module,
        "diff_augment",
        lambda x, **settings: augmented.append(len(x)) or augment(x, **settings),
    )
    seen = []
    for _ in train_tokenizer(CONFIG, pictures, Run.open("a", CONFIG, root=tmp_path), cpu=True):
        seen.append((tuple(looks), len(augmented)))
        looks.clear()
        augmented.clear()
    assert seen[:4] == [((), 0)] * 4
    assert (
        seen[4:12] == [((24,), 4)] * 8
    )  # real, fake, and both again under strong augmentation, in one pass
    assert seen[12:] == [((6, 24), 5)] * 8


def test_before_it_counts_the_tokenizer_is_as_without_it_bit_for_bit(tmp_path, pictures):
    opposed = override(CONFIG, {"num_steps": 9, "losses.adversarial.counts_from": 7})
    losses = []
    for name, config in (
        ("with", opposed),
        ("without", override(opposed, {"losses.adversarial": None})),
    ):
        run = Run.open(name, config, root=tmp_path)
        train(config, pictures, run)
        losses.append(run.metrics()["pixel"].tolist())
    assert (
        losses[0][:8] == losses[1][:8]
    )  # the step that counts first, the eighth, still starts from the same weights
    assert losses[0][8] != losses[1][8]


def test_every_record_names_every_term_and_they_are_zero_before_their_time(tmp_path, pictures):
    records = train(CONFIG, pictures, Run.open("a", CONFIG, root=tmp_path))
    assert all(set(r.losses) == {"pixel", "auxiliary/hog", *TERMS} for r in records)
    losses = [[r.losses[name] for name in TERMS] for r in records]
    assert losses[:4] == [[0.0] * len(TERMS)] * 4
    trained, counted = TERMS[2:7], TERMS[:2]
    assert all(r.losses[name] > 0 for r in records[5:] for name in trained[:3])
    assert all(0 <= r.losses[name] <= 1 for r in records for name in trained[3:])
    assert all(r.losses[name] == 0 for r in records[:12] for name in counted)
    assert all(r.losses[name] != 0 for r in records[12:] for name in counted)


def test_a_discriminator_that_never_counts_is_an_error():
    with pytest.raises(
        ValueError,
        match=r"counts from step 20, after the last of 20; lower losses\.adversarial\.counts_from",
    ):
        override(CONFIG, {"losses.adversarial.counts_from": 20})


def test_what_does_not_fit_is_said_at_the_start(tmp_path, pictures):
    config = override(CONFIG, {"losses.adversarial.layers": 3})
    with pytest.raises(ValueError, match="needs images of at least 24 px, not 16"):
        train(config, pictures, Run.open("a", config, root=tmp_path))


def test_in_decoder_tuning_the_encoder_stays_as_it_is_and_the_decoder_is_opposed(
    tmp_path, pictures
):
    parent = Run.open("parent", override(PLAIN, {"num_steps": 2}), root=tmp_path)
    train(parent.load_config(TokenizerTraining), pictures, parent)
    changes = {
        "num_steps": 6,
        "losses__adversarial__trains_from": 1,
        "losses__adversarial__counts_from": 2,
    }
    config = decoder_tuning(CONFIG, parent=parent, **changes)
    run = Run.open("tuned", config, root=tmp_path, parents=[parent])
    records = list(finetune_decoder(config, pictures, run, parent=parent, cpu=True))
    assert records[-1].losses["adaptive_weight"] > 0
    before, after = parent.load_checkpoint().tensors["ema"], run.load_checkpoint().tensors["model"]
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {"decoder", "to_pixels"}
    assert not moved & {"encoder", "to_latents"}


# Bad steps ----------------------------------------------------------------------------------------


def test_skipped_steps_are_counted_beyond_a_stop(tmp_path, pictures, break_hinge):
    break_hinge({1, 3})
    train(CONFIG, pictures, Run.open("a", CONFIG, root=tmp_path), steps=9)
    run = Run.open("a", CONFIG, root=tmp_path)
    train(CONFIG, pictures, run)
    assert run.metrics()["discriminator/skipped"].tolist() == [0] * 5 + [1] * 2 + [2] * 13
    assert run.summary["discriminator/skipped"] == 2
    assert run.summary["skipped"] == 0


def test_several_bad_steps_in_a_row_end_the_training_and_name_the_term(
    tmp_path, pictures, break_hinge
):
    break_hinge(set(range(20)))
    with pytest.raises(
        NonFiniteTraining, match=r"5 steps in a row, not later than step 9, .*'discriminator': nan"
    ):
        train(CONFIG, pictures, Run.open("a", CONFIG, root=tmp_path))


def test_a_bad_image_is_kept_from_tokenizer_and_discriminator(tmp_path, pictures):
    count, batch = [], pictures.batch

    def poisoned(*args, **settings):
        count.append(None)
        images, labels = batch(*args, **settings)
        return images * (torch.nan if len(count) == 14 else 1), labels

    pictures.batch = poisoned
    run = Run.open("a", CONFIG, root=tmp_path)
    train(CONFIG, pictures, run)
    assert (run.summary["skipped"], run.summary["discriminator/skipped"]) == (1, 1)
    tensors = run.load_checkpoint().tensors
    assert all(
        torch.isfinite(value).all() for group in tensors.values() for value in group.values()
    )
