"""Latents are disturbed as the config says, by what was drawn outside, and never when used."""

import math

import pytest
import torch

from maetok_lab.rng import generator
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.perturbation import (
    Perturbation,
    PerturbationConfig,
    draw_perturbation,
    slerp,
)

PLAIN = PerturbationConfig()
INTERPOLATE = PerturbationConfig(noise="interpolate", noise_scale=2.0)
ADD = PerturbationConfig(noise="add", noise_scale=2.0)
MASKED = PerturbationConfig(masked_shares=(0.25, 0.75), masked_odds=(3, 1))
BETWEEN = PerturbationConfig(between=True)
ALL = PerturbationConfig(
    noise="interpolate", masked_shares=(0.5,), masked_odds=(1.0,), between=True
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(config: PerturbationConfig, count: int = 6, shape=(8, 3), *, seed: int = 0):
    return draw_perturbation(config, count, shape, generator=generator(seed, "perturbation"))


# Draws --------------------------------------------------------------------------------------------


def test_only_what_the_config_asks_for_is_drawn():
    names = {"noise", "amount", "masked", "share"}
    for config, expected in (
        (PLAIN, set()),
        (INTERPOLATE, {"noise", "amount"}),
        (ADD, {"noise", "amount"}),
        (MASKED, {"masked"}),
        (BETWEEN, {"share"}),
        (ALL, names),
    ):
        assert set(draw(config)) == expected


def test_every_draw_has_a_row_an_image():
    shapes = {name: tuple(value.shape) for name, value in draw(ALL).items()}
    assert shapes == {"noise": (6, 8, 3), "amount": (6, 1, 1), "masked": (6, 8), "share": (6, 1)}


def test_draws_are_the_generators_alone():
    torch.manual_seed(0)
    first = draw(ALL)
    torch.manual_seed(1)
    for name, value in draw(ALL).items():
        assert torch.equal(value, first[name])
        assert not torch.equal(value, draw(ALL, seed=1)[name])


def test_noise_has_its_scale_and_amounts_are_uniform():
    draws = draw(ADD, 4000)
    assert draws["noise"].std().item() == pytest.approx(2, rel=0.02)
    amounts = draws["amount"].flatten().sort().values
    expected = (torch.arange(4000) + 0.5) / 4000
    # Kolmogorov's distance; the odds of more than 1.95 / sqrt(n) are 0.001
    assert (amounts - expected).abs().max() < 1.95 / math.sqrt(4000)
    assert amounts[0] >= 0
    assert amounts[-1] < 1


def test_a_share_of_hidden_tokens_is_the_batchs_and_drawn_with_its_odds():
    shares = (0.0, 0.25, 0.5, 0.75)
    odds = (0.7, 0.1, 0.1, 0.1)
    config = PerturbationConfig(masked_shares=shares, masked_odds=odds)
    counts = dict.fromkeys(shares, 0)
    for seed in range(1000):
        hidden = draw(config, 3, seed=seed)["masked"].float().mean(1)
        assert len(hidden.unique()) == 1
        counts[hidden[0].item()] += 1
    # chi squared of 3 degrees of freedom; the odds of more than 16.3 are 0.001
    expected = {share: 1000 * part for share, part in zip(shares, odds)}
    assert sum((counts[s] - expected[s]) ** 2 / expected[s] for s in shares) < 16.3


def test_odds_are_parts_of_their_sum_and_each_image_hides_tokens_of_its_own():
    often = sum(draw(MASKED, 1, seed=seed)["masked"].sum() == 2 for seed in range(400))
    assert abs(often - 300) < 4 * math.sqrt(400 * 0.75 * 0.25)
    hidden = draw(MASKED, 2000)["masked"]
    assert len({tuple(row.tolist()) for row in hidden}) > 20
    count = int(hidden[0].sum())
    # each place as often as another: a binomial share within 4 standard deviations
    share = count / 8
    bound = 4 * math.sqrt(share * (1 - share) / 2000)
    assert (hidden.float().mean(0) - share).abs().max() < bound


# Noise --------------------------------------------------------------------------------------------


def test_interpolating_fades_the_latents_and_adding_leaves_them():
    latents, draws = normal(6, 8, 3), draw(ADD)
    for row in range(6):
        amount, noise = draws["amount"][row].item(), draws["noise"][row]
        interpolated = Perturbation(INTERPOLATE, 3)(latents, draws)[row]
        added = Perturbation(ADD, 3)(latents, draws)[row]
        torch.testing.assert_close(interpolated, (1 - amount) * latents[row] + amount * noise)
        torch.testing.assert_close(added, latents[row] + amount * noise)


def test_without_draws_latents_are_themselves():
    latents = normal(6, 8, 3)
    assert Perturbation(ALL, 3)(latents, {}) is latents
    assert Perturbation(ALL, 3).mixtures(latents, {}) is None
    assert Perturbation(PLAIN, 3)(latents, draw(PLAIN)) is latents


def test_only_hidden_latents_make_room_for_a_learned_vector_which_gets_their_gradient():
    perturbation = Perturbation(MASKED, 3)
    with torch.no_grad():
        perturbation.mask_latent.copy_(torch.tensor([1.0, -2.0, 3.0]))
    latents, weights = normal(6, 8, 3).requires_grad_(), normal(6, 8, 3, seed=1)
    draws = draw(MASKED)
    hidden = draws["masked"]
    disturbed = perturbation(latents, draws)
    assert (disturbed[hidden] == perturbation.mask_latent).all()
    assert torch.equal(disturbed[~hidden], latents[~hidden])
    (disturbed * weights).sum().backward()
    torch.testing.assert_close(perturbation.mask_latent.grad, weights[hidden].sum(0))
    assert torch.equal(latents.grad, weights * ~hidden[..., None])


def test_hidden_latents_are_free_of_noise():
    perturbation, draws = Perturbation(ALL, 3), draw(ALL)
    disturbed = perturbation(normal(6, 8, 3), draws)
    assert disturbed[draws["masked"]].abs().max() == 0  # the vector's start
    assert disturbed[~draws["masked"]].abs().min() > 0


def test_only_masks_have_a_weight_and_it_draws_nothing():
    before = torch.get_rng_state()
    for config in (PLAIN, INTERPOLATE, ADD, BETWEEN):
        assert list(Perturbation(config, 3).parameters()) == []
    assert Perturbation(MASKED, 3).state_dict().keys() == {"mask_latent"}
    assert torch.equal(torch.get_rng_state(), before)


# Mixtures -----------------------------------------------------------------------------------------


def test_a_mixture_leads_from_an_images_latents_to_those_of_the_one_before():
    latents = normal(6, 8, 3)
    mix = Perturbation(BETWEEN, 3).mixtures
    torch.testing.assert_close(mix(latents, {"share": torch.zeros(6, 1)}), latents)
    torch.testing.assert_close(mix(latents, {"share": torch.ones(6, 1)}), latents.roll(1, 0))
    shares = torch.linspace(0, 1, 6)[:, None]
    mixed = mix(latents, {"share": shares})
    for row in range(6):
        expected = slerp(latents[row : row + 1], latents[row - 1][None], shares[row].item())
        torch.testing.assert_close(mixed[row : row + 1], expected)


def test_slerp_of_a_share_a_row_is_an_even_turn():
    a, b = torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.tensor([[0.0, 1.0]]).expand(3, 2)
    shares = torch.tensor([[0.25], [0.5], [0.9]])
    angles = shares * math.pi / 2
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(slerp(a, b, shares), expected)


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-7, 2.0, -1.0, 0.0])
def test_the_gradient_between_latents_of_one_line_is_finite_and_the_lines(factor):
    a = normal(4, 8, 3).requires_grad_()
    b = (factor * a.detach()).requires_grad_()
    shares = torch.tensor([0.0, 0.3, 0.5, 1.0])[:, None]
    slerp(a, b, shares).sum().backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()
    if factor:
        torch.testing.assert_close(a.grad, (1 - shares)[..., None].expand_as(a))
        torch.testing.assert_close(b.grad, shares[..., None].expand_as(b))


