"""What a training needs: counted exactly where it can be, never run where weights do not fit."""

import math

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.diffusion.cost import flops
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.experiments import planner, trial
from maetok_lab.experiments.planner import (
    latent_cache_bytes,
    measured_table,
    recipe_of,
    without_downloads,
)
from maetok_lab.experiments.trial import Measured, Trial, count_memory, line, next_size
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.training.presets import DIFFUSION_TRAINING, TOKENIZER_TRAINING

CPU = torch.device("cpu")
TEST = override(TOKENIZER_TRAINING["test"], {"precision": "fp32"})
MEASURED = Measured(
    stage="tokenizer",
    batch=4,
    recipe_batch=32,
    images=3_600_000,
    images_per_second=100.0,
    fixed_bytes=1e9,
    bytes_per_image=1e8,
    least_bytes=1.5e9,
    flop_per_image=1e12,
    free_bytes=16e9,
)


def changed(**fields):
    return Measured(
        **{name: getattr(MEASURED, name) for name in MEASURED.__dataclass_fields__} | fields
    )


def test_memory_of_tensors_is_counted_to_the_byte():
    with count_memory(CPU) as memory:
        x = torch.zeros(1000, requires_grad=True)  # 4 kB
        y = x * 2  # 4 kB
        del y
        z = (
            x.exp() * 3
        ).sin()  # exp keeps its result, sin its input; what sin gives is not there yet
        torch.zeros(20_000)
        z.sum().backward()
    held, peak = memory
    assert held == 3 * 4000
    assert peak == 4 * 4000 + 80_000


def test_a_line_through_two_points_or_from_the_least():
    assert line([(1, 30.0), (4, 60.0)], at_least=1.0) == (20.0, 10.0)
    assert line([(4, 60.0)], at_least=20.0) == (20.0, 10.0)
    assert line([(1, 60.0), (4, 60.0)], at_least=20.0) == (20.0, 10.0)
    assert math.isnan(line([], at_least=5.0)[1])


def test_a_batch_grows_while_time_and_memory_last_and_a_second_one_is_always_tried():
    first, second = Trial(2, 10.0, 20.0, 1.0, 0.5), Trial(8, 40.0, 60.0, 4.0, 1.0)
    room = {"weights": 10.0, "room": 1000.0}
    assert next_size([first], 32, left=60.0, **room) == 8
    assert next_size([first], 6, left=60.0, **room) == 6
    assert next_size([first], 32, left=0.0, **room) == 4
    assert next_size([first], 32, left=60.0, weights=10.0, room=35.0) == 4
    assert next_size([first], 32, left=60.0, weights=10.0, room=25.0) == 0
    assert next_size([first, second], 32, left=60.0, **room) == 32
    assert next_size([first, second], 32, left=3.0, **room) == 0
    assert next_size([second], 8, left=60.0, **room) == 16  # no line without a second


def test_a_diffusion_training_is_measured_and_its_work_is_three_forward_passes():
    measured = planner.measure_diffusion(
        "test", TEST.model, num_classes=5, device=CPU, seconds=0.5, precision="fp32"
    )
    assert (measured.recipe_batch, measured.images) == (16, 320)
    work = 3 * flops(
        DIFFUSION["test"], TEST.model.num_latent_tokens, latent_dim=TEST.model.latent_dim
    )
    assert measured.flop_per_image == pytest.approx(
        work, rel=0.15
    )  # nothing is sent back to the input of the first layer
    assert measured.hours == pytest.approx(320 / measured.images_per_second / 3600)
    assert 0 < measured.bytes_per_image < 1e6
    assert "diffusion: fits, a batch of 16 takes" in measured.verdict()


def test_a_tokenizer_training_is_measured_with_its_perceptual_term_and_discriminator():
    critic = AdversarialConfig(
        discriminator="patchgan", width=8, layers=2, trains_from=5, counts_from=10
    )
    rich = override(TEST, {"losses.adversarial": critic})
    plain, richer = (
        planner.measure_tokenizer(config, device=CPU, seconds=0.2) for config in (TEST, rich)
    )
    assert richer.flop_per_image > 1.2 * plain.flop_per_image
    assert plain.memory(64) > plain.memory(8)


def test_what_does_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(trial, "free_memory", lambda device: 1000)
    monkeypatch.setattr(trial, "try_batch", None)
    measured = planner.measure_diffusion("test", TEST.model, num_classes=5, device=CPU)
    assert math.isnan(measured.hours)
    assert measured.largest_batch(1e12) == 0
    assert (
        "does not fit: weights, gradients, optimizer and averages alone take" in measured.verdict()
    )
    table = measured_table([measured])["diffusion"]
    assert (table["at batch"], table["time for them"]) == ("0", "not measured")


def test_the_table_is_in_words_that_small_and_large_numbers_fit():
    words = measured_table([changed(images=44_800, images_per_second=512.3)])["tokenizer"]
    assert (words["images in all"], words["images/s"]) == ("44,800", "512")
    assert words["time for them"] == "1:27"
    assert "." not in measured_table([MEASURED]).loc["images in all", "tokenizer"]


def test_verdicts():
    assert MEASURED.verdict() == "tokenizer: fits, a batch of 32 takes 4.2 GB of 16 GB"
    assert (
        "up to 10 images at once fit, so 4 parts or processes"
        in changed(free_bytes=2.05e9).verdict()
    )
    assert "does not fit" in changed(free_bytes=1.2e9).verdict()
    assert MEASURED.hours == 10.0
    assert MEASURED.memory(2) == 1.5e9


def test_every_tokenizer_preset_goes_with_a_diffusion_preset_and_images():
    for preset in TOKENIZER_TRAINING:
        assert recipe_of(preset)["diffusion"] in DIFFUSION_TRAINING
    assert recipe_of("maetok-b-128")["num_images"] == 1_281_167
    emoji = open_images("emoji", image_size=8, labels="category-style")
    recipe = recipe_of("tiny")
    assert (recipe["num_images"], recipe["num_classes"]) == (len(emoji), emoji.num_classes)


def test_the_papers_cache_and_what_its_training_downloads():
    paper = TOKENIZER_TRAINING["maetok-b-128"]
    assert latent_cache_bytes(1_281_167, paper.model) == pytest.approx(21.0e9, rel=0.01)
    assert latent_cache_bytes(1_281_167, paper.model, flips=False) == pytest.approx(
        10.5e9, rel=0.01
    )
    config, left_out = without_downloads(paper)
    assert left_out == ["dinov2", "clip", "lpips", "dino discriminator"]
    assert [target.target for target in config.targets] == ["hog"]
    assert without_downloads(TEST) == (TEST, [])
