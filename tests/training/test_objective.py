"""What befalls latents in the objective: who sees them disturbed, and who as they are."""

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.rng import generator
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.perturbation import PerturbationConfig, draw_perturbation, slerp
from maetok_lab.training.objective import Objective
from maetok_lab.training.presets import ladder_training

SEMANTIC = AuxiliaryConfig(target="semantic", head="pooled")
NOISE = PerturbationConfig(noise="interpolate", masked_shares=(0.25,), masked_odds=(1.0,))
PLAIN = override(ladder_training("test", "ae"), {"precision": "fp32", "targets": (SEMANTIC,)})


def make(**changes) -> Objective:
    torch.manual_seed(0)
    return Objective(override(PLAIN, changes))


def pictures(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=generator(0, "pictures")) * 2 - 1


def drawn(config: PerturbationConfig, count: int = 3) -> dict[str, torch.Tensor]:
    return draw_perturbation(config, count, (32, 4), generator=generator(0, "draws"))


def test_the_pixel_decoder_and_auxiliary_decoders_see_latents_as_they_are_disturbed():
    objective = make(perturbation=NOISE, targets=(AuxiliaryConfig(target="hog"),))
    images, draws = pictures(), drawn(NOISE)
    with torch.no_grad():
        objective.perturbation.mask_latent.fill_(0.5)
        terms, reconstructions, _ = objective(images, None, None, perturbation=draws)
        disturbed = objective.perturbation(objective.tokenizer.encode(images), draws)
        assert torch.equal(reconstructions, objective.tokenizer.decode(disturbed))
        decoder = objective.auxiliary["hog"]
        target = decoder.target(images)
        assert terms["auxiliary/hog"] == decoder.loss(disturbed, target, None)
        assert terms["auxiliary/hog"] != decoder.loss(
            objective.tokenizer.encode(images), target, None
        )


def test_what_aligns_latents_sees_them_as_they_are():
    images = pictures()
    with torch.no_grad():
        plain, reconstructions, _ = make()(images, None, None)
        objective = make(perturbation=NOISE)
        noisy, others, _ = objective(images, None, None, perturbation=drawn(NOISE))
    assert noisy["auxiliary/semantic"] == plain["auxiliary/semantic"]
    assert noisy["pixel"] != plain["pixel"]
    assert not torch.equal(others, reconstructions)


def test_mixtures_are_decoded_from_latents_without_noise_and_only_where_they_are_drawn():
    config = PerturbationConfig(noise="add", between=True)
    objective = make(perturbation=PerturbationConfig(noise="add"))
    images, draws = pictures(), drawn(config)
    with torch.no_grad():
        _, _, mixtures = objective(images, None, None, perturbation=draws)
        latents = objective.tokenizer.encode(images)
        mixed = slerp(latents, latents.roll(1, 0), draws["share"])
        assert torch.equal(mixtures, objective.tokenizer.decode(mixed))
        del draws["share"]
        assert objective(images, None, None, perturbation=draws)[2] is None
        assert objective(images, None, None)[2] is None


def test_the_posteriors_noise_comes_before_what_disturbs_latents():
    objective = make(model__bottleneck="ve", perturbation=PerturbationConfig(noise="add"))
    images, draws = pictures(), drawn(PerturbationConfig(noise="add"))
    noise = torch.randn(3, 32, 4, generator=generator(0, "noise"))
    with torch.no_grad():
        _, reconstructions, _ = objective(images, None, noise, perturbation=draws)
        latents = objective.tokenizer.posterior(images).sample(noise)
        disturbed = latents + draws["amount"] * draws["noise"]
        assert torch.equal(reconstructions, objective.tokenizer.decode(disturbed))


@pytest.mark.parametrize(
    ("bottleneck", "term"), [("kl", "kl"), ("ve", "ve"), ("softvq", "entropy")]
)
def test_latents_that_are_not_trained_have_no_terms_of_their_own(bottleneck, term):
    objective = make(model__bottleneck=bottleneck, targets=())
    images = pictures()
    with torch.no_grad():
        assert set(objective(images, None, None)[0]) == {"pixel", term}
        latents = objective.tokenizer.encode(images)
        assert set(objective(images, None, None, latents=latents)[0]) == {"pixel"}


def test_decoder_tuning_freezes_the_codes_too():
    changes = {"model__bottleneck": "softvq", "trains": "decoder", "targets": (), "parent": "x"}
    objective = make(**changes)
    still = {n.split(".")[0] for n, p in objective.tokenizer.named_parameters() if p.requires_grad}
    assert still == {"decoder", "to_pixels"}
    frozen = [n for n, p in objective.tokenizer.named_parameters() if not p.requires_grad]
    assert "bottleneck.codebook" in frozen
    assert all(name.startswith(Objective.makes_latents) for name in frozen)


# Trainings that cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"perturbation": NOISE, "trains": "decoder", "targets": (), "parent": "x"},
            "perturbation shapes latents, which decoder tuning leaves as they are",
        ),
        (
            {"perturbation": PerturbationConfig(between=True)},
            r"perturbation.between needs a discriminator, .* set losses.adversarial",
        ),
    ],
)
def test_a_perturbation_that_nothing_could_use_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(PLAIN, changes)
