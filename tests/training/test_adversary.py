"""Adversarial training costs nothing before it starts, counts when it should, and survives stops and bad steps."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from maetok_lab.config import override
from maetok_lab.nets import FeatureNet
from maetok_lab.runs import Run
from maetok_lab.tokenizer import discriminators
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig, PatchDiscriminator, hinge_g
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training import adversary as module
from maetok_lab.training.adversary import TERMS, Adversary, average_gradients, half_crop, held_still
from maetok_lab.training.common import NonFiniteTraining, OptimizerConfig, Share
from maetok_lab.training.tokenizer import TokenizerTraining, decoder_tuning, finetune_decoder, train_tokenizer

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16, patch_size=4, num_latent_tokens=4, latent_dim=2, encoder=TOWER, decoder=TOWER, modulation_init=1.0
)
PATCHGAN = AdversarialConfig(
    discriminator="patchgan", width=8, layers=2, trains_from=4, counts_from=12, learning_rate=1e-3, betas=(0.5, 0.9)
)
PLAIN = TokenizerTraining(
    model=MODEL, targets=(AuxiliaryConfig(tower=TOWER),), losses=LossConfig(perceptual="none"),
    optimizer=OptimizerConfig(learning_rate=1e-3), num_steps=20, batch_size=6, ema_decay=0.9, precision="fp32",
    log_every=1, save_every=9,
)  # fmt: skip
CONFIG = override(PLAIN, {"losses.adversarial": PATCHGAN})
CONFIGS = {
    "spectral": CONFIG,
    "group": override(CONFIG, {"precision": "bf16", "model.bottleneck": "kl", "losses.adversarial.norm": "group"}),
    "fixed": override(CONFIG, {"losses.adversarial.adaptive": False, "losses.adversarial.consistency_weight": 0.0}),
    "dino": override(CONFIG, {"losses.adversarial.discriminator": "dino", "losses.adversarial.diffaug": False}),
}


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(10, 16)


@pytest.fixture
def small_dino(monkeypatch):
    """ViT-S's depth with random weights, for images of 8 px: those of 16 px are cropped."""

    def load(name, **settings):
        from timm.models.vision_transformer import VisionTransformer

        torch.manual_seed(0)
        vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=12, num_heads=2, dynamic_img_size=True)
        return FeatureNet(vit, name=name, mean=[124] * 3, std=[58] * 3, order="rgb", input_size=8, weight_hash="random")

    monkeypatch.setattr(discriminators, "load_net", load)


def train(config, images, run, *, steps: int | None = None) -> list:
    """The records of at most `steps` steps; then the generator is left standing, as by a kill."""
    records = []
    for record in train_tokenizer(config, images, run, cpu=True):
        records.append(record)
        if len(records) == steps:
            break
    return records


def make_adversary(config: AdversarialConfig = PATCHGAN, **changes) -> Adversary:
    config = dataclasses.replace(config, **{"trains_from": 0, "counts_from": 0, **changes})
    optimizer = OptimizerConfig(learning_rate=1e-3)
    return Adversary(config, optimizer, image_size=16, precision="fp32", seed=0, device=torch.device("cpu"))


def share(step: int = 0, size: int = 4) -> Share:
    return Share(Accelerator(cpu=True), step, size)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Stopping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_twenty_steps_equal_nine_a_stop_and_eleven_with_a_discriminator(assert_same_end, tmp_path, pictures, small_dino, kind):
    config = CONFIGS[kind]
    whole = Run.open("whole", config, root=tmp_path)
    train(config, pictures, whole)
    train(config, pictures, Run.open("cut", config, root=tmp_path), steps=9)
    torch.rand(5)
    resumed = Run.open("cut", config, root=tmp_path)
    assert [r.step for r in train(config, pictures, resumed)] == list(range(10, 21))
    assert_same_end(whole, resumed)
    tensors = whole.load_checkpoint().tensors
    assert set(tensors) == {"model", "ema", "optimizer", "auxiliary", "discriminator", "discriminator_optimizer"}
    assert {name.split(".")[0] for name in tensors["discriminator"]} == {"trained", "lecam"}  # not the frozen network
    assert tensors["discriminator"]["lecam.real"] != 0
    assert {v.item() for k, v in tensors["discriminator_optimizer"].items() if k.endswith(".step")} == {16}
    assert torch.isfinite(torch.tensor(whole.metrics()[list(TERMS)].values)).all()


