"""Each ablation is the row of the paper's table that its name says, on every size, and trains."""

import math
from types import SimpleNamespace

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.identity import fingerprint
from maetok_lab.runs import Run
from maetok_lab.runs.names import NAME
from maetok_lab.tokenizer.masking import draw_mask
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.training.objective import Objective
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING, ladder_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.rungs import ABLATIONS, LADDER, RIVALS, RUNGS, BesideSum, PerPatch, Times
from maetok_lab.training.tokenizer import decoder_tuning, train_tokenizer

each_size = pytest.mark.parametrize("size", TOKENIZER_TRAINING)
each_ablation = pytest.mark.parametrize("name", ABLATIONS)
TINY = TOKENIZER_TRAINING["tiny"]

# Runs on disk have these: of ae, kl, ae-mask, hog, semantic and all.
FINGERPRINTS = {
    "test": "58ca5ce3bdaaad8a c9a294e17038bf75 ae8f79a3350f88a9"
    " e3ab8a92c0ba189d ca8786125d26dc8e 971ef747eb5365a8",
    "tiny": "ae3fe5da77246df7 fefbf68f576d9a9c 588ba9346ce8e095"
    " 8c6b4bf25b6329d9 fc73ddd1642a588d 00a8a1ced455c5a7",
    "small": "302b6fc3c99f2288 db9bd7df02c2d9f8 900c846d9eef9da4"
    " a19868f430c0c573 4dd10c8ed605b563 2b3abcdd8c692f92",
    "maetok-b-128": "cee88047e43705e8 e3b47ba92366b141 47acd82e43f48ccd"
    " 48787771dca1bf10 85b567669e6f8372 f76c86520c6797e1",
    "maetok-b-128-512": "6bb8af84c7b8c252 f669a328f078d744 09ca62f537fb1b75"
    " d446869731482b84 002435469c25c6ed 74760b0988725ecb",
}


def names(config: TokenizerTraining) -> list[str]:
    return [target.target for target in config.targets]


def rows(table: str) -> list[str]:
    return [name for name in ABLATIONS if name.startswith(f"{table}-")]


def size_of(config: TokenizerTraining) -> tuple[int, int]:
    return config.model.num_latent_tokens, config.model.latent_dim


# All of them --------------------------------------------------------------------------------------


@each_size
def test_the_ladders_rungs_keep_the_fingerprints_of_runs_on_disk(size):
    now = [fingerprint(ladder_training(size, rung)) for rung in LADDER]
    assert now == FINGERPRINTS[size].split()


def test_no_ablation_hides_a_rung_and_every_name_can_be_part_of_a_runs():
    assert list(RUNGS) == [*LADDER, *ABLATIONS, *RIVALS]
    assert len(RUNGS) == len(LADDER) + len(ABLATIONS) + len(RIVALS)
    assert "preset" not in RUNGS  # which stands for the preset's own recipe
    assert [name for name in RUNGS if not NAME.fullmatch(name) or "_" in name] == []


@each_size
@each_ablation
def test_every_ablation_stands_on_every_size_and_can_be_tuned(size, name):
    config = override(TOKENIZER_TRAINING[size], ABLATIONS[name])
    assert ladder_training(size, name) == config
    parent = SimpleNamespace(fingerprint="parent")
    assert decoder_tuning(config, parent=parent, **DECODER_TUNING[size]).trains == "decoder"


@each_ablation
def test_two_steps_of_every_ablation_train_it(tmp_path, make_pictures, name):
    config = ladder_training("test", name, num_steps=2, batch_size=2, precision="fp32", workers=0)
    run = Run.open(f"ladder-{name}-test-s0", config, root=tmp_path)
    records = list(train_tokenizer(config, make_pictures(4, 64), run, cpu=True))
    assert [record.step for record in records] == [1, 2]
    terms = {"pixel", *(f"auxiliary/{target}" for target in names(config))}
    if config.model.bottleneck == "kl":
        terms.add("kl")
    assert terms <= set(run.summary)
    assert all(math.isfinite(run.summary[term]) for term in terms)
    latents = Tokenizer(config.model).encode(torch.zeros(1, 3, 64, 64))
    assert latents.shape == (1, *size_of(config))


