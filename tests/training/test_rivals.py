"""Each rival stands on every size; at `test` its terms reach what they should, and stops change
nothing.
"""

import dataclasses
import functools
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from maetok_lab.config import override
from maetok_lab.runs import Run
from maetok_lab.tokenizer.masking import draw_ratio
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.training import loop
from maetok_lab.training.autoencoding import TokenizerBatch, TokenizerTask
from maetok_lab.training.order import Share
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING, ladder_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.rungs import RIVALS
from maetok_lab.training.tokenizer import decoder_tuning, train_tokenizer

CPU = torch.device("cpu")
each_rival = pytest.mark.parametrize("name", RIVALS)

# What each term's gradient is to reach, and nothing besides; decoders' inputs come in by the part
# that a rival has of its own.
ENCODING = {"encoder", "to_latents"}
DECODING = ENCODING | {"decoder", "to_pixels"}
OWN_PART = {"softvq": {"bottleneck"}, "latent-mask": {"perturbation"}}
REACHES = {
    "pixel": DECODING,
    "adversarial": DECODING,
    "kl": ENCODING,
    "ve": ENCODING,
    "entropy": ENCODING,  # the codes are not drawn by how they are chosen
    "auxiliary/semantic": ENCODING | {"alignment"},
}
TERMS = {
    "detok": "kl",
    "align": "auxiliary/semantic",
    "align-grid": "auxiliary/semantic",
    "ve": "ve",
    "ve-1e-3": "ve",
    "softvq": "entropy",
    "critic": "adversarial",
    "between": "adversarial",
}
COSTS_OF_A_DISCRIMINATOR = {"critic", "between"}


def rival(name: str, **changes) -> TokenizerTraining:
    """Four steps at preset `test`; some latents are always hidden where they can be."""
    if name == "latent-mask":
        changes["perturbation__masked_odds"] = (0.0, 0.4, 0.3, 0.3)
    options = {"num_steps": 4, "batch_size": 4, "precision": "fp32", "workers": 0}
    return ladder_training("test", name, **options | {"save_every": 2, "log_every": 1} | changes)


@pytest.fixture(scope="module")
def pictures(make_pictures):
    return make_pictures(10, 64)


@pytest.fixture(scope="module")
def start(pictures):
    """`start(name, step, **changes)`: a rival's task as it is built, and the batch of a step."""
    engine = Accelerator(cpu=True)

    @functools.cache
    def build(name: str, **changes) -> TokenizerTask:
        config = rival(name, **changes)
        return loop.State(TokenizerTask(config, pictures), engine).task

    def begin(name: str, step: int = 3, **changes) -> tuple[TokenizerTask, TokenizerBatch, Share]:
        task = build(name, **changes)
        for parameter in task.module.parameters():
            parameter.grad = None
        share = Share(engine, step, task.config.batch_size)
        return task, next(task.batches(share)), share

    return begin


def part_of(name: str) -> str:
    """The part of a model that a parameter of `Objective` belongs to."""
    name = name.removeprefix("tokenizer.").replace("auxiliary.", "alignment.")
    return name.split(".")[0]