# When it starts -------------------------------------------------------------------------------------------------------


def test_before_it_trains_nothing_of_it_is_computed(tmp_path, pictures, monkeypatch):
    looks, augmented, forward, augment = [], [], PatchDiscriminator.forward, module.diff_augment
    monkeypatch.setattr(PatchDiscriminator, "forward", lambda self, x: looks.append(len(x)) or forward(self, x))
    monkeypatch.setattr(module, "diff_augment", lambda x, **settings: augmented.append(len(x)) or augment(x, **settings))
    seen = []
    for _ in train_tokenizer(CONFIG, pictures, Run.open("a", CONFIG, root=tmp_path), cpu=True):
        seen.append((tuple(looks), len(augmented)))
        looks.clear()
        augmented.clear()
    assert seen[:4] == [((), 0)] * 4
    assert seen[4:12] == [((24,), 4)] * 8  # real, fake, and both again under strong augmentation, in one pass
    assert seen[12:] == [((6, 24), 5)] * 8


def test_before_it_counts_the_tokenizer_is_as_without_it_bit_for_bit(tmp_path, pictures):
    opposed = override(CONFIG, {"num_steps": 9, "losses.adversarial.counts_from": 7})
    losses = []
    for name, config in (("with", opposed), ("without", override(opposed, {"losses.adversarial": None}))):
        run = Run.open(name, config, root=tmp_path)
        train(config, pictures, run)
        losses.append(run.metrics()["pixel"].tolist())
    assert losses[0][:8] == losses[1][:8]  # the step that counts first, the eighth, still starts from the same weights
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
    with pytest.raises(ValueError, match=r"counts from step 20, after the last of 20; lower losses\.adversarial\.counts_from"):
        override(CONFIG, {"losses.adversarial.counts_from": 20})


def test_what_does_not_fit_is_said_at_the_start(tmp_path, pictures):
    config = override(CONFIG, {"losses.adversarial.layers": 3})
    with pytest.raises(ValueError, match="needs images of at least 24 px, not 16"):
        train(config, pictures, Run.open("a", config, root=tmp_path))


# Gradients ------------------------------------------------------------------------------------------------------------


def test_the_tokenizers_term_reaches_the_reconstructions_and_leaves_the_discriminator_as_it_is():
    adversary, weight = make_adversary(), torch.ones(3, 1, 1, requires_grad=True)
    before = {name: value.clone() for name, value in adversary.tensors().items()}
    reconstructions = noise(4, 3, 16, 16) * weight
    terms = adversary.oppose(reconstructions, reconstructions.square().mean(), weight, share())
    terms["adversarial"].backward()
    assert weight.grad.abs().sum() > 0
    parameters = list(adversary.discriminator.parameters())
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert all(torch.equal(before[name], value) for name, value in adversary.tensors().items())


def test_the_weighted_term_has_its_share_of_the_reconstructions_gradient_at_the_last_layer():
    adversary, weight = make_adversary(weight=0.4), noise(3, 3).requires_grad_()
    reconstructions = torch.einsum("bchw,cd->bdhw", noise(4, 3, 16, 16), weight)
    loss = (reconstructions - noise(4, 3, 16, 16, seed=1)).square().mean()
    terms = adversary.oppose(reconstructions, loss, weight, share())
    of_loss, of_term = (torch.autograd.grad(x, weight, retain_graph=True)[0].norm() for x in (loss, terms["adversarial"]))
    assert (terms["adaptive_weight"] * of_term / of_loss).item() == pytest.approx(1, rel=0.05)
    assert terms["adaptive_weight"].item() == pytest.approx((of_loss / (of_term + 1e-4)).item(), rel=1e-4)
    fixed = make_adversary(adaptive=False).oppose(reconstructions, loss, weight, share())
    assert fixed["adaptive_weight"] == 1
    assert fixed["adversarial"] == terms["adversarial"]


