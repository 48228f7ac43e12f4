"""The second stage: the decoder learns on, and what makes the latents does not move."""

import dataclasses

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.objective import Objective
from maetok_lab.training.optim import OptimizerConfig
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

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
HOG = (AuxiliaryConfig(tower=dataclasses.replace(TOWER, depth=1)),)
STAGE_ONE = TokenizerTraining(
    model=MODEL,
    targets=HOG,
    losses=LossConfig(perceptual="none"),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    num_steps=3,
    batch_size=6,
    ema_decay=0.9,
    log_every=2,
    save_every=9,
)


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(10, 16)


def train(config, images, run, *, steps: int | None = None, parent: Run | None = None) -> list:
    """The records of at most `steps` steps; then the generator is left standing, as by a kill."""
    records = []
    if config.trains == "all":
        stage = train_tokenizer(config, images, run, cpu=True)
    else:
        stage = finetune_decoder(config, images, run, cpu=True, parent=parent)
    for record in stage:
        records.append(record)
        if len(records) == steps:
            break
    return records


@pytest.fixture
def parent(tmp_path, pictures) -> Run:
    run = Run.open("parent", STAGE_ONE, root=tmp_path)
    train(STAGE_ONE, pictures, run)
    return run


@pytest.mark.parametrize("latent_noise", [0.0, 0.4])
def test_it_starts_from_the_averages_leaves_the_encoder_alone_and_resumes_bit_for_bit(
    assert_same_end, tmp_path, pictures, parent, latent_noise
):
    changes = {"num_steps": 20, "optimizer__learning_rate": 2e-3, "latent_noise": latent_noise}
    config = decoder_tuning(STAGE_ONE, parent=parent, **changes)
    assert config.masking == MaskingConfig(ratio="linear", low=0.0, high=0.6)
    assert (config.trains, config.targets, config.optimizer.learning_rate) == ("decoder", (), 2e-3)
    whole = Run.open("whole", config, root=tmp_path, parents=[parent])
    train(config, pictures, whole, parent=parent)
    before, after = parent.load_checkpoint().tensors["ema"], whole.load_checkpoint().tensors
    frozen = {name for name in before if name.startswith(("encoder.", "to_latents."))}
    for name, value in before.items():
        for group in ("model", "ema"):
            unused = name.startswith("decoder.norm_modulation")
            assert torch.equal(after[group][name], value) == (name in frozen or unused), name
    assert whole.provenance["parents"] == [
        {
            "run": "parent",
            "fingerprint": parent.fingerprint,
            "checkpoint_sha256": parent.checkpoint_hash(),
        }
    ]
    train(config, pictures, Run.open("cut", config, root=tmp_path), parent=parent, steps=9)
    resumed = Run.open("cut", config, root=tmp_path)
    train(config, pictures, resumed, parent=parent)
    assert_same_end(whole, resumed)


def test_a_kl_tokenizer_is_tuned_on_the_posteriors_mean(tmp_path, pictures):
    config = dataclasses.replace(STAGE_ONE, model=dataclasses.replace(MODEL, bottleneck="kl"))
    parent = Run.open("parent", config, root=tmp_path)
    train(config, pictures, parent)
    tuning = decoder_tuning(config, parent=parent, num_steps=2)
    records = train(tuning, pictures, Run.open("tuned", tuning, root=tmp_path), parent=parent)
    assert set(records[-1].losses) == {"pixel"}


def test_it_needs_its_own_parent_and_weights_in_it(tmp_path, pictures, parent):
    tuning = decoder_tuning(STAGE_ONE, parent=parent)
    other = Run.open("other", dataclasses.replace(STAGE_ONE, seed=1), root=tmp_path)
    for wrong in (None, other):
        with pytest.raises(
            ValueError, match=f"needs the run with fingerprint {parent.fingerprint} as its parent"
        ):
            train(tuning, pictures, Run.open("tuned", tuning, root=tmp_path), parent=wrong)
    empty = decoder_tuning(STAGE_ONE, parent=other)
    with pytest.raises(
        ValueError, match="decoder tuning starts from run other, which has no checkpoint yet"
    ):
        train(empty, pictures, Run.open("empty", empty, root=tmp_path), parent=other)
    for wrong in ({"targets": HOG}, {"parent": None}):
        with pytest.raises(
            ValueError, match=r"needs a parent run and has no auxiliary targets, not parent "
        ):
            dataclasses.replace(tuning, **wrong)


