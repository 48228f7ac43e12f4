"""Ways to draw images with one trained model: each sampled, timed and scored once, in its own run.

runs/setting-NAME-HASH/  config.json score.json samples/step-0000000.png summary.json
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from maetok_lab.diffusion.cost import sampling_cost
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import NULL_CLASS, Guide, guide_words
from maetok_lab.evaluation.features import Reference, about_net, metric_name
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.sample_sets import sample_set, sampling_options
from maetok_lab.experiments.generator import Generator
from maetok_lab.generation.images import generate
from maetok_lab.identity import fingerprint, tensors_fingerprint
from maetok_lab.pictures import image_grid, save_png
from maetok_lab.protocols import Net
from maetok_lab.runs import Run

PICTURE_IMAGES = 32  # on the picture of a setting
WARM_UP_IMAGES = 8  # drawn in one step before the clock starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How images are drawn."""

    scale: float  # of guidance; 1 is none
    low: float  # guidance applies while low <= t <= high; t = 1 is noise
    high: float  # the other end
    steps: int  # of the sampler
    sampler: str  # the integrator
    ema: float | None  # the rate of the averaged weights; None: what the model has
    guide: str | int = NULL_CLASS  # which of the generator's weak models guides

    def protocol(
        self, base: EvalProtocol, weak_model: DiffusionTransformer | None = None
    ) -> EvalProtocol:
        """`base` with this setting, whose guide is `weak_model`."""
        changes = {
            "sampler": self.sampler,
            "steps": self.steps,
            "ema": self.ema,
            "guidance_scale": self.scale,
        }
        # without guidance the interval changes nothing: settings that differ in it share a run
        if self.scale != 1:
            changes |= {"guidance_low": self.low, "guidance_high": self.high}
            if weak_model is not None:
                changes["weak_model"] = tensors_fingerprint(weak_model.state_dict())
        return dataclasses.replace(base, **changes)

    def describe(self) -> str:
        """A few words, for a title or a line of progress."""
        words = f"scale {self.scale:g}"
        if self.scale != 1:
            words += f" on {self.low:g} to {self.high:g}"
            if self.guide != NULL_CLASS:
                words += f" by {guide_words(self.guide)}"
        words += f", {self.sampler} {self.steps}"
        if self.ema is not None:
            words += f", EMA {self.ema:g}"
        return words


def setting_grid(
    *,
    scales: Sequence[float],
    intervals: Sequence[Sequence[float]],
    steps: Sequence[int],
    samplers: Sequence[str],
    ema_rates: Sequence[float | None],
    guides: Sequence[Guide] = (NULL_CLASS,),
) -> list[Setting]:
    """Every combination, the EMA rate slowest and the scale fastest.

    Raises ValueError for an empty list, or an interval that is not [low, high].
    """
    axes = {
        "ema_rates": ema_rates,
        "guides": guides,
        "samplers": samplers,
        "steps": steps,
        "intervals": intervals,
        "scales": scales,
    }
    if empty := [name for name, values in axes.items() if not len(values)]:
        raise ValueError(f"no values for {empty}")
    for interval in intervals:
        if len(interval) != 2:
            raise ValueError(f"an interval is [low, high], not {list(interval)}")

    # slowest first, so that one model after the other is used
    settings = []
    for ema, guide, sampler, count, interval, scale in itertools.product(*axes.values()):
        low, high = map(float, interval)
        how = {"steps": count, "sampler": sampler, "ema": ema, "guide": guide}
        settings.append(Setting(scale=float(scale), low=low, high=high, **how))
    return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores settings of one generator, one after the other in this process; each is a run.

    `workflow.sweep` is the other half: it starts kernels, on many devices or a cluster, and knows
    nothing of images. With notebooks/07_generation_sweep.toml each kernel scores one setting here;
    notebook 07 itself, given all of them, then only reads their runs.
    """

    generator: Generator  # the models
    name: str  # in the names of the runs
    protocol: EvalProtocol  # what the settings do not say
    labels: torch.Tensor  # one for each image that is drawn
    real: Reference  # what samples are compared with
    second: Reference  # other real images, whose distance to `real` is the floor
    net: Net  # whose features are compared
    root: str | Path | None = None  # folder of the runs

    def score(self, setting: Setting) -> Run:
        """The finished run of a setting; sampled and scored now unless it is there already."""
        generator = self.generator
        # without guidance nothing guides: such settings share a run too
        weak = generator.weak_models[setting.guide] if setting.scale != 1 else None
        protocol = setting.protocol(self.protocol, weak).filled(
            num_images=len(self.labels),
            reference=self.real.name,
            reference_sha256=self.real.sha256,
            **about_net(self.net),
        )
        # the run is named by all that its numbers depend on, so other settings never meet in it
        model = generator.models[setting.ema]
        config = sample_set(protocol, model, generator.tokenizer, self.labels, weak_model=weak)
        name = f"setting-{self.name}-{fingerprint(config)[:8]}"
        with Run.open(name, config, root=self.root, parents=generator.parents) as run:
            if not run.finished:
                self._score(protocol, model, weak, run)
        return run

    def _score(
        self,
        protocol: EvalProtocol,
        model: DiffusionTransformer,
        weak: DiffusionTransformer | None,
        run: Run,
    ) -> None:
        options = sampling_options(protocol, weak)
        models = (model, self.generator.tokenizer, self.generator.space)
        # kernels are chosen and memory is taken in the first call, which is not timed
        generate(*models, self.labels[:WARM_UP_IMAGES], **options | {"num_steps": 1})
        started = time.perf_counter()
        images = generate(*models, self.labels, **options)
        seconds = time.perf_counter() - started
        result = evaluate_generation(
            images,
            self.real,
            net=self.net,
            protocol=protocol,
            metrics=["kid"],
            second_reference=self.second,
        )
        result.save(run.folder / "score.json")
        # small images are enlarged to 64 px
        grid = image_grid(images[:PICTURE_IMAGES], columns=8)
        save_png(run.sample_path(0), grid, scale=max(1, 64 // images.shape[-1]))
        cost = sampling_cost(model, len(self.labels), **options)
        speed = {"images_per_second": len(self.labels) / seconds, "seconds": seconds}
        run.finish({**result.metrics, **speed, "model_rows": cost.rows, "gflop": cost.gflop})


def settings_table(scored: Mapping[Setting, Run], net: Net) -> pd.DataFrame:
    """One row a setting: its fields and what was measured.

    Columns: the fields, interval, the kernel distance (under the name that carries the net),
    kid_low, kid_high (95 %), kid_floor, images_per_second, model_rows (an image; None for dopri5),
    run.
    """
    kid = metric_name("kid", net)
    # without guidance several settings are one run: it stands in the row of each
    rows = []
    for setting, run in scored.items():
        result = load_score(run)
        low, high = result.intervals[kid]
        rows.append(
            {
                **dataclasses.asdict(setting),
                "interval": f"{setting.low:g} to {setting.high:g}",
                kid: result.metrics[kid],
                "kid_low": low,
                "kid_high": high,
                "kid_floor": result.floor[kid],
                "images_per_second": run.summary["images_per_second"],
                "model_rows": run.summary["model_rows"],
                "run": run.name,
            }
        )
    return pd.DataFrame(rows)


def load_score(run: Run) -> EvalResult:
    """The numbers of a setting's run, with their protocol."""
    return EvalResult.load(run.folder / "score.json")
