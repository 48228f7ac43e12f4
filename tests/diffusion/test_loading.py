"""A diffusion model comes back from its run with the averaged weights that were asked for."""

import pytest
import torch

from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, describe_model
from maetok_lab.runs import Run
from maetok_lab.training.diffusion import DiffusionTraining, ema_name

MODEL = DiffusionConfig(width=16, depth=1, num_heads=2)
TRAINING = DiffusionTraining(
    model=MODEL, num_classes=3, num_steps=2, batch_size=2, ema_decays=(0.9999, 0.9)
)


def build(seed: int) -> DiffusionTransformer:
    torch.manual_seed(seed)
    return DiffusionTransformer(MODEL, num_tokens=4, latent_dim=2, num_classes=3)


def save(run: Run, step: int) -> dict[float, DiffusionTransformer]:
    averaged = {0.9999: build(1), 0.9: build(2)}
    tensors = {"model": build(0).state_dict()} | {
        ema_name(d): m.state_dict() for d, m in averaged.items()
    }
    run.save_checkpoint(step, tensors, {"skipped": 0, **describe_model(build(0))})
    return averaged


def test_the_first_rate_is_the_default_and_any_can_be_chosen(tmp_path):
    with Run.open("a", TRAINING, root=tmp_path) as run:
        averaged = save(run, 10)
    for ema, expected in ((None, 0.9999), (0.9, 0.9), (0.9999, 0.9999)):
        for model in (
            load_diffusion("a", ema=ema, root=tmp_path),
            load_diffusion(tmp_path / "a", ema=ema),
        ):
            assert not model.training
            assert describe_model(model) == {"num_tokens": 4, "latent_dim": 2, "num_classes": 3}
            for name, value in averaged[expected].state_dict().items():
                assert torch.equal(model.state_dict()[name], value), name


def test_an_earlier_checkpoint_can_be_chosen(tmp_path):
    with Run.open("a", TRAINING, root=tmp_path) as run:
        averaged = save(run, 10)
        other = build(7)
        tensors = {ema_name(d): other.state_dict() for d in TRAINING.ema_decays}
        run.save_checkpoint(20, tensors, {"skipped": 0, **describe_model(other)})
    for step, expected in ((None, other), (20, other), (10, averaged[0.9])):
        model = load_diffusion("a", ema=0.9, step=step, root=tmp_path)
        for name, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(ValueError, match=r"run a has no checkpoint of step 15; it has \[10, 20\]"):
        load_diffusion("a", step=15, root=tmp_path)


def test_what_cannot_be_loaded_is_one_clear_line(tmp_path):
    with Run.open("sit-a", TRAINING, root=tmp_path):
        pass
    with pytest.raises(ValueError, match="run sit-a has no checkpoint yet"):
        load_diffusion("sit-a", root=tmp_path)
    with pytest.raises(ValueError, match=r"run sit-a has EMA rates \[0.9999, 0.9\], not 0.99"):
        load_diffusion("sit-a", ema=0.99, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not a run.*; did you mean 'sit-a'\?"):
        load_diffusion("sit-b", root=tmp_path)
    Run.open("model", MODEL, root=tmp_path).close()
    with pytest.raises(
        ValueError, match="run model holds a DiffusionConfig, not a diffusion model"
    ):
        load_diffusion("model", root=tmp_path)


def test_every_rate_has_a_name_of_its_own():
    rates = [0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999, 0.9995, 0.99995]
    assert ema_name(0.9999) == "ema-0.9999"
    assert len({ema_name(rate) for rate in rates}) == len(rates)
