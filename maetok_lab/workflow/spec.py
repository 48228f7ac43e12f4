"""What a sweep runs: a notebook, and the sets of parameters to run it with, from Python or a small TOML file.

notebook = "notebooks/07_generation_sweep.ipynb"   # beside the file, or in the working directory
quality = "best_kid"                               # a number that the notebook reports; smaller is better
speed = "images_per_second"

[fixed]
preset = "tiny"

[grid]                                             # or [[list]] tables, or [random]
seed = [0, 1]
"""

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maetok_lab.hints import did_you_mean
from maetok_lab.rng import generator
from maetok_lab.runs import checked_name

Entries = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halving:
    """Successive halving: every entry with `parameter` at the first of `values`, the best `keep` of them at the next, ..."""

    parameter: str
    values: tuple[Any, ...]
    keep: float = 0.5

    def __post_init__(self):
        if len(self.values) < 2 or not 0 < self.keep < 1:
            raise ValueError(
                f"halving needs two or more values and keep in (0, 1), not {self.values} and {self.keep}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What each job asks Slurm for. `at_once` is the width of the array; None is as many as the cluster gives.

    `patience_minutes` is our own deadline, since Slurm can forget a job without a word (cancelled, without accounting): one
    that left the queue this long ago without a result is given up. `setup` are shell lines before each job.
    """

    partition: str | None = None
    gpus: int = 0
    cpus: int = 4
    memory_gb: int | None = None
    minutes: int = 240
    at_once: int | None = None
    patience_minutes: float = 2.0
    setup: tuple[str, ...] = ()

    def __post_init__(self):
        if self.minutes < 10:
            raise ValueError(
                f"minutes must be 10 or more, not {self.minutes}: Slurm would tell a shorter job to stop at once"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep: `notebook` with `fixed` parameters and each of `entries`.

    `quality` and `speed` are numbers that the notebook reports. `workers` is the number of entries at a time; None is one
    a GPU, or one on a CPU. A failed entry is tried again `retries` times. `separate_runs` gives each entry a runs folder of
    its own, for a notebook whose runs do not carry the swept parameters in their names.
    """

    name: str
    notebook: str
    entries: tuple[dict[str, Any], ...]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    quality: str | None = None
    larger_is_better: bool = False
    speed: str | None = None
    workers: int | None = None
    retries: int = 0
    separate_runs: bool = False
    halving: Halving | None = None
    slurm: SlurmConfig = SlurmConfig()

    def __post_init__(self):
        checked_name(self.name)
        if not self.entries:
            raise ValueError(f"sweep {self.name} has no entries")
        both = set(self.fixed) & set(itertools.chain.from_iterable(self.entries))
        if both:
            raise ValueError(f"{sorted(both)} are fixed and swept at the same time")
        if (self.workers is not None and self.workers < 1) or self.retries < 0:
            raise ValueError(
                f"need workers >= 1 and retries >= 0, not {self.workers} and {self.retries}"
            )
        if self.halving and not self.quality:
            raise ValueError(
                "halving keeps the best, so it needs quality: the reported number to judge by"
            )

    @property
    def swept(self) -> list[str]:
        """Names of the parameters that differ between entries."""
        names = dict.fromkeys(itertools.chain.from_iterable(self.entries))
        return [*names, *([self.halving.parameter] if self.halving else [])]


def grid(parameters: Mapping[str, Sequence[Any]]) -> Entries:
    """Every combination, the last parameter fastest: {"a": [1, 2], "b": [3, 4]} -> 4 entries."""
    for name, values in parameters.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"grid needs a list of values for {name!r}, not {values!r}")
    return [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]


def draw(parameters: Mapping[str, Any], *, count: int, seed: int = 0) -> Entries:
    """`count` random entries. A list is drawn from; {"low": ..., "high": ...} uniformly, with "log" on a log scale, and as
    whole numbers, both ends included, when both are whole. Entry k is the same for any count.
    """
    if count < 1:
        raise ValueError(f"a random draw needs a count of 1 or more, not {count}")
    return [
        {name: _drawn(name, what, seed, k) for name, what in parameters.items()}
        for k in range(count)
    ]


def _drawn(name: str, what: Any, seed: int, index: int) -> Any:
    u = torch.rand((), generator=generator(seed, "sweep", name, index), dtype=torch.float64).item()
    if isinstance(what, Sequence) and not isinstance(what, str) and what:
        return what[int(u * len(what))]
    if (
        not isinstance(what, Mapping)
        or set(what) - {"log"} != {"low", "high"}
        or not what["low"] <= what["high"]
    ):
        raise ValueError(f"draw needs a list of values or {{low, high}} for {name!r}, not {what!r}")
    low, high = what["low"], what["high"]
    if isinstance(low, int) and isinstance(high, int) and not what.get("log"):
        return low + int(u * (high - low + 1))
    if what.get("log"):
        if low <= 0:
            raise ValueError(f"a log scale for {name!r} needs low > 0, not {low}")
        return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    return low + u * (high - low)


def read_spec(path: str | Path, changes: Mapping[str, Any] | None = None) -> SweepSpec:
    """The sweep that a TOML file describes, named after the file; `changes` are put over its [fixed] parameters.

    Raises ValueError, with the nearest name, for a key that a sweep does not have.
    """
    path = Path(path)
    if not path.is_file():
        there = [other.name for other in path.parent.glob("*.toml")]
        raise FileNotFoundError(f"no sweep {path}{did_you_mean(path.name, there) if there else ''}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as problem:
        raise ValueError(f"{path} is not valid TOML: {problem}") from None
    entries = _entries(data, path)
    fields = {field.name for field in dataclasses.fields(SweepSpec)} - {"entries"}
    _check_keys(data, fields, f"{path}")
    if "notebook" not in data:
        raise ValueError(f"{path} names no notebook")
    beside = path.parent / data["notebook"]
    data["notebook"] = str(beside if beside.exists() else data["notebook"])
    data["fixed"] = {**data.get("fixed", {}), **(changes or {})}
    for key, kind in (("halving", Halving), ("slurm", SlurmConfig)):
        if key in data:
            _check_keys(
                data[key], {field.name for field in dataclasses.fields(kind)}, f"{path} [{key}]"
            )
            lists = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in data[key].items()
            }
            data[key] = kind(**lists)
    return SweepSpec(**{"name": path.stem, **data}, entries=tuple(entries))


def _entries(data: dict[str, Any], path: Path) -> Entries:
    """Take the one of `grid`, `list` and `random` that is there out of `data`, and expand it."""
    found = [key for key in ("grid", "list", "random") if key in data]
    if len(found) != 1:
        raise ValueError(
            f"{path} needs one of [grid], [[list]] and [random], not {found or 'none'}"
        )
    content = data.pop(found[0])
    if found[0] == "grid":
        return grid(content)
    if found[0] == "list":
        return [dict(entry) for entry in content]
    _check_keys(content, {"count", "seed", "parameters"}, f"{path} [random]")
    if "parameters" not in content:
        raise ValueError(
            f"{path} [random] needs a table [random.parameters], and has only {sorted(content)}"
        )
    return draw(content["parameters"], count=content.get("count", 0), seed=content.get("seed", 0))


def _check_keys(data: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise ValueError(f"{where} has no key {key!r}{did_you_mean(key, known)}")