def test_the_gradient_of_a_turn_is_that_of_small_differences():
    a, b = (normal(3, 2, 2, seed=seed).double().requires_grad_() for seed in (0, 1))
    shares = torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: slerp(x, y, shares), (a, b))


# Use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_tokenizer_that_is_used_disturbs_nothing(training, monkeypatch):
    def refuse(*args):
        raise AssertionError("latents in use were disturbed")

    monkeypatch.setattr(Perturbation, "forward", refuse)
    monkeypatch.setattr(Perturbation, "mixtures", refuse)
    tokenizer = Tokenizer(TOKENIZERS["test"]).train(training)
    images = normal(2, 3, 64, 64)
    before = torch.get_rng_state()
    assert torch.equal(tokenizer(images), tokenizer.decode(tokenizer.encode(images)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not [name for name in tokenizer.state_dict() if "mask_latent" in name]


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_scale": 0.0}, "noise_scale must be over 0, not 0"),
        ({"masked_shares": (0.5,)}, "masked_odds needs a number for each of masked_shares, not 0"),
        ({"masked_odds": (1.0,)}, "not 1 for 0"),
        ({"masked_shares": (1.0,), "masked_odds": (1.0,)}, r"must lie in \[0, 1\), not \(1.0,\)"),
        ({"masked_shares": (0.5,), "masked_odds": (0.0,)}, "must be parts of a whole"),
        ({"masked_shares": (0.1, 0.2), "masked_odds": (2.0, -1.0)}, "must be parts of a whole"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PerturbationConfig(**changes)
