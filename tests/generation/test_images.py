"""Images out of models are the same whatever the batch size and the mode the models were in."""

import pytest
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.generation.images import generate, reconstruct

SPACE = LatentSpace("weights", torch.tensor([0.5, -0.5]), torch.tensor([2.0, 0.5]))
LABELS = torch.tensor([0, 3, 1, 2, 2])


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("training", [True, False])
def test_reconstructions_are_in_eval_mode_whatever_the_batch_and_the_mode_comes_back(
    tokenizer, training
):
    with torch.inference_mode():
        expected = tokenizer(images(5))
    tokenizer.train(training)
    for batch_size in (2, 5, 64):
        assert torch.allclose(
            reconstruct(tokenizer, images(5), batch_size=batch_size), expected, atol=1e-5
        )
    assert tokenizer.training == training
    assert not expected.requires_grad


@pytest.mark.parametrize("method", ["euler", "euler_maruyama"])
def test_sample_k_is_the_same_in_any_batch(model, tokenizer, method):
    options = {"seed": 3, "method": method, "num_steps": 4, "guidance": Guidance(1.5, 0.0, 0.8)}
    together = generate(model, tokenizer, SPACE, LABELS, **options)
    for batch_size in (1, 2):
        apart = generate(model, tokenizer, SPACE, LABELS, batch_size=batch_size, **options)
        assert torch.allclose(together, apart, atol=1e-4)
    assert together.shape == (5, 3, 8, 8)
    assert together.abs().max() <= 1
    assert not torch.allclose(together[3], together[4], atol=1e-2)  # one label, two seeds
    other = generate(model, tokenizer, SPACE, LABELS, **options | {"seed": 4})
    assert not torch.allclose(together, other, atol=1e-2)


def test_latents_are_denormalised_before_decoding(model, tokenizer):
    torch.nn.init.zeros_(model.final_layer.linear.weight)
    torch.nn.init.zeros_(model.final_layer.linear.bias)  # no velocity: the noise itself is decoded
    latents = []
    tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    generate(
        model,
        tokenizer,
        LatentSpace("weights", torch.tensor(0.0), torch.tensor(1.0)),
        LABELS,
        num_steps=1,
    )
    generate(model, tokenizer, SPACE, LABELS, num_steps=1)
    assert torch.allclose(latents[1], latents[0] * SPACE.std + SPACE.mean, atol=1e-6)


def test_samples_are_drawn_in_eval_mode_and_the_modes_come_back(model, tokenizer):
    expected = generate(model, tokenizer, SPACE, LABELS, num_steps=2)
    tokenizer.train()
    assert torch.equal(generate(model, tokenizer, SPACE, LABELS, num_steps=2), expected)
    assert (tokenizer.training, model.training) == (True, False)


def test_the_latent_space_of_another_tokenizer_is_refused(model, tokenizer):
    space = LatentSpace("others", SPACE.mean, SPACE.std)
    with pytest.raises(
        ValueError,
        match=f"the latent space belongs to tokenizer others, not to {tokenizer.fingerprint}",
    ):
        generate(model, tokenizer, space, LABELS, num_steps=1)


def test_a_tokenizer_that_changed_since_its_latents_were_made_is_refused(model, tokenizer):
    space = LatentSpace(tokenizer.fingerprint, SPACE.mean, SPACE.std)
    generate(model, tokenizer, space, LABELS, num_steps=1)
    with torch.no_grad():
        tokenizer.to_pixels.bias[0] += 1e-3
    for bound in (space, SPACE):
        with pytest.raises(ValueError, match="the latent space belongs to tokenizer"):
            generate(model, tokenizer, bound, LABELS, num_steps=1)


def test_labels_the_model_does_not_know_are_refused(model, tokenizer):
    with pytest.raises(
        ValueError, match=r"labels must be in 0 .. 4 \(4 is the null class\), not 0 .. 5"
    ):
        generate(model, tokenizer, SPACE, torch.tensor([0, 5]), num_steps=1)


def test_a_model_of_another_tokenizers_latents_is_refused_and_one_of_unknown_latents_is_not(
    model, tokenizer
):
    for fingerprint in ("", SPACE.tokenizer):
        model.tokenizer_fingerprint = fingerprint
        generate(model, tokenizer, SPACE, LABELS, num_steps=1)
    model.tokenizer_fingerprint = "others"
    with pytest.raises(ValueError, match="the diffusion model belongs to tokenizer others, not to"):
        generate(model, tokenizer, SPACE, LABELS, num_steps=1)


def test_the_cost_is_said_before_the_start_and_the_speed_after_the_first_batch(model, tokenizer):
    said = []
    generate(model, tokenizer, SPACE, LABELS, num_steps=3, batch_size=2, write=said.append)
    assert said[0].startswith(f"{len(LABELS)} images: 3 model rows an image, ")
    assert said[1].startswith(f"2 of {len(LABELS)} images; ")
    assert said[-1].startswith(f"{len(LABELS)} of {len(LABELS)} images; ")


def test_samples_can_be_drawn_in_bf16(model, tokenizer):
    fine, coarse = (
        generate(model, tokenizer, SPACE, LABELS, num_steps=2, precision=name)
        for name in ("fp32", "bf16")
    )
    assert coarse.dtype == torch.float32
    assert not coarse.equal(fine)
    assert torch.allclose(coarse, fine, atol=0.2)
