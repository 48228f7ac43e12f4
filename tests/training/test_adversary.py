"""One step of an adversary: who gets which gradient, what is logged, drawn and cropped, and what
stays out.
"""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from maetok_lab.tokenizer import discriminators
from maetok_lab.tokenizer import losses as losses_module
from maetok_lab.tokenizer.discriminators import AdversarialConfig, hinge_g
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.training import adversary as module
from maetok_lab.training.adversary import Adversary, average_gradients, half_crop, held_still
from maetok_lab.training.optim import OptimizerConfig
from maetok_lab.training.order import Share

PATCHGAN = AdversarialConfig(
    discriminator="patchgan",
    width=8,
    layers=2,
    trains_from=0,
    counts_from=0,
    learning_rate=1e-3,
    betas=(0.5, 0.9),
)


def make_adversary(config: AdversarialConfig = PATCHGAN, **changes) -> Adversary:
    training = SimpleNamespace(
        model=SimpleNamespace(image_size=16),
        losses=LossConfig(adversarial=dataclasses.replace(config, **changes)),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        precision="fp32",
        seed=0,
    )
    return Adversary(training, torch.device("cpu"))


def share(step: int = 0, size: int = 4) -> Share:
    return Share(Accelerator(cpu=True), step, size)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Gradients ----------------------------------------------------------------------------------------


def test_the_tokenizers_term_reaches_the_reconstructions_and_leaves_the_discriminator_as_it_is():
    adversary, weight = make_adversary(), torch.ones(3, 1, 1, requires_grad=True)
    before = {name: value.clone() for name, value in adversary.groups()["discriminator"].items()}
    reconstructions = noise(4, 3, 16, 16) * weight
    terms = adversary.oppose(reconstructions, reconstructions.square().mean(), weight, share())
    terms["adversarial"].backward()
    assert weight.grad.abs().sum() > 0
    parameters = list(adversary.discriminator.parameters())
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert all(
        torch.equal(before[name], value)
        for name, value in adversary.groups()["discriminator"].items()
    )


def test_the_weighted_term_has_its_share_of_the_reconstructions_gradient_at_the_last_layer():
    adversary, weight = make_adversary(weight=0.4), noise(3, 3).requires_grad_()
    reconstructions = torch.einsum("bchw,cd->bdhw", noise(4, 3, 16, 16), weight)
    loss = (reconstructions - noise(4, 3, 16, 16, seed=1)).square().mean()
    terms = adversary.oppose(reconstructions, loss, weight, share())
    of_loss, of_term = (
        torch.autograd.grad(x, weight, retain_graph=True)[0].norm()
        for x in (loss, terms["adversarial"])
    )
    assert (terms["adaptive_weight"] * of_term / of_loss).item() == pytest.approx(1, rel=0.05)
    assert terms["adaptive_weight"].item() == pytest.approx(
        (of_loss / (of_term + 1e-4)).item(), rel=1e-4
    )
    fixed = make_adversary(adaptive=False).oppose(reconstructions, loss, weight, share())
    assert fixed["adaptive_weight"] == 1
    assert fixed["adversarial"] == terms["adversarial"]


def test_what_trains_the_discriminator_gives_no_gradient_to_the_tokenizer():
    adversary, weight = make_adversary(), torch.ones(3, 1, 1, requires_grad=True)
    before = {name: value.clone() for name, value in adversary.groups()["discriminator"].items()}
    decoded = {"fake": noise(4, 3, 16, 16, seed=1) * weight}
    adversary.learn(noise(4, 3, 16, 16), decoded, share(), factor=1.0)
    assert weight.grad is None
    assert all(p.grad is None for p in adversary.discriminator.parameters())
    changed = {
        name
        for name, value in adversary.groups()["discriminator"].items()
        if not torch.equal(before[name], value)
    }
    assert changed == set(before) - {
        "trained.6.parametrizations.weight.0.u"
    }  # of the logit: 1 x 1, always 1 or -1


def test_held_still_is_over_afterwards_even_after_an_error():
    layer = torch.nn.Linear(2, 2)
    with contextlib.suppress(RuntimeError), held_still(layer):
        assert not layer.weight.requires_grad
        raise RuntimeError
    assert layer.weight.requires_grad