def reached(task: TokenizerTask, term: torch.Tensor) -> set[str]:
    """The parts in which a term has a gradient that is not zero; also of the discriminator."""
    parameters = dict(task.module.named_parameters())
    if task.adversary:
        for name, parameter in task.adversary.discriminator.named_parameters():
            parameters[f"discriminator.{name}"] = parameter
    values = torch.autograd.grad(
        term, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    parts = set()
    for name, value in zip(parameters, values):
        if value is not None and value.abs().sum() > 0:
            parts.add(part_of(name))
    return parts


# All sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", TOKENIZER_TRAINING)
@each_rival
def test_every_rival_stands_on_every_size_and_can_be_tuned(size, name):
    config = ladder_training(size, name)
    # the paper's own recipe has a discriminator
    same = name == "critic" and TOKENIZER_TRAINING[size].losses.adversarial is not None
    assert (config == ladder_training(size, "ae")) == same
    parent = SimpleNamespace(fingerprint="parent")
    tuning = decoder_tuning(config, parent=parent, **DECODER_TUNING[size])
    assert (tuning.trains, tuning.targets, tuning.model) == ("decoder", (), config.model)


@pytest.mark.parametrize("size", ["test", "tiny", "maetok-b-128"])
def test_a_rival_differs_from_its_control_in_its_idea_alone(size):
    controls = {
        "rms": ("ae", {"model.bottleneck": "ae"}),
        "denoise": ("rms", {"perturbation.noise": "none"}),
        "latent-mask": ("ae", {"perturbation.masked_shares": (), "perturbation.masked_odds": ()}),
        "align": ("ae", {"targets": ()}),
        "align-grid": ("ae-grid", {"targets": ()}),
        "denoise-1": ("denoise", {"perturbation.noise_scale": 3.0}),
        "ve": ("ae", {"model.bottleneck": "ae"}),
        "ve-1e-3": ("ve", {"losses.ve_weight": 0.1}),
        "softvq": ("ae", {"model.bottleneck": "ae"}),
        "fsq": ("ae", {"model.bottleneck": "ae"}),
        "between": ("critic", {"perturbation.between": False}),
    }
    for name, (control, changes) in controls.items():
        config = override(ladder_training(size, name), changes)
        assert config == ladder_training(size, control), name


def test_the_defaults_of_noise_and_masks_are_their_sources():
    denoise, detok = ladder_training("test", "denoise"), ladder_training("test", "detok")
    assert denoise.perturbation.noise_scale == detok.perturbation.noise_scale == 3
    ratios = []
    for seed in range(400):
        draws = torch.Generator().manual_seed(seed)
        ratios.append(draw_ratio(detok.masking, progress=0, generator=draws))
    # max(0, U(-0.1, 0.7)): an eighth hides nothing
    assert sum(ratio <= 0 for ratio in ratios) == pytest.approx(50, abs=4 * 6.6)
    assert max(ratios) < 0.7
    for config in (ladder_training("tiny", "ae-grid"), ladder_training("tiny", "align-grid")):
        model = config.model
        assert (model.num_latent_tokens, model.latent_dim, model.latent_tokens) == (
            64,
            8,
            "patches",
        )


# Gradients ----------------------------------------------------------------------------------------


@each_rival
def test_each_term_reaches_what_it_should_and_nothing_else(start, name):
    task, batch, share = start(name)
    _, terms = task.loss(task.module, batch, share)
    trained = {term for term, value in terms.items() if value.requires_grad}
    assert trained == {"pixel"} | ({TERMS[name]} if name in TERMS else set())
    for term in trained:
        expected = set(REACHES[term])
        if term in ("pixel", "adversarial"):
            expected |= OWN_PART.get(name, set())
        assert reached(task, terms[term]) == expected, term


@each_rival
def test_a_step_gives_every_image_a_gradient_and_teacher_and_discriminator_none(start, name):
    task, batch, share = start(name)
    batch.images.requires_grad_()
    loss, _ = task.loss(task.module, batch, share)
    loss.backward()
    assert batch.images.grad.flatten(1).norm(dim=1).min() > 0
    moved = {part_of(n) for n, p in task.module.named_parameters() if p.grad is not None}
    parts = {part_of(n) for n, _ in task.module.named_parameters()}
    assert moved == parts
    for head in task.module.auxiliary.values():
        assert all(p.grad is None for p in head.target.net.parameters())
    assert (task.adversary is not None) == (name in COSTS_OF_A_DISCRIMINATOR)
    if task.adversary:
        assert all(p.grad is None for p in task.adversary.discriminator.parameters())
        before = [p.grad.clone() for p in task.module.parameters() if p.grad is not None]
        task.after_step(batch, share, 1.0)
        after = [p.grad for p in task.module.parameters() if p.grad is not None]
        assert all(map(torch.equal, before, after))


def test_a_mixtures_gradient_is_the_discriminators_alone(start):
    task, batch, share = start("between")
    outputs = []

    def forward(*inputs):
        outputs.append(task.module(*inputs))
        return outputs[-1]

    _, terms = task.loss(forward, batch, share)
    mixtures = outputs[0][2]
    assert mixtures.shape == batch.images.shape
    grads = {}
    for term in ("pixel", "adversarial"):
        (grads[term],) = torch.autograd.grad(
            terms[term], mixtures, retain_graph=True, allow_unused=True
        )
    assert grads["pixel"] is None
    assert grads["adversarial"].flatten(1).norm(dim=1).min() > 0
    # without them the reconstruction is the same, and the verdict is of it alone
    assert torch.equal(batch.mixtures, mixtures.detach())
    plain = dataclasses.replace(batch, perturbation={}, mixtures=None)
    _, alone = task.loss(task.module, plain, share)
    assert plain.mixtures is None
    assert torch.equal(alone["pixel"], terms["pixel"])
    assert not torch.equal(alone["adversarial"], terms["adversarial"])


def test_before_the_discriminator_counts_mixtures_give_no_gradient(start):
    task, batch, share = start("between", 0, losses__adversarial__counts_from=2)
    _, terms = task.loss(task.module, batch, share)
    assert set(terms) == {"pixel"}
    # it learns from them all the same
    seen = []
    discriminator = task.adversary.discriminator
    handle = discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    task.after_step(batch, share, 1.0)
    handle.remove()
    assert seen == [3 * 2] * 2  # real ones, reconstructions, mixtures, in two parts


def test_tokens_are_aligned_as_strongly_as_they_are_reconstructed(start):
    task, batch, share = start("align-grid")
    loss, terms = task.loss(task.module, batch, share)
    layer = task.model.to_latents.weight
    lengths = {}
    for name in ("pixel", "auxiliary/semantic"):
        (gradient,) = torch.autograd.grad(terms[name], layer, retain_graph=True)
        lengths[name] = gradient.norm()
    factor = 0.1 * lengths["pixel"] / (lengths["auxiliary/semantic"] + 1e-4)
    expected = terms["pixel"] + factor * terms["auxiliary/semantic"]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["align-grid", "softvq", "between"])
