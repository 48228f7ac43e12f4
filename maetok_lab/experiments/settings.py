"""Ways to draw images with one trained model, each sampled, timed and scored into a run of its own, once.

runs/setting-NAME-HASH/  config.json score.json samples/step-0000000.png summary.json
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.cost import sampling_cost
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.evaluation.features import Reference, about_net, metric_name
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.sample_sets import sample_set, sampling_options
from maetok_lab.generation.images import generate
from maetok_lab.identity import fingerprint
from maetok_lab.pictures import image_grid, save_png
from maetok_lab.protocols import AnyTokenizer, Net
from maetok_lab.runs import Run

SHOWN_IMAGES = 32  # on the picture of a setting
WARM_UP_IMAGES = 8  # drawn in one step before the clock starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How images are drawn: guidance `scale` while low <= t <= high, steps of a sampler, and the model's EMA rate."""

    scale: float
    low: float
    high: float
    steps: int
    sampler: str
    ema: float | None

    def protocol(self, base: EvalProtocol) -> EvalProtocol:
        """`base` with this setting. At scale 1 there is no guidance, so the interval, which changes nothing, is left out."""
        between = {"guidance_low": self.low, "guidance_high": self.high} if self.scale != 1 else {}
        guided = {"guidance_scale": self.scale, **between}
        return dataclasses.replace(
            base, sampler=self.sampler, steps=self.steps, ema=self.ema, **guided
        )

    def describe(self) -> str:
        """A few words, for a title or a line of progress."""
        between = f" on {self.low:g} to {self.high:g}" if self.scale != 1 else ""
        average = f", EMA {self.ema:g}" if self.ema is not None else ""
        return f"scale {self.scale:g}{between}, {self.sampler} {self.steps}{average}"


def setting_grid(
    *,
    scales: Sequence[float],
    intervals: Sequence[Sequence[float]],
    steps: Sequence[int],
    samplers: Sequence[str],
    ema_rates: Sequence[float | None],
) -> list[Setting]:
    """Every combination, the EMA rate slowest and the scale fastest. Raises ValueError where there is nothing to choose from."""
    axes = {
        "ema_rates": ema_rates,
        "samplers": samplers,
        "steps": steps,
        "intervals": intervals,
        "scales": scales,
    }
    empty = [name for name, values in axes.items() if not len(values)]
    odd = [list(interval) for interval in intervals if len(interval) != 2]
    if empty or odd:
        raise ValueError(
            f"no values for {empty}" if empty else f"an interval is [low, high], not {odd[0]}"
        )
    return [
        Setting(
            scale=float(scale),
            low=float(low),
            high=float(high),
            steps=count,
            sampler=sampler,
            ema=ema,
        )
        for ema, sampler, count, (low, high), scale in itertools.product(*axes.values())
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """What all settings of a comparison share: the models (by EMA rate), a label an image, the real images and their net.

    `real` is what samples are compared with, `second` other real images, whose distance to `real` is the floor.
    """

    name: str
    models: Mapping[float | None, DiffusionTransformer]
    tokenizer: AnyTokenizer
    space: LatentSpace
    labels: torch.Tensor
    real: Reference
    second: Reference
    net: Net
    protocol: EvalProtocol
    root: str | Path | None = None
    parents: Sequence[Run] = ()

    def score(self, setting: Setting) -> Run:
        """The finished run of a setting; sampled and scored now unless it is there already."""
        model = self.models[setting.ema]
        known = {
            "reference": self.real.name,
            "reference_sha256": self.real.sha256,
            **about_net(self.net),
        }
        protocol = setting.protocol(self.protocol).filled(num_images=len(self.labels), **known)
        config = sample_set(protocol, model, self.tokenizer, self.labels)
        run = Run.open(
            f"setting-{self.name}-{fingerprint(config)[:8]}",
            config,
            root=self.root,
            parents=self.parents,
        )
        if run.finished:
            run.close()
            return run
        try:
            self._score(protocol, model, run)
        except BaseException:
            run.close()
            raise
        return run

    def _score(self, protocol: EvalProtocol, model: DiffusionTransformer, run: Run) -> None:
        options = sampling_options(protocol)
        given = (model, self.tokenizer, self.space)
        generate(*given, self.labels[:WARM_UP_IMAGES], **options | {"num_steps": 1})
        started = time.perf_counter()
        images = generate(*given, self.labels, **options)
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
        shown = image_grid(images[:SHOWN_IMAGES], columns=8)
        save_png(run.sample_path(0), shown, scale=max(1, 64 // images.shape[-1]))
        cost = sampling_cost(model, len(self.labels), **options)
        speed = {"images_per_second": len(self.labels) / seconds, "seconds": seconds}
        run.finish({**result.metrics, **speed, "model_rows": cost.rows, "gflop": cost.gflop})


def settings_table(scored: Mapping[Setting, Run], net: Net) -> pd.DataFrame:
    """One row a setting: its fields, the kernel distance (under the name that carries the net) with `kid_low`, `kid_high`
    (95 %) and `kid_floor`, images_per_second, model_rows (an image; None for dopri5), and the run.
    """
    kid, rows = metric_name("kid", net), []
    for setting, run in scored.items():
        result = load_score(run)
        low, high = result.intervals[kid]
        interval = {"interval": f"{setting.low:g} to {setting.high:g}"}
        numbers = {
            kid: result.metrics[kid],
            "kid_low": low,
            "kid_high": high,
            "kid_floor": result.floor[kid],
        }
        told: dict[str, Any] = {
            name: run.summary[name] for name in ("images_per_second", "model_rows")
        }
        rows.append({**dataclasses.asdict(setting), **interval, **numbers, **told, "run": run.name})
    return pd.DataFrame(rows)


def load_score(run: Run) -> EvalResult:
    """The numbers of a setting's run, with their protocol."""
    return EvalResult.load(run.folder / "score.json")
