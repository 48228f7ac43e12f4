"""How a number was made, stored beside it: numbers made in different ways never share a table."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maetok_lab.config import from_json, younger
from maetok_lab.device import Precision
from maetok_lab.evaluation.metrics import Z95, Estimate
from maetok_lab.files import finite, read_json, write_json
from maetok_lab.hints import did_you_mean
from maetok_lab.pictures import Rounding

DISTANCES = ("kid", "fd", "fid", "sfd", "sfid", "mind")  # first words of names that have a ratio
PREVIEW_IMAGES = 10_000  # a generation metric on fewer images is marked a preview


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """Everything that changes an evaluation's numbers; None where it is open or does not apply.

    What the evaluation itself finds out (counts, sizes, hashes) it fills in.
    """

    task: Literal["generation", "reconstruction"] = "generation"  # what is judged
    num_images: int | None = None  # samples, or images that were reconstructed

    # From files to pixels
    image_size: int | None = None  # pixels a side
    crop: str | None = None  # how files became square
    resize: str | None = None  # the filter that brought them to `image_size`
    # of all pixels before anything is measured, to the nearest byte; "truncated" takes those that
    # models draw to the byte below, as ADM's scripts do
    rounding: Rounding = "uint8"
    precision: Precision = "fp32"  # in which the models run

    # How samples are drawn
    labels: Literal["equal", "random", "none"] | None = None  # classes in turn, drawn, or null
    sampler: str | None = None  # the integrator
    steps: int | None = None  # of the sampler
    path: str | None = None  # from noise to latents, as the model was trained
    # of the steps, towards noise; 1 is none, None that of the model's training
    time_shift: float | None = younger(None)
    guidance_scale: float | None = None  # None and 1 mean no guidance
    guidance_low: float | None = None  # guided while low <= t <= high; t = 1 is noise
    guidance_high: float | None = None  # the other end of the interval
    # Hash (`identity.tensors_fingerprint`) of the weights that guide; None: the null class does.
    weak_model: str | None = younger(None)
    seed: int = 0  # of image 0; image k has its own
    ema: float | None = None  # decay of the weights used, None for the raw ones

    # The real images
    reference: str | None = None  # their name
    reference_images: int | None = None  # their number
    reference_sha256: str | None = None  # of their content
    floor: str | None = younger(None)  # the real images in the samples' place, for the floor

    # What measures
    net: str | None = None  # feature network of the distances
    net_version: str | None = None  # the package that builds it, with its version
    net_weights: str | None = None  # hash of its weights
    net_input_size: int | None = None  # pixels a side to which it resizes images
    ssim: str | None = None  # window and data range
    perceptual: str | None = None  # name of the perceptual distance

    def filled(self, **facts: Any) -> "EvalProtocol":
        """A copy with what the evaluation found out; ValueError if the protocol says otherwise."""
        for name, value in facts.items():
            stated = getattr(self, name)
            # the task has a default, so that nobody need have stated it
            if stated is not None and name != "task" and stated != value:
                raise ValueError(f"the protocol says {name} = {stated!r}, but it is {value!r}")
        return dataclasses.replace(self, **facts)

    def describe(self) -> str:
        """One line for under a table or a figure: what was stated, without hashes."""
        words = [f"{self.num_images:,} images" if self.num_images else self.task]
        if self.image_size:
            words.append(f"{self.image_size} px")

        # how samples were drawn
        if self.labels not in (None, "none"):
            words.append(f"{self.labels} labels")
        if self.sampler:
            words.append(self.sampler)
            if self.steps:
                words.append(f"{self.steps} steps")
            if self.time_shift is not None:
                words.append(f"time shift {self.time_shift:g}")
        if self.guidance_scale is not None:
            interval = ""
            if None not in (self.guidance_low, self.guidance_high):
                interval = f" on t in [{self.guidance_low}, {self.guidance_high}]"
            by = "" if self.weak_model is None else f" by weights {self.weak_model}"
            words.append(f"guidance {self.guidance_scale:g}{interval}{by}")
        if self.ema is not None:
            words.append(f"EMA {self.ema:g}")

        # what they were compared with, and by which network
        if self.reference:
            words.append(f"against {self.reference}")
            if self.floor:
                words.append(f"floor: {self.floor}")
        if self.net:
            words.append(f"features of {self.net}")
        rounding = "truncated to uint8" if self.rounding == "truncated" else "rounded to uint8"
        return ", ".join([*words, self.precision, rounding])


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Numbers with the protocol that they were made under; JSON on disk."""

    metrics: dict[str, float]  # by name
    protocol: EvalProtocol  # how they were made
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # of 95 %
    floor: dict[str, float] = dataclasses.field(default_factory=dict)  # real images against real
    preview: bool = False  # of too few images to be quoted

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the protocol; infinities and NaN become null."""
        return finite(dataclasses.asdict(self))

    @classmethod
    def from_estimates(cls, estimates: Mapping[str, Estimate], **fields: Any) -> "EvalResult":
        """The result with these metrics, and the intervals of those that have one."""
        metrics = {}
        intervals = {}
        for name, estimate in estimates.items():
            metrics[name] = estimate.value
            if estimate.interval is not None:
                intervals[name] = estimate.interval
        return cls(metrics=metrics, intervals=intervals, **fields)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvalResult":
        """The result that `to_json` wrote; null becomes NaN."""
        return cls(
            metrics=_numbers(data["metrics"]),
            protocol=from_json(EvalProtocol, data["protocol"]),
            intervals={name: tuple(pair) for name, pair in data["intervals"].items()},
            floor=_numbers(data["floor"]),
            preview=data["preview"],
        )

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "EvalResult":
        """Read what `save` wrote."""
        return cls.from_json(read_json(path))

    def standard_error(self, name: str) -> float:
        """That of a normal metric with this interval, NaN where it has none."""
        low, high = self.intervals.get(name, (math.nan, math.nan))
        return (high - low) / (2 * Z95)

    def over_floor(self, metric: str) -> float:
        """A distance in units of its floor, which makes those of different nets comparable.

        FDr of FD-loss (arXiv 2604.28190) divides by FD(validation, training images); this by what
        the protocol's `floor` is of. NaN for what is no distance and without a floor above 0: of
        unbiased KID, above the value's margin of error.
        """
        floor = self.floor.get(metric, math.nan)
        least = 0.0
        if metric.startswith("kid") and metric in self.intervals:
            low, high = self.intervals[metric]
            least = (high - low) / 2
        defined = _is_distance(metric) and floor > least
        return self.metrics[metric] / floor if defined else math.nan

    def table(self) -> pd.DataFrame:
        """One row a metric: value, low, high, floor, over_floor."""
        rows = {}
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            rows[name] = [value, low, high, self.floor.get(name), self.over_floor(name)]
        columns = ["value", "low", "high", "floor", "over_floor"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return table.astype(float).rename_axis("metric")


def compare(
    results: Mapping[str, EvalResult] | Iterable[EvalResult], *, allow: str | Iterable[str] = ()
) -> pd.DataFrame:
    """One row a result: the fields in `allow`, `preview`, every metric, its floor and ratio to it.

    Raises ValueError when protocols differ in any other field, listing the fields and values, and
    for a field in `allow` that protocols do not have.
    """
    if not isinstance(results, Mapping):
        results = {str(i): result for i, result in enumerate(results)}
    if not results:
        raise ValueError("no results to compare")
    allow = [allow] if isinstance(allow, str) else list(allow)
    fields = [field.name for field in dataclasses.fields(EvalProtocol)]
    for field in allow:
        if field not in fields:
            raise ValueError(f"a protocol has no field {field!r}{did_you_mean(field, fields)}")

    # one line for each field that differs and may not
    lines = []
    for field in fields:
        names: dict[Any, list[str]] = {}  # of results, by their value of the field
        for name, result in results.items():
            names.setdefault(getattr(result.protocol, field), []).append(name)
        if field not in allow and len(names) > 1:
            values = [f"{value!r} ({', '.join(group)})" for value, group in names.items()]
            lines.append(f"\n  {field}: {', '.join(values)}")
    if lines:
        raise ValueError(
            "results made under different protocols cannot be compared; they differ in"
            + "".join(lines)
        )

    # floors and ratios stand after their metrics, by names of their own
    rows = []
    for name, result in results.items():
        row = {"result": name}
        row |= {field: getattr(result.protocol, field) for field in allow}
        row["preview"] = result.preview
        row |= result.metrics
        for metric, floor in result.floor.items():
            row[f"{metric}_floor"] = floor
            if _is_distance(metric):
                row[f"{metric}_over_floor"] = result.over_floor(metric)
        rows.append(row)
    return pd.DataFrame(rows).set_index("result")


def _is_distance(metric: str) -> bool:
    return metric.partition("_")[0] in DISTANCES


def _numbers(data: Mapping[str, float | None]) -> dict[str, float]:
    """JSON's null as NaN."""
    return {name: float("nan") if value is None else value for name, value in data.items()}
