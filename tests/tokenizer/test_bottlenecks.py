"""Each bottleneck does what its formula says, computed here another way, and leaves the rest."""

import math

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.device import autocast
from maetok_lab.tokenizer.bottlenecks import BOTTLENECKS, Posterior
from maetok_lab.tokenizer.losses import LossConfig, loss_weights, total_loss
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer, TokenizerConfig

# 32 tokens of 4 channels; few codes, so that a test can count them
CONFIG = override(TOKENIZERS["test"], {"codes": 16, "codebooks": 4})
TERMS = {"ae": [], "kl": ["kl"], "ve": ["ve"], "rms": [], "softvq": ["entropy"], "fsq": []}
each = pytest.mark.parametrize("name", BOTTLENECKS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(name: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return BOTTLENECKS[name](override(CONFIG, {"bottleneck": name, **changes}))


def tokenizer_with(config: TokenizerConfig) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(config)


# All of them --------------------------------------------------------------------------------------


@each
def test_it_gives_latents_of_the_configs_shape_and_its_own_terms(name):
    bottleneck = make(name)
    posterior = bottleneck(normal(3, 32, 4 * bottleneck.numbers))
    assert posterior.mean.shape == (3, 32, 4)
    terms = bottleneck.losses(posterior)
    assert list(terms) == TERMS[name]
    assert all(term.shape == () and term.isfinite() for term in terms.values())


@each
def test_inside_a_tokenizer_latents_are_float32_also_under_autocast(name):
    tokenizer = tokenizer_with(override(CONFIG, {"bottleneck": name}))
    images = normal(2, 3, 64, 64)
    with torch.no_grad(), autocast("cpu", "bf16"):
        posterior = tokenizer.posterior(images)
    assert posterior.mean.shape == (2, 32, 4)
    assert posterior.mean.dtype == torch.float32
    for value in (posterior.log_variance, posterior.similarity):
        assert value is None or value.dtype == torch.float32


@each
def test_encoding_draws_nothing_and_images_of_a_batch_do_not_meet(name):
    tokenizer = tokenizer_with(override(CONFIG, {"bottleneck": name})).train()
    images = normal(3, 3, 64, 64)
    before = torch.get_rng_state()
    latents = tokenizer.encode(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(latents[1:2], tokenizer.encode(images[1:2]), rtol=0, atol=1e-5)


@each
def test_every_seeded_weight_but_its_own_is_that_of_the_papers(name):
    # a layer of twice the numbers draws twice as many, and so do all layers after it
    reference = "kl" if BOTTLENECKS[name].numbers == 2 else "ae"
    plain = tokenizer_with(override(CONFIG, {"bottleneck": reference})).state_dict()
    weights = tokenizer_with(override(CONFIG, {"bottleneck": name})).state_dict()
    own = {"bottleneck.codebook"} if name == "softvq" else set()
    assert set(weights) == set(plain) | own
    for key, value in plain.items():
        assert torch.equal(weights[key], value), key


def test_old_tokenizers_keep_their_names_of_weights_and_have_no_bottleneck_among_them():
    for name, rows in (("ae", 4), ("kl", 8)):
        weights = tokenizer_with(override(CONFIG, {"bottleneck": name})).state_dict()
        parts = ["encoder", "to_latents", "decoder", "to_pixels"]
        assert list(dict.fromkeys(key.split(".")[0] for key in weights)) == parts
        assert weights["to_latents.weight"].shape == (rows, 32)


def test_the_weights_of_the_terms_are_the_configs():
    losses = LossConfig(kl_weight=2.0, ve_weight=3.0, entropy_weight=5.0)
    weights = loss_weights(losses, {}, progress=1.0)
    terms = {name: torch.tensor(1.0) for name in ("kl", "ve", "entropy")}
    for name, weight in (("kl", 2), ("ve", 3), ("entropy", 5)):
        assert total_loss({name: terms[name]}, weights) == weight
    assert total_loss(terms, weights) == 10


# Plain, KL, VE ------------------------------------------------------------------------------------


def test_plain_latents_are_the_encoders_numbers():
    numbers = normal(2, 32, 4)
    assert make("ae")(numbers).mean is numbers


@pytest.mark.parametrize("name", ["kl", "ve"])
def test_the_first_half_is_the_mean_and_the_second_the_log_variance(name):
    numbers = 40 * normal(2, 32, 8)
    posterior = make(name)(numbers)
    assert torch.equal(posterior.mean, numbers[..., :4])
    assert torch.equal(posterior.log_variance, numbers[..., 4:].clamp(-30, 20))
    noise = normal(2, 32, 4, seed=1)
    expected = posterior.mean + posterior.log_variance.exp().sqrt() * noise
    torch.testing.assert_close(posterior.sample(noise), expected)


def test_ve_is_a_tenth_of_the_inverse_variance_and_a_millionth_of_large_means():
    mean, variance = 3 * normal(2, 5, 4).double(), normal(2, 5, 4, seed=1).double().exp()
    weighed = 0.1 * make("ve").losses(Posterior(mean, variance.log()))["ve"].item()
    spread = sum(1 / (v + 1e-6) for v in variance.flatten().tolist()) / 40
    magnitude = sum(math.exp(abs(z) - 1) for z in mean.flatten().tolist()) / 40
    assert LossConfig().ve_weight == 0.1
    assert weighed == pytest.approx(0.1 * spread + 1e-6 * magnitude, rel=1e-12)


def test_ve_asks_for_more_variance_smaller_means_and_has_a_floor():
    mean = torch.tensor([[[2.0, -2.0]]], requires_grad=True)
    log_variance = torch.zeros(1, 1, 2, requires_grad=True)
    make("ve").losses(Posterior(mean, log_variance))["ve"].backward()
    assert (log_variance.grad < 0).all()
    assert mean.grad.sign().tolist() == [[[1.0, -1.0]]]
    # below the floor a smaller variance costs no more
    tiny, tinier = (
        make("ve").losses(Posterior(torch.zeros(1, 1, 1), torch.full((1, 1, 1), value)))["ve"]
        for value in (-25.0, -30.0)
    )
    assert tinier.item() == pytest.approx(tiny.item(), rel=1e-4)
    assert tinier.item() == pytest.approx(1e6, rel=1e-4)


# RMS ----------------------------------------------------------------------------------------------


def test_rms_gives_every_token_a_mean_square_of_one_and_keeps_its_direction():
    numbers = normal(3, 32, 4) * torch.logspace(-1, 3, 32)[:, None]
    latents = make("rms")(numbers).mean
    torch.testing.assert_close(latents.square().mean(-1), torch.ones(3, 32), rtol=0, atol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(latents, numbers, dim=-1)
    torch.testing.assert_close(cosines, torch.ones(3, 32))
    torch.testing.assert_close(make("rms")(7 * numbers).mean, latents, rtol=0, atol=1e-3)


def test_rms_of_a_token_of_zeros_is_zero_with_a_finite_gradient():
    numbers = torch.zeros(1, 2, 4, requires_grad=True)
    latents = make("rms")(numbers).mean
    latents.sum().backward()
    assert latents.abs().max() == 0
    assert numbers.grad.isfinite().all()


# SoftVQ -------------------------------------------------------------------------------------------


def test_a_softvq_latent_is_the_mixture_of_its_own_codebook_by_likeness():
    bottleneck, numbers = make("softvq"), 5 * normal(2, 32, 4)
    with torch.no_grad():
        bottleneck.codebook.mul_(torch.linspace(0.5, 2, 64)[:, None])  # their length is nothing
    posterior = bottleneck(numbers)
    for row in range(2):
        for token in range(32):
            book = token // 8  # 32 tokens share 4 codebooks evenly, in their order
            codes = bottleneck.codebook.detach()[16 * book : 16 * (book + 1)]
            codes = codes / codes.norm(dim=1, keepdim=True)
            number = numbers[row, token]
            cosines = codes @ number / number.norm()
            likeness = (cosines / 0.07).exp()
            expected = (likeness[:, None] * codes).sum(0) / likeness.sum()
            torch.testing.assert_close(posterior.mean[row, token], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(posterior.similarity[row, token], cosines)
    assert posterior.mean.norm(dim=-1).max() <= 1


def test_its_codes_start_on_the_sphere():
    norms = make("softvq").codebook.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(64))
    assert make("softvq", codebooks=1, codes=8).codebook.shape == (8, 4)


def test_its_entropy_is_that_of_each_token_less_that_of_their_mean():
    similarity = (normal(2, 5, 16) / 30).double()
    posterior = Posterior(torch.zeros(2, 5, 4), similarity=similarity)
    shares = (similarity / 0.01).softmax(-1).view(10, 16)
    own = torch.distributions.Categorical(probs=shares).entropy().mean()
    mean = shares.mean(0)
    together = -(mean * (mean + 1e-5).log()).sum()
    found = make("softvq").losses(posterior)["entropy"]
    torch.testing.assert_close(found, own - together, rtol=1e-6, atol=1e-6)


def test_its_entropy_is_least_where_each_token_is_sure_and_all_codes_are_used():
    one_each = torch.eye(16).view(1, 16, 16)
    same_code = torch.eye(16)[:1].expand(1, 16, 16)
    unsure = torch.zeros(1, 16, 16)
    entropies = []
    for similarity in (one_each, same_code, unsure):
        posterior = Posterior(torch.zeros(1, 16, 4), similarity=similarity)
        entropies.append(make("softvq").losses(posterior)["entropy"].item())
    assert entropies == pytest.approx([-math.log(16), 0, 0], abs=1e-3)


def test_codes_learn_from_the_mixture_and_not_from_the_choice():
    bottleneck, numbers = make("softvq"), normal(2, 32, 4).requires_grad_()
    posterior = bottleneck(numbers)
    posterior.mean.square().sum().backward(retain_graph=True)
    assert bottleneck.codebook.grad.norm() > 0
    assert numbers.grad.norm() > 0
    # as a constant mixture: the gradient of the shares is the numbers' alone
    shares = (posterior.similarity.detach() / 0.07).softmax(-1).unflatten(1, (4, -1))
    codebook = bottleneck.codebook.detach().clone().requires_grad_()
    codes = (codebook / codebook.norm(dim=1, keepdim=True)).view(4, 16, 4)
    torch.einsum("bgnk,gkc->bgnc", shares, codes).square().sum().backward()
    torch.testing.assert_close(bottleneck.codebook.grad, codebook.grad, rtol=1e-4, atol=1e-6)

    bottleneck.codebook.grad = None
    bottleneck.losses(posterior)["entropy"].backward()
    assert bottleneck.codebook.grad is None


# FSQ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 5, 9])
def test_fsq_takes_the_nearest_of_evenly_spaced_levels_from_minus_one_to_one(levels):
    numbers = 3 * normal(4, 32, 4)
    latents = make("fsq", levels=levels)(numbers).mean
    grid = torch.linspace(-1, 1, levels)
    nearest = grid[(numbers.tanh()[..., None] - grid).abs().argmin(-1)]
    torch.testing.assert_close(latents, nearest)
    assert len(latents.unique()) == levels
    assert make("fsq", levels=levels)(torch.zeros(1, 32, 4)).mean.abs().max() == 0


def test_the_gradient_passes_the_rounding_by():
    numbers = normal(2, 32, 4).requires_grad_()
    make("fsq")(numbers).mean.sum().backward()
    torch.testing.assert_close(numbers.grad, 1 - numbers.detach().tanh().square())


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 4}, "levels must be odd, so that 0 is one of them, not 4"),
        ({"levels": 1}, "levels must be 3 .. "),
        ({"codes": 1}, "codes must be 2 .. "),
        ({"codebooks": 3}, "3 codebooks share the tokens evenly, but num_latent_tokens is 32"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(CONFIG, changes)