def test_what_trains_the_discriminator_gives_no_gradient_to_the_tokenizer():
    adversary, weight = make_adversary(), torch.ones(3, 1, 1, requires_grad=True)
    before = {name: value.clone() for name, value in adversary.tensors().items()}
    adversary.learn(noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1) * weight, share(), factor=1.0)
    assert weight.grad is None
    assert all(p.grad is None for p in adversary.discriminator.parameters())
    changed = {name for name, value in adversary.tensors().items() if not torch.equal(before[name], value)}
    assert changed == set(before) - {"trained.6.parametrizations.weight.0.u"}  # of the logit: 1 x 1, always 1 or -1


def test_held_still_is_over_afterwards_even_after_an_error():
    layer = torch.nn.Linear(2, 2)
    with contextlib.suppress(RuntimeError), held_still(layer):
        assert not layer.weight.requires_grad
        raise RuntimeError
    assert layer.weight.requires_grad


def test_in_decoder_tuning_the_encoder_stays_as_it_is_and_the_decoder_is_opposed(tmp_path, pictures):
    parent = Run.open("parent", override(PLAIN, {"num_steps": 2}), root=tmp_path)
    train(parent.load_config(TokenizerTraining), pictures, parent)
    changes = {"num_steps": 6, "losses__adversarial__trains_from": 1, "losses__adversarial__counts_from": 2}
    config = decoder_tuning(CONFIG, parent=parent, **changes)
    run = Run.open("tuned", config, root=tmp_path, parents=[parent])
    records = list(finetune_decoder(config, pictures, run, parent=parent, cpu=True))
    assert records[-1].losses["adaptive_weight"] > 0
    before, after = parent.load_checkpoint().tensors["ema"], run.load_checkpoint().tensors["model"]
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {"decoder", "to_pixels"}
    assert not moved & {"encoder", "to_latents"}


# One step of the discriminator ----------------------------------------------------------------------------------------


def test_a_step_logs_what_its_logits_say_and_lecam_takes_their_means(monkeypatch):
    adversary = make_adversary(diffaug=False, lecam_decay=0.75)
    logits = {}

    def losses(real, fake):
        logits.update(real=real.detach(), fake=fake.detach())
        return discriminators.hinge_d(real, fake)

    monkeypatch.setattr(module, "hinge_d", losses)
    terms = adversary.learn(noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1), share(), factor=1.0)
    real, fake = logits["real"], logits["fake"]
    assert terms["discriminator"] == discriminators.hinge_d(real, fake)
    assert terms["lecam"].item() == pytest.approx((real.relu().square().mean() + (-fake).relu().square().mean()).item())
    assert terms["discriminator/accuracy_real"] == (real > 0).float().mean()
    assert terms["discriminator/accuracy_fake"] == (fake < 0).float().mean()
    assert adversary.lecam.real.item() == pytest.approx(0.25 * real.mean().item())
    assert adversary.lecam.fake.item() == pytest.approx(0.25 * fake.mean().item())


def test_consistency_compares_the_same_image_under_strong_augmentation(monkeypatch):
    adversary = make_adversary(diffaug=False, consistency_weight=4.0)
    images, made = noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1)
    monkeypatch.setattr(module, "diff_augment", lambda x, **settings: x)
    assert adversary.learn(images, made, share(), factor=1.0)["consistency"] == 0
    monkeypatch.setattr(module, "diff_augment", lambda x, **settings: -x)
    assert adversary.learn(images, made, share(), factor=1.0)["consistency"] > 0
    assert "consistency" not in make_adversary(consistency_weight=0.0).learn(images, made, share(), factor=1.0)


def test_draws_depend_on_seed_stream_and_step_only():
    adversary, images = make_adversary(), noise(8, 3, 16, 16)
    views = [adversary._view(images, name, share(step, 8)) for name in ("real", "fake") for step in (0, 1)]
    assert len({view.sum().item() for view in views}) == 4
    torch.rand(3)
    assert torch.equal(adversary._view(images, "real", share(0, 8)), views[0])


def test_it_learns_at_its_own_rate_on_the_tokenizers_schedule():
    adversary = make_adversary(learning_rate=0.02)
    adversary.learn(noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1), share(), factor=0.5)
    assert {group["lr"] for group in adversary.optimizers["discriminator"].param_groups} == {0.01}