def test_the_generators_term_is_the_hinge_of_what_it_made():
    adversary = make_adversary(diffaug=False)
    images = noise(4, 3, 16, 16).requires_grad_()
    found = adversary.oppose(images, images.square().mean(), images, share())["adversarial"]
    assert found == hinge_g(adversary.discriminator(images))


def test_mixtures_are_a_second_kind_of_what_was_made_in_both_its_terms():
    adversary = make_adversary(diffaug=False)
    images, fake, mixed = (noise(4, 3, 16, 16, seed=seed) for seed in range(3))
    loss = images.square().mean().requires_grad_()
    layer = torch.ones(3, 1, 1, requires_grad=True)
    fake_of, mixed_of = fake * layer, mixed * layer
    term = adversary.oppose(fake_of, (loss * layer).sum(), layer, share(), mixtures=mixed_of)
    logits = adversary.discriminator(torch.cat([fake, mixed]))
    torch.testing.assert_close(term["adversarial"], hinge_g(logits))

    # the discriminator weighs both kinds together like the real images
    discriminator = adversary.discriminator.train()
    with torch.no_grad():
        real, fake_logits, mixed_logits = discriminator(torch.cat([images, fake, mixed])).chunk(3)
    made = torch.cat([fake_logits, mixed_logits])
    terms = make_adversary(diffaug=False).learn(
        images, {"fake": fake, "mixed": mixed}, share(), factor=1.0
    )
    expected = ((1 - real).relu().mean() + (1 + made).relu().mean()) / 2
    assert terms["discriminator"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["discriminator/accuracy_fake"] == (made < 0).float().mean()
    assert terms["discriminator/accuracy_real"] == (real > 0).float().mean()


# One step of the discriminator --------------------------------------------------------------------


def test_a_step_logs_what_its_logits_say_and_lecam_takes_their_means(monkeypatch):
    adversary = make_adversary(diffaug=False, lecam_decay=0.75)
    logits = {}

    def losses(real, fake):
        logits.update(real=real.detach(), fake=fake.detach())
        return discriminators.hinge_d(real, fake)

    monkeypatch.setattr(module, "hinge_d", losses)
    decoded = {"fake": noise(4, 3, 16, 16, seed=1)}
    terms = adversary.learn(noise(4, 3, 16, 16), decoded, share(), factor=1.0)
    real, fake = logits["real"], logits["fake"]
    assert terms["discriminator"] == discriminators.hinge_d(real, fake)
    ema_real, ema_fake = 0.25 * real.mean(), 0.25 * fake.mean()
    lecam = (real - ema_fake).relu().square().mean() + (ema_real - fake).relu().square().mean()
    assert terms["lecam"].item() == pytest.approx(lecam.item())
    assert terms["discriminator/accuracy_real"] == (real > 0).float().mean()
    assert terms["discriminator/accuracy_fake"] == (fake < 0).float().mean()
    assert adversary.lecam.real.item() == pytest.approx(0.25 * real.mean().item())
    assert adversary.lecam.fake.item() == pytest.approx(0.25 * fake.mean().item())


def test_consistency_compares_the_same_image_under_strong_augmentation(monkeypatch):
    adversary = make_adversary(diffaug=False, consistency_weight=4.0)
    images, made = noise(4, 3, 16, 16), {"fake": noise(4, 3, 16, 16, seed=1)}
    monkeypatch.setattr(module, "diff_augment", lambda x, **settings: x)
    assert adversary.learn(images, made, share(), factor=1.0)["consistency"] == 0
    monkeypatch.setattr(module, "diff_augment", lambda x, **settings: -x)
    assert adversary.learn(images, made, share(), factor=1.0)["consistency"] > 0
    assert "consistency" not in make_adversary(consistency_weight=0.0).learn(
        images, made, share(), factor=1.0
    )


def test_its_loss_is_the_releases(monkeypatch):
    # VQLoss of continuous_tokenizer at optimizer_idx 1, disc_weight 0.4, lecam_loss_weight 0.001,
    # disc_cr_loss_weight 4 and decay 0.999
    adversary = make_adversary(norm="group", diffaug=False)
    monkeypatch.setattr(module, "diff_augment", lambda x, **settings: -x)
    losses = []

    def total_loss(terms, weights):
        losses.append(losses_module.total_loss(terms, weights))
        return losses[-1]

    monkeypatch.setattr(module, "total_loss", total_loss)
    images, made = noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1)
    with torch.no_grad():
        views = [adversary.discriminator.train()(x) for x in (images, made, -images, -made)]
    adversary.learn(images, {"fake": made}, share(), factor=1.0)

    real, fake, real_strong, fake_strong = views
    hinge = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    ema_real, ema_fake = 0.001 * real.mean(), 0.001 * fake.mean()
    lecam = (real - ema_fake).relu().square().mean() + (ema_real - fake).relu().square().mean()
    change = torch.cat([real, fake]) - torch.cat([real_strong, fake_strong])
    expected = 0.4 * (0.001 * lecam + hinge) + 4 * change.square().mean()
    assert [loss.item() for loss in losses] == [pytest.approx(expected.item(), rel=1e-5)]