def test_every_tuning_preset_fits_its_training_preset(parent):
    assert set(DECODER_TUNING) == set(TOKENIZER_TRAINING)
    for name, changes in DECODER_TUNING.items():
        assert (
            decoder_tuning(TOKENIZER_TRAINING[name], parent=parent, **changes).trains == "decoder"
        )


def test_an_encoder_that_moved_is_an_error_that_names_it_and_is_not_written(
    tmp_path, pictures, parent, monkeypatch
):
    config = decoder_tuning(STAGE_ONE, parent=parent)
    run = Run.open("tuned", config, root=tmp_path)

    def nudge(self, mode=True):
        with torch.no_grad():
            self.tokenizer.encoder.norm.weight[0] += (
                1e-6  # one value of one tensor, by the last bits
            )
        return torch.nn.Module.train(self, mode)

    monkeypatch.setattr(Objective, "train", nudge)
    with pytest.raises(
        RuntimeError,
        match=r"decoder tuning moved what makes the latents: encoder\.norm\.weight of 1 tensors",
    ):
        train(config, pictures, run, parent=parent)
    assert not run.finished
    assert run.checkpoint_steps() == []


def test_each_stage_has_its_own_function(tmp_path, pictures, parent):
    tuning = decoder_tuning(STAGE_ONE, parent=parent)
    with pytest.raises(
        ValueError,
        match="this config tunes a decoder: finetune_decoder trains it, from its parent run",
    ):
        next(train_tokenizer(tuning, pictures, Run.open("a", tuning, root=tmp_path), cpu=True))
    with pytest.raises(
        ValueError,
        match="finetune_decoder needs the config of a second stage; make it with decoder_tuning",
    ):
        next(
            finetune_decoder(
                STAGE_ONE,
                pictures,
                Run.open("b", STAGE_ONE, root=tmp_path),
                parent=parent,
                cpu=True,
            )
        )


def test_noise_on_the_latents_is_for_the_second_stage():
    with pytest.raises(ValueError, match="latent_noise is for decoder tuning"):
        dataclasses.replace(STAGE_ONE, latent_noise=0.4)


@pytest.fixture(scope="module")
def tuned_weights(tmp_path_factory):
    """`tuned_weights(processes, parts)`: the weights after six steps with noise on the latents."""
    root = tmp_path_factory.mktemp("noise")
    images = open_images("emoji", split="val", image_size=32)  # other processes can have them
    changes = {"num_steps": 2, "model.image_size": 32, "precision": "fp32"}
    adamw = {"optimizer.name": "adamw", "optimizer.learning_rate": 1e-3}
    first = override(TOKENIZER_TRAINING["test"], changes | adamw)
    parent = Run.open("parent", first, root=root)
    train(first, images, parent)
    parent.close()

    def tune(processes: int, parts: int) -> dict[str, torch.Tensor]:
        changes = DECODER_TUNING["test"] | {"num_steps": 6, "accumulate": parts}
        assert changes["latent_noise"] > 0
        config = decoder_tuning(first, parent=parent, **changes)
        with Run.open(f"tuned-{processes}-{parts}", config, root=root, parents=[parent]) as run:
            options = {"parent": parent, "processes": processes, "cpu": True}
            list(finetune_decoder(config, images, run, **options))
        return run.load_checkpoint().tensors["model"]

    return tune


@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (1, 4), (2, 1)])
def test_noise_has_the_size_of_the_global_batch_in_any_parts_and_processes(
    tuned_weights, processes, parts
):
    whole = tuned_weights(1, 1)
    for name, value in tuned_weights(processes, parts).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=2e-6, msg=name)


def test_the_mask_ratio_falls_to_nothing(tmp_path, pictures, parent, monkeypatch):
    seen = []
    config = decoder_tuning(STAGE_ONE, parent=parent, num_steps=12)
    forward = Objective.forward

    def spy(self, images, mask, *rest):
        seen.append(0 if mask is None else int(mask[0].sum()))
        return forward(self, images, mask, *rest)

    monkeypatch.setattr(Objective, "forward", spy)
    train(config, pictures, Run.open("tuned", config, root=tmp_path), parent=parent)
    assert seen == [
        10,
        9,
        8,
        8,
        7,
        6,
        5,
        4,
        4,
        3,
        2,
        1,
    ]  # the ceiling of 16 * 0.6 * (1 - step / 12)
