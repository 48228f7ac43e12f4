"""A tokenizer comes back from its run with its averaged weights and a name for them."""

import dataclasses

import pytest
import torch

from maetok_lab.identity import fingerprint_of, same_weights
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.recipe import TokenizerTraining

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16, patch_size=4, num_latent_tokens=4, latent_dim=2, encoder=TOWER, decoder=TOWER
)
TRAINING = TokenizerTraining(model=MODEL, num_steps=2, batch_size=2)


def save(run: Run, step: int, seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    averaged = Tokenizer(MODEL)
    run.save_checkpoint(
        step, {"model": Tokenizer(MODEL).state_dict(), "ema": averaged.state_dict()}, {}
    )
    return averaged


def test_the_averaged_weights_come_back_in_eval_mode_by_name_and_by_folder(tmp_path):
    with Run.open("a", TRAINING, root=tmp_path) as run:
        averaged = save(run, 10)
    for tokenizer in (load_tokenizer("a", root=tmp_path), load_tokenizer(tmp_path / "a")):
        assert not tokenizer.training
        assert tokenizer.config == MODEL
        for name, value in averaged.state_dict().items():
            assert torch.equal(tokenizer.state_dict()[name], value), name


def test_the_fingerprint_is_that_of_the_weights_and_the_run_and_step_are_an_earlier_name(tmp_path):
    fingerprints = set()
    for name, training in (("a", TRAINING), ("b", dataclasses.replace(TRAINING, seed=1))):
        with Run.open(name, training, root=tmp_path) as run:
            for step in (10, 20):
                averaged = save(run, step, seed=step)
                tokenizer = load_tokenizer(name, root=tmp_path)
                assert tokenizer.fingerprint == averaged.fingerprint
                assert same_weights(tokenizer, fingerprint_of([run.fingerprint, step]))
                assert not same_weights(averaged, fingerprint_of([run.fingerprint, step]))
                fingerprints.add(tokenizer.fingerprint)
    # equal weights have equal names, whatever run they are in
    assert len(fingerprints) == 2


def test_a_damaged_newest_checkpoint_gives_the_weights_and_fingerprint_of_the_one_before(tmp_path):
    with Run.open("a", TRAINING, root=tmp_path) as run:
        averaged = save(run, 10)
        before = load_tokenizer("a", root=tmp_path).fingerprint
        save(run, 20, seed=1)
    (run.folder / "checkpoints" / "step-0000020" / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged; falling back"):
        tokenizer = load_tokenizer("a", root=tmp_path)
    assert tokenizer.fingerprint == before
    assert torch.equal(tokenizer.to_pixels.weight, averaged.to_pixels.weight)


def test_what_is_no_tokenizer_is_refused_with_one_clear_line(tmp_path):
    Run.open("tokenizer-a", TRAINING, root=tmp_path).close()
    with pytest.raises(ValueError, match="run tokenizer-a has no checkpoint yet"):
        load_tokenizer("tokenizer-a", root=tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"tokenizer-b is not a run.*; did you mean 'tokenizer-a'\?"
    ):
        load_tokenizer("tokenizer-b", root=tmp_path)
    Run.open("model", TOWER, root=tmp_path).close()
    with pytest.raises(ValueError, match="run model holds a TowerConfig, not a tokenizer"):
        load_tokenizer("model", root=tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path):
    with Run.open("a", TRAINING, root=tmp_path) as run:
        state = Tokenizer(MODEL).state_dict()
        state.pop("to_pixels.bias")
        run.save_checkpoint(10, {"ema": state}, {})
    with pytest.raises(
        ValueError, match=r"run a: the tensors do not fit the model\n  missing\s+to_pixels.bias"
    ):
        load_tokenizer("a", root=tmp_path)
