"""Terms have names, and are weighed in one place."""

import pytest
import torch

from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.losses import (
    LossConfig,
    discriminator_weights,
    loss_weights,
    pixel_loss,
    total_loss,
)


def test_pixel_losses_are_means_over_everything():
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    assert pixel_loss(LossConfig(pixel="mse"), a, b) == 2.5
    assert pixel_loss(LossConfig(pixel="l1"), a, b) == 1.5


def test_the_perceptual_weight_rises_over_its_share_of_the_training():
    config = LossConfig(perceptual_weight=2.0, perceptual_warmup=0.5)
    ramp = [loss_weights(config, {}, progress=p)["perceptual"] for p in (0.0, 0.25, 0.5, 1.0)]
    assert ramp == [0.0, 1.0, 2.0, 2.0]
    assert loss_weights(LossConfig(perceptual_warmup=0.0), {}, progress=0.0)["perceptual"] == 1


def test_the_total_is_the_weighted_sum_of_the_terms_there_are():
    weights = loss_weights(LossConfig(pixel_weight=3.0, kl_weight=0.5), {"hog": 0.25}, progress=1.0)
    terms = {"pixel": 3.0, "perceptual": 1.0, "kl": 0.5, "ve": 0.1, "entropy": 0.01}
    assert weights == {**terms, "auxiliary/hog": 0.25}
    terms = {
        name: torch.tensor(value)
        for name, value in (("pixel", 2.0), ("auxiliary/hog", 8.0), ("kl", 1.0))
    }
    terms["pixel"].requires_grad_()
    total = total_loss(terms, weights)
    assert total == 3 * 2 + 0.25 * 8 + 0.5
    total.backward()
    assert terms["pixel"].grad == 3


def test_a_term_without_a_weight_is_an_error():
    with pytest.raises(KeyError, match="surprise"):
        total_loss({"surprise": torch.tensor(1.0)}, loss_weights(LossConfig(), {}, progress=1.0))


def test_adversarial_terms_have_weights_where_there_is_an_adversary():
    config = AdversarialConfig(weight=0.3, lecam_weight=0.2, consistency_weight=5.0)
    assert loss_weights(LossConfig(adversarial=config), {}, progress=1.0)["adversarial"] == 0.3
    assert "adversarial" not in loss_weights(LossConfig(), {}, progress=1.0)
    assert discriminator_weights(config) == {
        "discriminator": 0.3,
        "lecam": 0.06,
        "consistency": 5.0,
    }