def test_recomputed_blocks_give_the_same_gradient(start, name):
    gradients = []
    for recompute in (False, True):
        task, batch, share = start(name, recompute=recompute)
        task.loss(task.module, batch, share)[0].backward()
        gradients.append([p.grad for p in task.module.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@each_rival
def test_a_step_in_bf16_has_the_terms_of_one_in_float32_up_to_its_rounding(start, name):
    terms = []
    for precision in ("fp32", "bf16"):
        task, batch, share = start(name, precision=precision)
        loss, step_terms = task.loss(task.module, batch, share)
        loss.backward()
        gradients = [p.grad for p in task.module.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        terms.append({term: value.item() for term, value in step_terms.items()})
    factor = terms[1].pop("adaptive_weight", 0), terms[0].pop("adaptive_weight", 0)
    assert factor[0] == pytest.approx(factor[1], rel=0.2)
    assert terms[1] == pytest.approx(terms[0], rel=0.05, abs=0.05)


# Draws --------------------------------------------------------------------------------------------


@each_rival
def test_a_process_has_its_rows_of_what_one_process_draws(start, name):
    task, whole, _ = start(name)
    for index in range(2):
        engine = SimpleNamespace(num_processes=2, process_index=index, device=CPU)
        batch = next(task.batches(Share(engine, 3, 4)))
        rows = slice(index, None, 2)
        assert torch.equal(batch.images, whole.images[rows])
        for mine, all_rows in ((batch.mask, whole.mask), (batch.noise, whole.noise)):
            assert (mine is None) == (all_rows is None)
            assert mine is None or torch.equal(mine, all_rows[rows])
        assert batch.perturbation.keys() == whole.perturbation.keys()
        for draw, value in batch.perturbation.items():
            assert torch.equal(value, whole.perturbation[draw][rows])


def test_what_is_drawn_is_a_rivals_own(start):
    draws = {"denoise": 2, "denoise-1": 2, "detok": 2, "latent-mask": 1, "between": 1}
    for name in RIVALS:
        task, batch, _ = start(name)
        assert len(batch.perturbation) == draws.get(name, 0)
        # only a posterior with a variance is sampled
        assert (batch.noise is not None) == (name in ("detok", "ve", "ve-1e-3"))
        others = task.draw_perturbation(4, CPU)
        for draw, value in batch.perturbation.items():
            assert not torch.equal(value, others[draw])


def test_a_sampled_posterior_shows_in_what_is_decoded(start):
    for name in ("detok", "ve"):
        _, batch, _ = start(name)
        task = start(name)[0]
        latents = task.model.encode(batch.images)
        noisy = task.model.posterior(batch.images).sample(batch.noise)
        assert (noisy - latents).abs().mean() > 0.01


# Parts --------------------------------------------------------------------------------------------


def gradients_in(parts: int, start, name: str, **changes) -> list[torch.Tensor]:
    task, batch, share = start(name, **changes)
    for part in share.parts(parts):
        loss, _ = task.loss(task.module, batch, part)
        (loss / parts).backward()
    return [p.grad for p in task.module.parameters() if p.grad is not None]


# A discriminator sees mixtures of a part's images, and adaptive weights are each part's own.
@pytest.mark.parametrize(
    "name", [name for name in RIVALS if name not in {*COSTS_OF_A_DISCRIMINATOR, "align-grid"}]
)
def test_a_batch_in_two_parts_has_the_same_gradient_up_to_rounding(start, name):
    # the entropy of the mean is of a part's tokens
    changes = {"losses__entropy_weight": 0.0} if name == "softvq" else {}
    whole, halves = (gradients_in(parts, start, name, **changes) for parts in (1, 2))
    for mine, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-6)


def test_parts_go_side_by_side_where_nothing_is_shared(start):
    apart = {name for name in RIVALS if start(name)[0].parts_are_independent}
    assert set(RIVALS) - apart == {*COSTS_OF_A_DISCRIMINATOR, "align-grid"}


# Stops --------------------------------------------------------------------------------------------


def train(config, images, run, *, steps: int | None = None) -> None:
    """At most `steps` steps; then the generator is left standing, as by a kill."""
    for record in train_tokenizer(config, images, run, cpu=True):
        if record.step == steps:
            break


@each_rival
def test_four_steps_equal_two_a_stop_and_two_bit_for_bit(assert_same_end, tmp_path, pictures, name):
    config = rival(name)
    whole, cut = (Run.open(kind, config, root=tmp_path) for kind in ("whole", "cut"))
    train(config, pictures, whole)
    train(config, pictures, cut, steps=2)
    torch.rand(5)
    resumed = Run.open("cut", config, root=tmp_path)
    assert resumed.checkpoint_steps() == [2]
    train(config, pictures, resumed)
    assert_same_end(whole, resumed)

    # all that moved is in the checkpoint
    tensors = whole.load_checkpoint().tensors
    groups = {"model", "ema", "optimizer"}
    if name in ("align", "align-grid"):
        groups.add("auxiliary")
        assert tensors["auxiliary"].keys() == {
            "semantic.to_target.weight",
            "semantic.to_target.bias",
        }
    if name == "latent-mask":
        groups.add("perturbation")
        assert tensors["perturbation"]["mask_latent"].abs().min() > 0
    if name in COSTS_OF_A_DISCRIMINATOR:
        groups |= {"discriminator", "discriminator_optimizer"}
    assert set(tensors) == groups
    logged = {"pixel", TERMS[name]} if name in TERMS else {"pixel"}
    assert logged <= set(whole.summary)
    assert Tokenizer(config.model).load_state_dict(tensors["ema"])


# Compiling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", ["drop", "replace"])
@each_rival
def test_every_rival_can_be_told_to_compile(pictures, name, masked):
    # torch compiles at the first call, which does not come here
    changes = {} if "grid" in name else {"model__masked": masked}
    task = TokenizerTask(rival(name, **changes), pictures)
    task.build(CPU)
    task.compile()
    assert list(task.model.state_dict()) == list(Tokenizer(task.config.model).state_dict())
