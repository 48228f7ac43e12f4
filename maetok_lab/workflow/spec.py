"""What a sweep runs: a notebook with many sets of parameters, from Python or a small TOML file.

notebook = "notebooks/07_generation_sweep.ipynb"   # beside the file, or in the working directory
quality = "best_kid"                               # a number it reports; smaller is better
speed = "images_per_second"

[fixed]
preset = "tiny"

[grid]                                             # or [[list]] tables, one an entry
seed = [0, 1]
"""

import dataclasses
import itertools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maetok_lab.config import DEEPEST, override
from maetok_lab.runs import checked_name
from maetok_lab.workflow.parameters import nearest_file

MAX_ENTRIES = 10_000  # of a sweep: each is a notebook, a folder and a row
MAX_BYTES = 4_000_000  # of its file; 10,000 entries of ten parameters have less
# a.b.c of fifty parts: Python takes the square of their number in time
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
DEEP_KEY = re.compile(rf"(?<![\w-])(?:{_PART}[ \t]*\.[ \t]*){{{DEEPEST}}}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What each job asks Slurm for."""

    partition: str | None = None  # None is the cluster's default
    gpus: int = 0  # of a job
    cpus: int = 4  # of a job
    memory_gb: int | None = None  # None is the cluster's default
    minutes: int = 240  # then the job is queued again, and its runs go on where they were
    at_once: int | None = None  # width of the array; None is as many as the cluster gives
    # Slurm can forget a job without a word (cancelled, without accounting): one that left the queue
    # this long ago without a result is given up.
    patience_minutes: float = 2.0
    setup: tuple[str, ...] = ()  # shell lines before each job

    def __post_init__(self):
        if self.minutes < 10:
            raise ValueError(
                f"minutes must be 10 or more, not {self.minutes}: "
                "Slurm would tell a shorter job to stop at once"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep: `notebook` with `fixed` parameters and each of `entries`."""

    name: str  # of its folder under runs/sweeps
    notebook: str  # its path
    entries: tuple[dict[str, Any], ...]  # the parameters of each entry
    # parameters that all entries share
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    quality: str | None = None  # a number that the notebook reports: what is best
    larger_is_better: bool = False  # of the quality
    speed: str | None = None  # another one, for the picture of quality against speed
    workers: int | None = None  # entries at a time; None is one a GPU, or one on a CPU
    retries: int = 0  # of a failed entry
    slurm: SlurmConfig = SlurmConfig()  # where entries are jobs of a cluster

    def __post_init__(self):
        checked_name(self.name)
        if not self.entries:
            raise ValueError(f"sweep {self.name} has no entries")
        _check_count(len(self.entries))
        both = set(self.fixed) & set(self.swept)
        if both:
            raise ValueError(f"{sorted(both)} are fixed and swept at the same time")
        if (self.workers is not None and self.workers < 1) or self.retries < 0:
            raise ValueError(
                f"need workers >= 1 and retries >= 0, not {self.workers} and {self.retries}"
            )

    @property
    def swept(self) -> list[str]:
        """Names of the parameters that differ between entries, in their order."""
        return list(dict.fromkeys(itertools.chain.from_iterable(self.entries)))


def grid(parameters: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last parameter fastest: {"a": [1, 2], "b": [3, 4]} -> 4 entries."""
    for name, values in parameters.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"grid needs a list of values for {name!r}, not {values!r}")
    # before they are made: three lists of a thousand are a billion entries
    _check_count(math.prod(map(len, parameters.values())))
    return [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]


def _check_count(count: int) -> None:
    if count > MAX_ENTRIES:
        raise ValueError(
            f"a sweep has at most {MAX_ENTRIES:,} entries, not {count:,}: take fewer values"
        )


def read_spec(path: str | Path, changes: Mapping[str, Any] | None = None) -> SweepSpec:
    """The sweep that a TOML file describes, named after it; `changes` go over its [fixed].

    Raises ValueError, with the nearest name, for a key that a sweep does not have, and for a file
    that no sweep needs: over `MAX_BYTES`, or nested too deeply.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep {path}{nearest_file(path)}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: a sweep has at most {MAX_BYTES:,} bytes, not {size:,}")
    try:
        text = path.read_text(encoding="utf-8")
        if DEEP_KEY.search(text):
            raise RecursionError
        data = tomllib.loads(text)
        return _spec(data | {"fixed": {**data.get("fixed", {}), **(changes or {})}}, path)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except (ValueError, TypeError) as problem:  # also what is not valid TOML
        raise ValueError(f"{path}: {problem}") from None


def _spec(data: dict[str, Any], path: Path) -> SweepSpec:
    # Exactly one of the two says what the entries are.
    if ("grid" in data) == ("list" in data):
        raise ValueError("a sweep needs one of [grid] and [[list]]")
    entries = data.pop("list") if "list" in data else grid(data.pop("grid"))
    if "notebook" not in data:
        raise ValueError("a sweep needs a notebook")
    beside = path.parent / data["notebook"]
    if beside.exists():
        data["notebook"] = str(beside)

    # [slurm] gpus = 1 is the field slurm.gpus of a config, which checks names and types.
    for name, value in data.pop("slurm", {}).items():
        data[f"slurm.{name}"] = value
    smallest = SweepSpec(name=path.stem, notebook="", entries=({},))
    return override(smallest, {**data, "entries": entries})
