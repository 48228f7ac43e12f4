"""How many modes do latents have? Mixture NLL by number of components (the paper's figure 2a).

As in the paper (App. B.3): flatten, PCA, standardise, Gaussian mixture. Three departures: the
mixture is fitted by expectation maximisation (the authors' script has weights that are never
normalised, so its numbers are no likelihoods), PCA and scales come from the training rows alone,
and the held-out NLL stands beside the training one.
"""

import contextlib
import dataclasses
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.definitions import definition
from maetok_lab.analysis.fitting import GmmProtocol, fit_gmm
from maetok_lab.analysis.mixture import Covariance
from maetok_lab.analysis.preprocess import (
    as_rows,
    check_latents,
    data_hash,
    first_of_copies,
    fit_reducer,
    float64_device,
    row_hashes,
    width_of,
)
from maetok_lab.config import to_json
from maetok_lab.cores import one_thread
from maetok_lab.files import read_json, write_json
from maetok_lab.identity import fingerprint
from maetok_lab.progress import track
from maetok_lab.rng import generator

COLUMNS = [
    *("components", "dimensions", "train_nll", "heldout_nll", "heldout_nll_per_dim", "bic"),
    *("max_mean_norm", "min_mean_distance", "converged"),
]
MEMORY = 2 << 30  # bytes of scores kept in memory; more of them go to a memory-mapped file
# Rows x components x width up to which ten restarts are affordable: ImageNet has 2.6e11, gets 3.
TEN_RESTARTS = 1e10
# and up to which one thread is enough: then a fit is the same bits on any number of cores
ONE_THREAD = 1e9


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
    device: torch.device | str | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Mixture NLL in nats per image after PCA and standardisation: latents (n, ...) -> `COLUMNS`.

    One row for each number of components that there are enough training rows for; copies of a
    latent are left out. `settings` are further fields of `GmmProtocol`; rows finished before are
    read from `folder`. Raises ValueError for NaN and too few latents.
    """
    # Curves compare only at one number of dimensions: `common_dimensions` finds it.
    latents = as_rows(latents)
    counts = sorted({int(count) for count in components})
    if not counts or counts[0] < 1:
        raise ValueError(f"components must be one or more numbers >= 1, not {list(components)}")
    if restarts is None:
        size = latents.shape[0] * counts[-1] * (dimensions or width_of(latents))
        restarts = 10 if size <= TEN_RESTARTS else 3
    if heldout_latents is not None:
        settings["heldout"] = 0.0  # none of the training latents
    protocol = GmmProtocol(
        dimensions=dimensions,
        variance=float(variance),  # 1 and 1.0 are one protocol, and one file name
        covariance=covariance,
        restarts=restarts,
        seed=seed,
        **settings,
    )
    small = latents.shape[0] * width_of(latents) * counts[-1] < ONE_THREAD
    rows = []
    with one_thread() if small else contextlib.nullcontext():
        data = _standardise(latents, heldout_latents, protocol, device)
        for count in track(_possible(counts, len(data.train)), "mixtures"):
            # ImageNet takes hours a row: each is kept as soon as it is finished
            path = None if folder is None else _row_path(Path(folder), data, protocol, count)
            if path is None or not path.exists():
                rows.append(_fit_row(data, protocol, count, path))
            else:
                rows.append(_read_row(path))
    table = pd.DataFrame(rows, columns=COLUMNS)
    stated = definition("gmm_nll", **to_json(protocol))
    table.attrs = {"protocol": to_json(protocol), "definition": stated, **data.facts}
    return table


def _possible(counts: Sequence[int], rows: int) -> list[int]:
    """Those numbers of components that there are enough training rows for."""
    possible = [count for count in counts if count <= rows]
    if not possible:
        raise ValueError(f"{counts[0]} components for {rows} training rows: take fewer components")
    if len(possible) < len(counts):
        warnings.warn(
            f"mixtures of {', '.join(map(str, counts[len(possible) :]))} components are left out:"
            f" there are {rows} training rows",
            stacklevel=3,
        )
    return possible


# Data ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Data:
    """Standardised scores of training and held-out rows."""

    train: Tensor  # (n, d) of the protocol's precision
    heldout: Tensor  # (m, d)
    facts: dict[str, Any]  # hash of the data, numbers of rows, explained variance
    scratch: tempfile.TemporaryDirectory  # holds the file that `train` may live in


def _standardise(
    latents: Any, heldout_latents: Any, protocol: GmmProtocol, device: torch.device | str | None
) -> _Data:
    """Leave out copies, split off held-out rows, fit PCA and scales to the rest, transform both."""
    device = float64_device(latents, device)
    hashes = check_latents(latents)
    is_first = first_of_copies(latents, hashes) == torch.arange(len(hashes))
    distinct = is_first.nonzero()[:, 0]
    copies = len(hashes) - len(distinct)
    if copies:
        warnings.warn(f"{copies} of {len(hashes)} latents are copies and left out", stacklevel=3)
    shuffled = torch.randperm(len(distinct), generator=generator(protocol.seed, "gmm", "heldout"))
    train = is_first.clone()
    train[distinct[shuffled[: round(protocol.heldout * len(distinct))]]] = False
    train_rows = int(train.sum())
    reducer = fit_reducer(
        latents,
        dimensions=protocol.dimensions,
        variance=protocol.variance,
        selection=train,
        device=device,
    )

    # Scores of ImageNet at 1,024 dimensions are 10 GB: they may have to live on disk.
    scratch = tempfile.TemporaryDirectory(prefix="gmm-scores-")
    scores = _empty_scores(train_rows, reducer.dimensions, protocol, device, scratch)
    reducer.transform(latents, selection=train, out=scores)
    if heldout_latents is None:
        heldout = reducer.transform(latents, selection=is_first & ~train)
    else:
        heldout = reducer.transform(heldout_latents)
        hashes = torch.cat([hashes, row_hashes(as_rows(heldout_latents))])
    facts = {
        "data": data_hash(hashes),
        "rows": train_rows,
        "heldout_rows": len(heldout),
        "copies": copies,
        "explained": reducer.explained,
    }
    return _Data(scores, heldout.to(scores.dtype), facts, scratch)


def _empty_scores(
    rows: int,
    width: int,
    protocol: GmmProtocol,
    device: torch.device,
    scratch: tempfile.TemporaryDirectory,
) -> Tensor:
    """(rows, width) on the GPU where half its free memory will do, else in memory or on disk."""
    dtype = getattr(torch, protocol.precision)
    size = rows * width * dtype.itemsize
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
        return torch.empty(rows, width, dtype=dtype, device=device)
    if size <= MEMORY:
        return torch.empty(rows, width, dtype=dtype)
    path = Path(scratch.name) / "scores"
    return torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)


# Rows of the table --------------------------------------------------------------------------------


def _fit_row(
    data: _Data, protocol: GmmProtocol, components: int, path: Path | None
) -> dict[str, Any]:
    """Fit `components` Gaussians, score them, and keep the row at `path`."""
    mixture = fit_gmm(data.train, components, protocol, device=data.heldout.device)
    count, width = data.train.shape
    heldout_nll = math.nan
    if len(data.heldout):
        heldout_nll = -float(mixture.log_prob(data.heldout).mean())
    min_mean_distance = math.nan
    if components > 1:
        min_mean_distance = float(torch.pdist(mixture.means).min())
    row = {
        "components": components,
        "dimensions": width,
        "train_nll": mixture.train_nll,
        "heldout_nll": heldout_nll,
        "heldout_nll_per_dim": heldout_nll / width,
        # Bayesian information criterion: -2 log-likelihood of the training rows + parameters log n
        "bic": 2 * count * mixture.train_nll + mixture.num_parameters * math.log(count),
        "max_mean_norm": float(mixture.means.norm(dim=1).max()),
        "min_mean_distance": min_mean_distance,
        "converged": mixture.converged,
    }
    if path is not None:
        record = {"row": row, "iterations": mixture.iterations, "protocol": to_json(protocol)}
        write_json(path, record)
    return row


def _row_path(folder: Path, data: _Data, protocol: GmmProtocol, components: int) -> Path:
    """Where a row is kept: equal protocol, data and number of components, equal file."""
    # Counts what changes the numbers of one protocol: rows of older fits are not found. 2: every
    # restart has draws of its own, and is fitted to its end.
    identity = {"class": "GmmProtocol", "algorithm": 2, **to_json(protocol)}
    return folder / f"gmm-{fingerprint(identity)}-{data.facts['data']}-{components}.json"


def _read_row(path: Path) -> dict[str, Any]:
    row = read_json(path)["row"]
    for name, value in row.items():
        if value is None:  # JSON has no NaN
            row[name] = math.nan
    return row
