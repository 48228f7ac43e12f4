"""How many modes do latents have? Mixture NLL against the number of components (the paper's figure 2a).

As in the paper (App. B.3): flatten, PCA, standardise, Gaussian mixture. Three departures: the mixture is fitted by
expectation maximisation (the authors' script has weights that are never normalised, so its numbers are no likelihoods),
PCA and scales come from the training rows alone, and the held-out NLL stands beside the training one.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maetok_lab.analysis.fitting import fit_gmm, split_heaviest
from maetok_lab.analysis.mixture import Covariance, Mixture
from maetok_lab.analysis.preprocess import (
    as_rows,
    check_latents,
    common_dimensions,
    data_hash,
    device_of,
    fit_reducer,
    row_hashes,
    width_of,
)
from maetok_lab.config import to_json
from maetok_lab.files import atomic_path, read_json, write_json
from maetok_lab.identity import fingerprint
from maetok_lab.rng import generator

__all__ = ["GmmProtocol", "Mixture", "common_dimensions", "fit_gmm", "gmm_curve"]

COLUMNS = [
    *("components", "dimensions", "train_nll", "heldout_nll", "heldout_nll_per_dim", "bic"),
    *("max_mean_norm", "min_mean_distance", "converged"),
]
FIT_FIELDS = [
    *(
        "covariance",
        "restarts",
        "max_iterations",
        "tolerance",
        "covariance_floor",
        "screen_iterations",
        "start_rows",
    ),
    *("precision", "seed"),
]
MEMORY = 2 << 30  # bytes of scores that are kept in memory; more of them go to a memory-mapped file


@dataclasses.dataclass(frozen=True, kw_only=True)
class GmmProtocol:
    """How a curve was made; two curves are comparable only if their protocols and dimensions are equal.

    `dimensions` None means: the fewest that explain `variance`. `tolerance` is in nats per image, `covariance_floor` in
    standardised units squared; `heldout` is the share of rows held out, or 0 where held-out latents were given.
    """

    dimensions: int | None = None
    variance: float = 0.9
    covariance: Covariance = "diag"
    restarts: int = 10
    warm_start: bool = False
    max_iterations: int = 200
    tolerance: float = 1e-3
    covariance_floor: float = 1e-3
    screen_iterations: int = 20
    start_rows: int = 20_000
    heldout: float = 0.2
    precision: Literal["float64", "float32"] = "float64"
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance must be in (0, 1], not {self.variance}")
        if self.dimensions is not None and self.dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, not {self.dimensions}")
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout must be a share in [0, 1), not {self.heldout}")
        if self.restarts < 1 or self.max_iterations < 1:
            raise ValueError(
                f"restarts ({self.restarts}) and max_iterations ({self.max_iterations}) must be at least 1"
            )


def gmm_curve(
    latents: Any,
    components: Sequence[int],
    *,
    dimensions: int | None = None,
    variance: float = 0.9,
    covariance: Covariance = "diag",
    restarts: int | None = None,
    seed: int = 0,
    heldout_latents: Any = None,
    folder: str | Path | None = None,
    on_row: Callable[[dict[str, Any], Mixture], None] | None = None,
    device: torch.device | str | None = None,
    chunk_rows: int | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """NLL in nats per image after PCA and standardisation, for each number of mixture components.

    latents (n, ...), a tensor, array, memory map or LatentDataset -> one row each of `components, dimensions,
    train_nll, heldout_nll, heldout_nll_per_dim, bic` (of the training rows), `max_mean_norm, min_mean_distance` (NaN
    for one component), `converged`; protocol, hash of the data, counts and explained variance are in `.attrs`. Compare
    latents at one number of `dimensions`: `common_dimensions`. `restarts` defaults to 10; above 1e10 rows x components
    x width to 3. `settings` are further fields of `GmmProtocol`. What is finished is kept in `folder` and not fitted
    again; `on_row` gets each row with its mixture. Raises ValueError for NaN, constant, duplicated or too few latents,
    and for more components than training rows.
    """
    latents, components = as_rows(latents), _checked_components(components)
    if restarts is None:
        restarts = (
            10
            if latents.shape[0] * components[-1] * (dimensions or width_of(latents)) <= 1e10
            else 3
        )
    if heldout_latents is not None:
        settings["heldout"] = 0.0
    protocol = GmmProtocol(
        dimensions=dimensions,
        variance=variance,
        covariance=covariance,
        restarts=restarts,
        seed=seed,
        **settings,
    )
    data = _prepare(
        latents, heldout_latents, components[-1], protocol, device_of(latents, device), chunk_rows
    )
    rows, mixture = [], None
    for count in components:
        row, mixture = _finished(folder, data, protocol, count) or _fit_row(
            data, protocol, count, mixture, chunk_rows
        )
        _keep(folder, data, protocol, row, mixture)
        if on_row:
            on_row(row, mixture)
        rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs = {"protocol": to_json(protocol), **data.facts}
    return table


# Data -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Data:
    """Standardised scores (n, d) of training and held-out rows; `scratch` holds the file they may live in."""

    train: Tensor
    heldout: Tensor
    facts: dict[str, Any]
    scratch: tempfile.TemporaryDirectory


def _prepare(
    latents: Any,
    heldout: Any,
    most: int,
    protocol: GmmProtocol,
    device: torch.device,
    chunk_rows: int | None,
) -> _Data:
    hashes = check_latents(latents, chunk_rows=chunk_rows)
    train = torch.ones(len(hashes), dtype=torch.bool)
    shuffled = torch.randperm(len(hashes), generator=generator(protocol.seed, "gmm", "heldout"))
    train[shuffled[: round(protocol.heldout * len(hashes))]] = False
    if most > int(train.sum()):
        raise ValueError(
            f"{most} components for {int(train.sum())} training rows; there can be no more than rows"
        )
    chosen = {"dimensions": protocol.dimensions, "variance": protocol.variance}
    reducer = fit_reducer(latents, train=train, chunk_rows=chunk_rows, device=device, **chosen)
    scratch = tempfile.TemporaryDirectory(prefix="gmm-scores-")
    others, chosen_rows = (latents, ~train) if heldout is None else (heldout, None)
    if heldout is not None:
        hashes = torch.cat([hashes, row_hashes(as_rows(heldout), chunk_rows=chunk_rows)])
    scores = _room(int(train.sum()), reducer.dimensions, protocol, device, scratch)
    reducer.transform(latents, rows=train, chunk_rows=chunk_rows, out=scores)
    held = reducer.transform(others, rows=chosen_rows, chunk_rows=chunk_rows).to(scores.dtype)
    facts = {
        "data": data_hash(hashes),
        "rows": len(scores),
        "heldout_rows": len(held),
        "explained": reducer.explained,
    }
    return _Data(scores, held, facts, scratch)


def _room(
    rows: int,
    width: int,
    protocol: GmmProtocol,
    device: torch.device,
    scratch: tempfile.TemporaryDirectory,
) -> Tensor:
    """An empty (rows, width) tensor: on the GPU where half its free memory will do, else in memory or on disk."""
    dtype = getattr(torch, protocol.precision)
    size = rows * width * dtype.itemsize
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
        return torch.empty(rows, width, dtype=dtype, device=device)
    if size <= MEMORY:
        return torch.empty(rows, width, dtype=dtype)
    path = Path(scratch.name) / "scores"
    return torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)


def _checked_components(components: Sequence[int]) -> list[int]:
    wanted = sorted({int(count) for count in components})
    if not wanted or wanted[0] < 1:
        raise ValueError(f"components must be one or more numbers >= 1, not {list(components)}")
    return wanted


# One row --------------------------------------------------------------------------------------------------------------


def _fit_row(
    data: _Data,
    protocol: GmmProtocol,
    components: int,
    before: Mixture | None,
    chunk_rows: int | None,
) -> tuple[dict[str, Any], Mixture]:
    mixture = fit_gmm(
        data.train,
        components,
        start=split_heaviest(before, components) if protocol.warm_start and before else None,
        device=data.heldout.device,
        chunk_rows=chunk_rows or 0,
        **{name: getattr(protocol, name) for name in FIT_FIELDS},
    )
    count, width = data.train.shape
    heldout = -float(mixture.log_prob(data.heldout).mean()) if len(data.heldout) else math.nan
    row = {
        "components": components,
        "dimensions": width,
        "train_nll": mixture.train_nll,
        "heldout_nll": heldout,
        "heldout_nll_per_dim": heldout / width,
        "bic": 2 * count * mixture.train_nll + mixture.num_parameters * math.log(count),
        "max_mean_norm": float(mixture.means.norm(dim=1).max()),
        "min_mean_distance": float(torch.pdist(mixture.means).min())
        if components > 1
        else math.nan,
        "converged": mixture.converged,
    }
    return row, mixture


def _path(folder: str | Path, data: _Data, protocol: GmmProtocol, components: int) -> Path:
    return Path(folder) / f"gmm-{fingerprint(protocol)}-{data.facts['data']}-{components}.json"


def _keep(
    folder: str | Path | None,
    data: _Data,
    protocol: GmmProtocol,
    row: dict[str, Any],
    mixture: Mixture,
) -> None:
    if folder is None or (path := _path(folder, data, protocol, row["components"])).exists():
        return
    tensors = {
        name: getattr(mixture, name).cpu().contiguous()
        for name in ("weights", "means", "covariances")
    }
    with atomic_path(path.with_suffix(".safetensors")) as temporary:
        save_file(tensors, temporary)
    write_json(path, {"row": row, "iterations": mixture.iterations, "protocol": to_json(protocol)})


def _finished(
    folder: str | Path | None, data: _Data, protocol: GmmProtocol, components: int
) -> tuple[dict[str, Any], Mixture] | None:
    """The row and mixture that an earlier call left in the folder, or None."""
    if folder is None or not (path := _path(folder, data, protocol, components)).exists():
        return None
    record = read_json(path)
    row = {name: math.nan if value is None else value for name, value in record["row"].items()}
    facts = {
        "train_nll": row["train_nll"],
        "iterations": record["iterations"],
        "converged": row["converged"],
    }
    return row, Mixture(**load_file(path.with_suffix(".safetensors")), **facts).to(
        data.heldout.device
    )