def test_a_discriminator_beats_a_decoder_that_stands_still():
    adversary = make_adversary(learning_rate=5e-3, diffaug=False)
    ramp = torch.linspace(-1, 1, 16)
    for step in range(30):
        images = torch.sin(3 * (ramp[:, None] + ramp) + 3 * noise(8, 3, 1, 1, seed=step))
        terms = adversary.learn(images, noise(8, 3, 16, 16, seed=100 + step), share(step, 8), factor=1.0)
    assert terms["discriminator/accuracy_real"] > 0.9
    assert terms["discriminator/accuracy_fake"] > 0.9


def test_images_larger_than_the_network_takes_are_cropped_half_of_the_time_in_one_place_a_step(small_dino):
    adversary = make_adversary(dataclasses.replace(PATCHGAN, discriminator="dino"), diffaug=False)
    images = noise(4, 3, 16, 16)
    shapes = []
    for step in range(40):
        real, fake = (adversary._view(images, name, share(step)) for name in ("real", "fake"))
        assert torch.equal(real, fake)
        shapes.append(real.shape[-1])
    assert set(shapes) == {8, 16}
    assert 10 <= shapes.count(8) <= 30


def test_a_crop_is_a_window_of_the_image_and_reaches_its_borders():
    place = torch.arange(25).view(1, 1, 5, 5)
    corners = set()
    for seed in range(200):
        crop = half_crop(place, 4, generator=torch.Generator().manual_seed(seed))
        if crop.shape[-1] == 4:
            top, left = divmod(crop[0, 0, 0, 0].item(), 5)
            assert torch.equal(crop, place[..., top : top + 4, left : left + 4])
            corners.add((top, left))
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_gradients_are_averaged_over_processes():
    layer = torch.nn.Linear(2, 3)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    halved = SimpleNamespace(num_processes=2, process_index=0, reduce=lambda value, how: value * {"mean": 0.5}[how])
    average_gradients(list(layer.parameters()), Share(halved, 0, 4))
    assert all((parameter.grad == 0.5).all() for parameter in layer.parameters())
    assert Share(halved, 0, 4).rows == slice(0, None, 2)


# Bad steps ------------------------------------------------------------------------------------------------------------


def broken_hinge(calls: set[int]):
    """hinge_d, but NaN on the given calls."""
    count = []

    def hinge(real, fake):
        count.append(None)
        return discriminators.hinge_d(real, fake) * (torch.nan if len(count) - 1 in calls else 1)

    return hinge


def test_a_step_without_a_finite_gradient_never_reaches_the_discriminator(monkeypatch):
    adversary = make_adversary()
    batch = noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1), share()
    adversary.learn(*batch, factor=1.0)
    before = {name: value.clone() for name, value in adversary.tensors().items() if not name.endswith(".u")}
    monkeypatch.setattr(module, "hinge_d", broken_hinge({0}))
    terms = adversary.report(adversary.learn(*batch, factor=1.0))
    assert terms["discriminator/skipped"] == 1
    assert all(torch.equal(adversary.tensors()[name], value) for name, value in before.items())
    assert all(torch.isfinite(value).all() for value in adversary.tensors().values())
    adversary.learn(*batch, factor=1.0)
    assert adversary.guard.skipped == 1


def test_skipped_steps_are_counted_beyond_a_stop(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(module, "hinge_d", broken_hinge({1, 3}))
    train(CONFIG, pictures, Run.open("a", CONFIG, root=tmp_path), steps=9)
    run = Run.open("a", CONFIG, root=tmp_path)
    train(CONFIG, pictures, run)
    assert run.metrics()["discriminator/skipped"].tolist() == [0] * 5 + [1] * 2 + [2] * 13
    assert run.summary["discriminator/skipped"] == 2
    assert run.summary["skipped"] == 0


def test_several_bad_steps_in_a_row_end_the_training_and_name_the_term(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(module, "hinge_d", broken_hinge(set(range(20))))
    with pytest.raises(NonFiniteTraining, match=r"5 steps in a row up to step 8 .*'discriminator': nan"):
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
    assert all(torch.isfinite(value).all() for group in tensors.values() for value in group.values())


def test_the_generators_term_is_the_hinge_of_what_it_made():
    adversary = make_adversary(diffaug=False)
    images = noise(4, 3, 16, 16).requires_grad_()
    found = adversary.oppose(images, images.square().mean(), images, share())["adversarial"]
    assert found == hinge_g(adversary.discriminator(images))