def test_draws_depend_on_seed_stream_and_step_only():
    adversary, images = make_adversary(), noise(8, 3, 16, 16)
    views = [
        adversary._view(images, name, share(step, 8))
        for name in ("real", "fake")
        for step in (0, 1)
    ]
    assert len({view.sum().item() for view in views}) == 4
    torch.rand(3)
    assert torch.equal(adversary._view(images, "real", share(0, 8)), views[0])


def test_it_learns_at_its_own_rate_on_the_tokenizers_schedule():
    adversary = make_adversary(learning_rate=0.02)
    decoded = {"fake": noise(4, 3, 16, 16, seed=1)}
    adversary.learn(noise(4, 3, 16, 16), decoded, share(), factor=0.5)
    assert {group["lr"] for group in adversary.optimizers["discriminator"].param_groups} == {0.01}


def test_a_discriminator_beats_a_decoder_that_stands_still():
    adversary = make_adversary(learning_rate=5e-3, diffaug=False)
    ramp = torch.linspace(-1, 1, 16)
    for step in range(30):
        images = torch.sin(3 * (ramp[:, None] + ramp) + 3 * noise(8, 3, 1, 1, seed=step))
        decoded = {"fake": noise(8, 3, 16, 16, seed=100 + step)}
        terms = adversary.learn(images, decoded, share(step, 8), factor=1.0)
    assert terms["discriminator/accuracy_real"] > 0.9
    assert terms["discriminator/accuracy_fake"] > 0.9


def test_images_larger_than_the_network_takes_are_cropped_half_of_the_time_in_one_place_a_step(
    small_dino,
):
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
    halved = SimpleNamespace(
        num_processes=2, process_index=0, reduce=lambda value, how: value * {"mean": 0.5}[how]
    )
    average_gradients(list(layer.parameters()), Share(halved, 0, 4))
    assert all((parameter.grad == 0.5).all() for parameter in layer.parameters())
    assert Share(halved, 0, 4).rows == slice(0, None, 2)


def test_a_step_without_a_finite_gradient_never_reaches_the_discriminator(break_hinge):
    adversary = make_adversary()
    batch = noise(4, 3, 16, 16), {"fake": noise(4, 3, 16, 16, seed=1)}, share()
    adversary.learn(*batch, factor=1.0)
    before = {
        name: value.clone()
        for name, value in adversary.groups()["discriminator"].items()
        if not name.endswith(".u")
    }
    break_hinge({0})
    terms = adversary.learn(*batch, factor=1.0)
    adversary.guard.settle(1, terms)
    assert adversary.report(terms)["discriminator/skipped"] == 1
    assert all(
        torch.equal(adversary.groups()["discriminator"][name], value)
        for name, value in before.items()
    )
    assert all(
        torch.isfinite(value).all() for value in adversary.groups()["discriminator"].values()
    )
    adversary.guard.settle(2, adversary.learn(*batch, factor=1.0))
    assert adversary.guard.skipped == 1
