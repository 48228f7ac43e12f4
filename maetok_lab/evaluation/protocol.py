"""How a number was made, stored beside it; numbers that were made in different ways never share a table."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maetok_lab.config import from_json, to_json
from maetok_lab.device import Precision
from maetok_lab.files import finite, read_json, write_json
from maetok_lab.hints import did_you_mean

PREVIEW_IMAGES = 10_000  # a generation metric on fewer images is marked a preview


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """Everything that changes an evaluation's numbers. What the evaluation itself knows (counts, sizes, hashes) it
    fills in.

    `crop` and `resize` say how files became images of `image_size`. `labels`: each class equally often, drawn at random,
    or none asked for. `seed` is that of image 0; image k has its own. `ema` is the decay of the weights used, None for the
    raw ones. `reference` names the real images, `*_sha256` and `net_weights` are hashes of their content. Images are
    rounded to uint8 before anything is measured.
    """

    task: Literal["generation", "reconstruction"] = "generation"
    num_images: int | None = None
    image_size: int | None = None
    crop: str | None = None
    resize: str | None = None
    rounding: Literal["uint8"] = "uint8"
    precision: Precision = "fp32"
    labels: Literal["equal", "random", "none"] | None = None
    sampler: str | None = None
    steps: int | None = None
    path: str | None = None
    guidance_scale: float | None = None
    guidance_low: float | None = None
    guidance_high: float | None = None
    seed: int = 0
    ema: float | None = None
    reference: str | None = None
    reference_images: int | None = None
    reference_sha256: str | None = None
    net: str | None = None
    net_version: str | None = None
    net_weights: str | None = None
    net_input_size: int | None = None
    ssim: str | None = None
    perceptual: str | None = None

    def filled(self, **known: Any) -> "EvalProtocol":
        """A copy with fields that turned out. Raises ValueError when one was already stated otherwise."""
        for name, value in known.items():
            stated = getattr(self, name)
            if stated is not None and name != "task" and stated != value:
                raise ValueError(f"the protocol says {name} = {stated!r}, but it is {value!r}")
        return dataclasses.replace(self, **known)

    def describe(self) -> str:
        """One line for under a table or a figure: what was stated, without hashes."""
        words = [f"{self.num_images:,} images" if self.num_images else self.task]
        words += [f"{self.image_size} px"] if self.image_size else []
        words += [f"{self.labels} labels"] if self.labels and self.labels != "none" else []
        words += (
            [self.sampler + (f", {self.steps} steps" if self.steps else "")] if self.sampler else []
        )
        if self.guidance_scale is not None:
            between = (self.guidance_low, self.guidance_high)
            words.append(
                f"guidance {self.guidance_scale:g}"
                + (f" on t in {list(between)}" if None not in between else "")
            )
        words += [f"EMA {self.ema:g}"] if self.ema is not None else []
        words += [f"against {self.reference}"] if self.reference else []
        words += [f"features of {self.net}"] if self.net else []
        return ", ".join([*words, self.precision, f"rounded to {self.rounding}"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Numbers by name, their 95 % intervals, the real/real floor of each where there is one, and the protocol.

    `preview` marks too few images to be quoted.
    """

    metrics: dict[str, float]
    protocol: EvalProtocol
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    floor: dict[str, float] = dataclasses.field(default_factory=dict)
    preview: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the protocol; infinities and NaN become null."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return finite(plain | {"protocol": to_json(self.protocol)})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvalResult":
        """The result that `to_json` wrote; null becomes NaN."""
        number = {key: _numbers(data[key]) for key in ("metrics", "floor")}
        intervals = {name: tuple(pair) for name, pair in data["intervals"].items()}
        protocol = from_json(EvalProtocol, data["protocol"])
        return cls(**number, intervals=intervals, protocol=protocol, preview=data["preview"])

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "EvalResult":
        """Read what `save` wrote."""
        return cls.from_json(read_json(path))

    def table(self) -> pd.DataFrame:
        """One row a metric: value, low, high, floor."""
        rows = []
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            rows.append(
                {
                    "metric": name,
                    "value": value,
                    "low": low,
                    "high": high,
                    "floor": self.floor.get(name),
                }
            )
        columns = ["value", "low", "high", "floor"]
        return (
            pd.DataFrame(rows, columns=["metric", *columns])
            .set_index("metric")
            .astype(dict.fromkeys(columns, float))
        )


def compare(
    results: Mapping[str, EvalResult] | Iterable[EvalResult], *, allow: str | Iterable[str] = ()
) -> pd.DataFrame:
    """One row a result: the fields in `allow`, `preview`, and every metric with its floor.

    Raises ValueError when protocols differ in any other field, listing the fields and values, and for a field in
    `allow` that protocols do not have.
    """
    named = (
        results
        if isinstance(results, Mapping)
        else {str(i): result for i, result in enumerate(results)}
    )
    if not named:
        raise ValueError("no results to compare")
    allow = [allow] if isinstance(allow, str) else list(allow)
    fields = [field.name for field in dataclasses.fields(EvalProtocol)]
    for name in allow:
        if name not in fields:
            raise ValueError(f"a protocol has no field {name!r}{did_you_mean(name, fields)}")
    differing = [name for name in fields if name not in allow and len(_values(named, name)) > 1]
    if differing:
        lines = [
            f"  {name}: " + ", ".join(f"{v!r} ({who})" for v, who in _values(named, name))
            for name in differing
        ]
        raise ValueError(
            "results made under different protocols cannot be compared; they differ in\n"
            + "\n".join(lines)
        )
    rows = []
    for name, result in named.items():
        known = {field: getattr(result.protocol, field) for field in allow}
        floors = {f"{metric}_floor": value for metric, value in result.floor.items()}
        rows.append(
            {"result": name, **known, "preview": result.preview, **result.metrics, **floors}
        )
    return pd.DataFrame(rows).set_index("result")


def _values(named: Mapping[str, EvalResult], field: str) -> list[tuple[Any, str]]:
    """The different values of a field, each with the results that have it."""
    found: dict[Any, list[str]] = {}
    for name, result in named.items():
        found.setdefault(getattr(result.protocol, field), []).append(name)
    return [(value, ", ".join(names)) for value, names in found.items()]


def _numbers(data: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else value for name, value in data.items()}
