"""Latents are drawn towards a teacher's features by a linear head, and nothing else is moved."""

import math

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.tokenizer.alignment import Alignment, make_head
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder, compute_targets
from maetok_lab.tokenizer.model import TOKENIZERS

MODEL = TOKENIZERS["test"]
GRID = override(MODEL, {"latent_tokens": "patches", "num_latent_tokens": 64, "masked": "replace"})
POOLED = AuxiliaryConfig(target="semantic", head="pooled")
TOKENS = AuxiliaryConfig(target="semantic", head="tokens")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.fixture(scope="module")
def pooled() -> Alignment:
    torch.manual_seed(0)
    return Alignment(POOLED, MODEL)


@pytest.fixture(scope="module")
def tokens() -> Alignment:
    torch.manual_seed(0)
    return Alignment(TOKENS, GRID)


def test_the_head_is_the_configs():
    assert isinstance(make_head(AuxiliaryConfig(target="semantic"), MODEL), AuxiliaryDecoder)
    for config, model in ((POOLED, MODEL), (TOKENS, GRID)):
        head = make_head(config, model)
        assert isinstance(head, Alignment)
        shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
        assert shapes == {
            "to_target.weight": (head.target.width, 4),
            "to_target.bias": (head.target.width,),
        }


def test_a_teachers_features_have_the_width_and_the_places_that_a_head_is_made_for(tokens):
    targets = compute_targets({"semantic": tokens}, normal(2, 3, 64, 64))
    assert targets["semantic"].shape == (2, 64, tokens.target.width)
    assert tokens.loss(normal(2, 64, 4), targets["semantic"], None).shape == ()


def test_the_pooled_term_is_one_less_the_cosine_of_the_mean_latent_and_the_mean_feature(pooled):
    latents, target = normal(3, 32, 4), normal(3, 64, pooled.target.width, seed=1)
    expected = 0.0
    for image in range(3):
        prediction = pooled.to_target(latents[image].mean(0)).detach()
        expected += (1 - cosine(prediction, target[image].mean(0))) / 3
    assert pooled.loss(latents, target, None).item() == pytest.approx(expected, abs=1e-6)


def test_pooled_latents_may_come_in_any_order(pooled):
    latents, target = normal(3, 32, 4), normal(3, 64, pooled.target.width, seed=1)
    shuffled = latents[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    expected = pooled.loss(latents, target, None)
    torch.testing.assert_close(pooled.loss(shuffled, target, None), expected)


def test_the_two_terms_of_tokens_are_va_vaes_by_hand(tokens):
    latents, target = normal(2, 64, 4), normal(2, 64, tokens.target.width, seed=1)
    target[:, :, 0] += 9  # features that are more alike than latents, so that margins matter
    predictions = tokens.to_target(latents).detach()
    own = pairs = 0.0
    for image in range(2):
        for i in range(64):
            own += max(0.0, 0.5 - cosine(predictions[image, i], target[image, i]))
            for j in range(64):
                of_latents = cosine(latents[image, i], latents[image, j])
                of_features = cosine(target[image, i], target[image, j])
                pairs += max(0.0, abs(of_latents - of_features) - 0.25)
    expected = own / (2 * 64) + pairs / (2 * 64 * 64)
    assert tokens.loss(latents, target, None).item() == pytest.approx(expected, rel=1e-4)


def test_inside_of_its_margins_tokens_pull_at_nothing():
    head = Alignment(TOKENS, GRID)
    head.to_target = torch.nn.Identity()
    latents = torch.nn.functional.normalize(normal(2, 64, 4), dim=-1)
    target = 3 * latents + 0.1 * normal(2, 64, 4, seed=1)  # another length, nearly their way
    assert head.loss(latents, target, None) == 0
    assert head.loss(latents, target.flip(1), None) > 0  # features of other places


def test_hidden_patches_count_like_visible_ones(tokens, pooled):
    mask = torch.arange(64).expand(2, 64) % 3 == 0
    for head, count in ((tokens, 64), (pooled, 32)):
        latents, target = normal(2, count, 4), normal(2, 64, head.target.width, seed=1)
        assert torch.equal(head.loss(latents, target, mask), head.loss(latents, target, None))


def test_the_gradient_reaches_latents_and_head_and_not_the_target(tokens, pooled):
    for head, count in ((tokens, 64), (pooled, 32)):
        latents = normal(2, count, 4).requires_grad_()
        target = normal(2, 64, head.target.width, seed=1)
        head.zero_grad()
        head.loss(latents, target, None).backward()
        assert latents.grad.norm() > 0
        assert latents.grad.flatten(1).norm(dim=1).min() > 0
        assert head.to_target.weight.grad.norm() > 0
    # the mean's gradient is every token's alike
    torch.testing.assert_close(latents.grad, latents.grad[:, :1].expand_as(latents))


def test_a_pooled_head_learns_to_agree(pooled):
    head = Alignment(POOLED, MODEL)
    latents = normal(8, 32, 4).requires_grad_()
    target = normal(8, 64, head.target.width, seed=1)
    optimizer = torch.optim.Adam([latents, *head.parameters()], lr=0.05)
    losses = []
    for _ in range(60):
        loss = head.loss(latents, target, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert math.isfinite(losses[-1])


def test_tokens_need_a_place_and_a_head_a_network():
    with pytest.raises(ValueError, match=r'head "tokens" aligns each latent with the feature at '):
        make_head(TOKENS, MODEL)
    with pytest.raises(ValueError, match="head 'pooled' aligns latents with a network's features"):
        AuxiliaryConfig(target="hog", head="pooled")
