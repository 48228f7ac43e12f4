"""Auxiliary decoders come back from the run that trained them, also through one tuned from it."""

import shutil

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.loading import export_tokenizer, load_auxiliary, load_tokenizer
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.objective import Objective
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import decoder_tuning

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16, patch_size=4, num_latent_tokens=4, latent_dim=2, encoder=TOWER, decoder=TOWER
)
TARGETS = tuple(
    AuxiliaryConfig(target=name, tower=TOWER, weight=0.5)
    for name in ("hog", "pixel", "timm:resnet10t.c3_in1k")
)
TRAINING = TokenizerTraining(
    model=MODEL, targets=TARGETS, losses=LossConfig(perceptual="none"), num_steps=2, batch_size=2
)


@pytest.fixture
def parent(tmp_path, monkeypatch):
    """A run with a checkpoint of three targets, and what it saved."""
    monkeypatch.setattr(
        "maetok_lab.training.objective.share_networks", lambda decoders: None
    )  # resnet10t's are on the hub
    torch.manual_seed(0)
    objective = Objective(TRAINING)
    with Run.open("parent", TRAINING, root=tmp_path) as run:
        auxiliary = objective.auxiliary.state_dict()
        run.save_checkpoint(
            2, {"ema": objective.tokenizer.state_dict(), "auxiliary": auxiliary}, {}
        )
        run.finish({})
    return run, objective.auxiliary


def test_every_decoder_comes_back_as_it_was_by_its_targets_name(parent, tmp_path):
    latents = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    for source in ("parent", tmp_path / "parent"):
        decoders = load_auxiliary(source, root=tmp_path)
        assert list(decoders) == [target.target for target in TARGETS]
        for target in TARGETS:
            decoder = decoders[target.target]
            assert (decoder.config, decoder.training) == (target, False)
            assert torch.equal(decoder(latents), parent[1][target.module_name](latents))
    images = torch.rand(1, 3, 16, 16)
    assert decoders["hog"].target(images).shape == (1, 16, 27)  # to be laid beside the prediction


def test_a_tuned_run_gives_those_of_the_run_it_was_tuned_from_however_often(parent, tmp_path):
    run, auxiliary = parent
    for step, name in enumerate(("tuned", "again")):
        tuning = decoder_tuning(TRAINING, parent=run, num_steps=2 + step)
        with Run.open(name, tuning, root=tmp_path, parents=[run]) as run:
            run.save_checkpoint(2, {"ema": {}}, {})
            run.finish({})
        decoders = load_auxiliary(name, root=tmp_path)
        assert torch.equal(decoders["pixel"].to_target.weight, auxiliary["pixel"].to_target.weight)


def test_what_has_no_decoders_is_said(parent, tmp_path):
    run, _ = parent
    with Run.open("plain", override(TRAINING, {"targets": ()}), root=tmp_path) as plain:
        plain.save_checkpoint(1, {"ema": {}}, {})
    with pytest.raises(ValueError, match="run plain was trained without auxiliary targets"):
        load_auxiliary("plain", root=tmp_path)
    Run.open("new", override(TRAINING, {"seed": 1}), root=tmp_path).close()
    with pytest.raises(ValueError, match="run new has no checkpoint yet"):
        load_auxiliary("new", root=tmp_path)
    Run.open("other", TOWER, root=tmp_path).close()
    with pytest.raises(ValueError, match="run other holds a TowerConfig, not a tokenizer"):
        load_auxiliary("other", root=tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(ValueError, match="holds a tokenizer's weights only"):
        load_auxiliary(tmp_path / "weights")
    Run.open("orphan", decoder_tuning(TRAINING, parent=run), root=tmp_path).close()
    with pytest.raises(ValueError, match="run orphan does not record the run it was tuned from"):
        load_auxiliary("orphan", root=tmp_path)
    Run.open("tuned", decoder_tuning(TRAINING, parent=run), root=tmp_path, parents=[run]).close()
    shutil.rmtree(run.folder)
    with pytest.raises(FileNotFoundError, match="parent is not a run"):
        load_auxiliary("tuned", root=tmp_path)
    Run.open("parent", override(TRAINING, {"seed": 2}), root=tmp_path).close()
    with pytest.raises(
        ValueError,
        match="run tuned was tuned from another run than the parent that is beside it now",
    ):
        load_auxiliary("tuned", root=tmp_path)


def test_a_checkpoint_that_does_not_fit_is_a_table(parent, tmp_path):
    run, auxiliary = parent
    state = {
        name: value
        for name, value in auxiliary.state_dict().items()
        if name != "pixel.to_target.bias"
    }
    run.save_checkpoint(3, {"auxiliary": state}, {})
    with pytest.raises(
        ValueError,
        match=r"run parent: the tensors do not fit the model\n  missing +pixel\.to_target\.bias",
    ):
        load_auxiliary("parent", root=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_exported_folder_may_have_them_too(parent, tmp_path, dtype):
    run, auxiliary = parent
    tokenizer = load_tokenizer(run.folder)
    folder = export_tokenizer(
        tokenizer, tmp_path / "out", auxiliary=load_auxiliary(run.folder), dtype=dtype
    )
    decoders = load_auxiliary(folder)
    assert list(decoders) == [target.target for target in TARGETS]
    for target in TARGETS:
        saved = auxiliary[target.module_name].to_target.weight
        assert torch.equal(decoders[target.target].to_target.weight, saved.to(dtype).float())
    back = load_tokenizer(folder)
    assert torch.equal(back.to_latents.weight, tokenizer.to_latents.weight.to(dtype).float())
