"""How long a study will take on this machine: some steps of each of its trainings, timed before.

What `forecast` gives is printed, and goes to `widgets.live.follow`:

    expected = forecast("tiny", config, num_classes=26, device=device)
    print(expected)
    await follow(training, "tokenizer", forecast=expected)
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from maetok_lab.config import override
from maetok_lab.experiments.planner import RandomImages, random_latents
from maetok_lab.experiments.trial import Train, endless_steps, seconds_of_steps
from maetok_lab.runs import Run
from maetok_lab.runs.provenance import clock
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import DECODER_TUNING, diffusion_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.task import StepRecord
from maetok_lab.training.tokenizer import train_tokenizer

TRIAL = 0.3  # seconds of steps that are timed, of each training
# Everything but the trainings (caching, maps, samples, scores), as a share of them: what the main
# notebook's own times gave at `tiny` (its run's summary). A guess at any other size.
REST = 0.25


@dataclasses.dataclass
class Forecast:
    """Seconds of each training, in their order, by the titles that `follow` shows them under."""

    stages: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {about(seconds)}" for name, seconds in self.stages.items())
        trainings = sum(self.stages.values())
        return f"about {about(trainings * (1 + REST))} on this machine in all: {parts}"

    def after(self, title: str, seconds: float) -> float:
        """Seconds from the end of stage `title` to the end of all; it takes `seconds` itself.

        What it takes against what was forecast corrects the stages that are still to come.
        """
        names = list(self.stages)
        later = sum(self.stages[name] for name in names[names.index(title) + 1 :])
        rest = REST * sum(self.stages.values())
        return (later + rest) * seconds / self.stages[title]


def about(seconds: float) -> str:
    """Minutes and seconds, to five of them: nobody can know it better."""
    return clock(5 * round(seconds / 5))


def forecast(
    preset: str,
    config: TokenizerTraining,
    *,
    num_classes: int,
    device: torch.device,
    **diffusion_changes: Any,
) -> Forecast:
    """Time steps of a tokenizer's training and of the preset's diffusion training.

    They see random images and latents, so nothing need be there yet. The decoder's tuning is taken
    to be as fast as the tokenizer's training; it is faster, so the forecast errs towards more.
    """
    cpu = device.type == "cpu"
    images = RandomImages(config.model.image_size)

    def tokenizer_steps(sized: Any, run: Run) -> Iterator[StepRecord]:
        return train_tokenizer(sized, images, run, cpu=cpu)

    config = override(config, {"images": "", "workers": 0})
    a_step = seconds_a_step(config, tokenizer_steps, device)
    stages = {"tokenizer": a_step * config.num_steps}
    stages["decoder tuning"] = a_step * DECODER_TUNING[preset]["num_steps"]

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(None):  # of a cache that nobody will see
            latents = random_latents(Path(folder), config.model, device)
        precision = {"precision": config.precision}
        flow = diffusion_training(preset, latents, num_classes=num_classes, **precision)
        flow = override(flow, diffusion_changes)

        def diffusion_steps(sized: Any, run: Run) -> Iterator[StepRecord]:
            return train_diffusion(sized, latents, run, cpu=cpu)

        stages["diffusion"] = seconds_a_step(flow, diffusion_steps, device) * flow.num_steps
    return Forecast(stages)


def seconds_a_step(config: Any, train: Train, device: torch.device) -> float:
    """Seconds of one step of `train(config, run)` at the config's own batch size."""
    with endless_steps(config, config.batch_size, train) as steps:
        next(steps)  # the first one makes what all others use
        return seconds_of_steps(steps, device=device, seconds=TRIAL)