def test_a_teacher_stands_for_the_features_of_every_ablation():
    for name in ("6-tokens-aux", "1d-linear", "13a-256"):
        shipped = ladder_training("tiny", name)
        paper = ladder_training("tiny", name, teacher="dinov2", weights={"dinov2": "FILE"})
        assert (names(shipped), names(paper)) == (["hog", "semantic"], ["hog", "dinov2"])
        for target, other in zip(shipped.targets, paper.targets):
            assert (target.depth, target.loss_on) == (other.depth, other.loss_on)


# Tables of the paper ------------------------------------------------------------------------------

# Table 6, its ticks in order: mask modelling, learnable tokens, auxiliary decoders.
TABLE_6 = {
    "6-mask-tokens-aux": (True, True, True),
    "6-tokens-aux": (False, True, True),
    "6-mask-aux": (True, False, True),
    "6-mask-tokens": (True, True, False),
    "6-aux": (False, False, True),
    "6-mask": (True, False, False),
    "6-tokens": (False, True, False),
}


def test_table_6_has_its_seven_rows_in_order():
    assert rows("6") == list(TABLE_6)


@each_size
@pytest.mark.parametrize("name", TABLE_6)
def test_a_row_of_table_6_has_its_ticks_and_the_size_of_its_tokens(size, name):
    config = ladder_training(size, name)
    masks = config.masking.ratio != "none"
    learnable = config.model.latent_tokens == "learnable"
    assert (masks, learnable, bool(config.targets)) == TABLE_6[name]
    assert masks == (draw_of(config) > 0)
    patches = math.prod(config.model.grid)
    preset = TOKENIZER_TRAINING[size].model
    tokens, channels = size_of(config)
    assert (tokens, channels) == (
        preset.num_latent_tokens if learnable else patches,
        preset.latent_dim,
    )
    if config.targets:
        assert names(config) == ["hog", "semantic"]
        assert {target.loss_on for target in config.targets} == {"hidden" if masks else "all"}


def draw_of(config: TokenizerTraining) -> int:
    """How many patches a batch of this training hides."""
    mask = draw_mask(config.masking, 1, config.model.grid, generator=torch.Generator())
    return 0 if mask is None else int(mask.sum())


@each_size
def test_rows_of_table_6_that_the_ladder_has_are_the_ladders(size):
    for name, rung in {
        "6-mask-tokens-aux": "all",
        "6-mask-tokens": "ae-mask",
        "6-tokens": "ae",
    }.items():
        assert ladder_training(size, name) == ladder_training(size, rung)


def test_without_learnable_tokens_the_model_has_none():
    for name, (_, learnable, _) in TABLE_6.items():
        encoder = Tokenizer(ladder_training("test", name).model).encoder
        assert (encoder.latent_tokens is not None) == learnable


def test_table_1c_has_the_papers_mask_ratios_and_one_target():
    ratios = {name: ladder_training("maetok-b-128", name).masking for name in rows("1c")}
    assert {
        name: (round(100 * mask.low), round(100 * mask.high)) for name, mask in ratios.items()
    } == {
        "1c-0-60": (0, 60),
        "1c-10-40": (10, 40),
        "1c-20-60": (20, 60),
        "1c-40-40": (40, 40),
        "1c-40-60": (40, 60),
    }
    assert {mask.ratio for mask in ratios.values()} == {"truncated_normal"}
    assert {tuple(names(ladder_training("tiny", name))) for name in ratios} == {("hog",)}
    assert ladder_training("tiny", "1c-40-60") == ladder_training("tiny", "hog")


