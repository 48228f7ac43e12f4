"""How long a study will take on this machine: some steps of each of its trainings, timed before.

expected = forecast("tiny", config, num_classes=26, device=device)
print(expected)
await follow(training, "tokenizer", forecast=expected)
"""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from maetok_lab.config import override
from maetok_lab.experiments.planner import RandomImages, random_latents
from maetok_lab.experiments.trial import ENDLESS, Train
from maetok_lab.runs import Run
from maetok_lab.training.autoencoding import TokenizerTraining
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import DECODER_TUNING, diffusion_training
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

WARM_UP = 2  # steps before the clock starts: they take memory and choose kernels
TIMED = 4  # steps, of which the median counts
# Everything but the trainings (caching, maps, samples, scores), as a share of them: what the main
# notebook's own times gave at `tiny` (its run's summary). A guess at any other size.
REST = 0.25


@dataclasses.dataclass
class Forecast:
    """Seconds of each training, in their order, by the titles that `follow` shows them under."""

    stages: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {clock(seconds)}" for name, seconds in self.stages.items())
        trainings = sum(self.stages.values())
        return f"about {clock(trainings * (1 + REST))} on this machine in all: {parts}"

    def after(self, title: str, seconds: float) -> float:
        """Seconds from the end of stage `title` to the end of all; it takes `seconds` itself.

        What it takes against what was forecast corrects the stages that are still to come.
        """
        names = list(self.stages)
        later = sum(self.stages[name] for name in names[names.index(title) + 1 :])
        rest = REST * sum(self.stages.values())
        return (later + rest) * seconds / self.stages[title]


def clock(seconds: float) -> str:
    """Seconds as m:ss, to five of them: nobody can know it better."""
    minutes, seconds = divmod(5 * round(seconds / 5), 60)
    return f"{minutes}:{seconds:02}"


def forecast(
    preset: str,
    config: TokenizerTraining,
    *,
    num_classes: int,
    device: torch.device,
    **diffusion_changes: Any,
) -> Forecast:
    """Time steps of a tokenizer's training, its decoder's tuning and a diffusion training.

    They see random images and latents, so nothing need be there yet. Tuning and diffusion are the
    preset's, the latter with `diffusion_changes`.
    """
    cpu = device.type == "cpu"
    images = RandomImages(config.model.image_size)
    config = override(config, {"images": "", "workers": 0})
    stages = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        stages["tokenizer"] = seconds_of(
            config, lambda sized, run: train_tokenizer(sized, images, run, cpu=cpu), root / "a"
        )
        # the tuning starts from weights, so one step leaves some
        once = override(config, {"num_steps": 1, "losses.adversarial": None})
        parent = Run.open("parent", once, root=root)
        for _ in train_tokenizer(once, images, parent, cpu=cpu):
            pass
        second = decoder_tuning(config, parent=parent, **DECODER_TUNING[preset])
        stages["decoder tuning"] = seconds_of(
            second,
            lambda sized, run: finetune_decoder(sized, images, run, parent=parent, cpu=cpu),
            root / "b",
        )
        with contextlib.redirect_stdout(None):  # of a cache that nobody will see
            latents = random_latents(root / "c", config.model, device)
        flow = diffusion_training(
            preset, latents, num_classes=num_classes, precision=config.precision
        )
        flow = override(flow, diffusion_changes)
        stages["diffusion"] = seconds_of(
            flow, lambda sized, run: train_diffusion(sized, latents, run, cpu=cpu), root / "d"
        )
    return Forecast(stages)


def seconds_of(config: Any, train: Train, root: Path) -> float:
    """Seconds that `train(config, run)` will take, from the median of a few of its steps."""
    endless = dict.fromkeys(("num_steps", "log_every", "save_every", "picture_every"), ENDLESS)
    sized = override(config, endless)
    times = []
    with Run.open("trial", sized, root=root) as run, contextlib.closing(train(sized, run)) as steps:
        for _ in range(WARM_UP):
            next(steps)
        for _ in range(TIMED):
            begin = time.perf_counter()
            next(steps)
            if torch.cuda.is_available():  # a GPU returns from a step before it has done it
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return config.num_steps * statistics.median(times)