@pytest.mark.parametrize("size", ["test", "tiny"])
def test_table_1d_has_as_many_blocks_in_each_auxiliary_decoder_as_it_says(size):
    depths = {"1d-linear": 0, "1d-1": 1, "1d-3": 3, "1d-6": 6, "1d-12": 12}
    assert rows("1d") == list(depths)
    plain = Objective(ladder_training(size, "all"))
    for name, depth in depths.items():
        objective = Objective(ladder_training(size, name))
        assert list(objective.auxiliary) == ["hog", "semantic"]
        for target, auxiliary in objective.auxiliary.items():
            if depth == 0:
                assert auxiliary.decoder.to_patches.in_features == TINY.model.num_latent_tokens
                continue
            blocks = auxiliary.decoder.blocks
            first = plain.auxiliary[target].decoder.blocks[0]
            assert len(blocks) == depth
            assert blocks[0].attn.qkv.weight.shape == first.attn.qkv.weight.shape
        # the pixel decoder stays
        assert len(objective.tokenizer.decoder.blocks) == len(plain.tokenizer.decoder.blocks)


def test_three_layers_are_what_the_papers_size_has_anyway():
    config = ladder_training("maetok-b-128", "1d-3")
    plain = ladder_training("maetok-b-128", "all")
    decoder = config.model.decoder
    assert [target.decoder_tower(decoder) for target in config.targets] == [
        target.decoder_tower(decoder) for target in plain.targets
    ]


def test_table_13a_has_the_papers_counts_at_the_papers_size_and_their_ratio_at_every():
    paper = {name: ladder_training("maetok-b-128", name).model for name in rows("13a")}
    assert {name: model.num_latent_tokens for name, model in paper.items()} == {
        "13a-256": 256,
        "13a-128": 128,
    }
    for model in paper.values():
        assert (math.prod(model.grid), model.latent_dim, model.latent_tokens) == (
            256,
            32,
            "learnable",
        )
    for size in TOKENIZER_TRAINING:
        counts = [size_of(ladder_training(size, name))[0] for name in rows("13a")]
        assert counts[0] == 2 * counts[1]
        assert ladder_training(size, "13a-128") == ladder_training(size, "all")


# Beyond the paper ---------------------------------------------------------------------------------


@each_size
def test_tokens_against_channels_keep_the_size_of_the_latents(size):
    model = TOKENIZER_TRAINING[size].model
    sizes = [size_of(ladder_training(size, name)) for name in rows("tokens")]
    assert [tokens / model.num_latent_tokens for tokens, _ in sizes] == [0.5, 1, 2, 4]
    assert {tokens * channels for tokens, channels in sizes} == {
        model.num_latent_tokens * model.latent_dim
    }


@each_size
def test_the_weight_of_kl_is_that_beside_a_sum_of_the_images_errors(size):
    configs = {name: ladder_training(size, name) for name in rows("kl")}
    numbers = 3 * TOKENIZER_TRAINING[size].model.image_size ** 2
    weights = {name: numbers * config.losses.kl_weight for name, config in configs.items()}
    assert weights == pytest.approx({"kl-1e-6": 1e-6, "kl-1e-2": 1e-2, "kl-1": 1, "kl-8": 8})
    plain = ladder_training(size, "kl")
    for config in configs.values():
        assert override(config, {"losses.kl_weight": plain.losses.kl_weight}) == plain


# Sizes that follow from the preset's --------------------------------------------------------------


def test_a_relative_change_follows_from_the_config_it_is_made_to():
    changes = {"model.num_latent_tokens": Times(0.25), "model__latent_dim": PerPatch()}
    model = override(TINY, changes | {"losses.kl_weight": BesideSum(3.0)})
    assert size_of(model) == (8, 64)
    assert model.losses.kl_weight == 64**-2


def test_own_changes_come_last():
    config = ladder_training("tiny", "tokens-2x", model__latent_dim=3)
    assert size_of(config) == (64, 3)


@pytest.mark.parametrize(("size", "problem"), [(6, "1.5"), (2, "0.5")])
def test_a_part_of_a_size_that_is_no_whole_number_says_so(size, problem):
    small = override(TINY, {"model.latent_dim": size})
    message = rf"model.latent_dim must be a whole number.* 0.25 times {size} is {problem}; take a"
    with pytest.raises(ValueError, match=message):
        override(small, ABLATIONS["tokens-4x"])
