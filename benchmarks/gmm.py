"""Gaussian mixtures against scikit-learn: same rows, same start, same iterations, in one process;
and what ImageNet would take.

python benchmarks/gmm.py [--rows 20000 --width 256 --components 50 --iterations 10 --repeats 7
--threads 1 2
                         --device cpu --clock wall]
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable

import torch
from timing import peak_gigabytes

from maetok_lab.analysis.fitting import fit_gmm
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.device import describe, pick_device
from maetok_lab.rng import generator

IMAGENET = (
    1_281_167,
    1024,
    200,
)  # images, dimensions after PCA, components: the paper's longest fit, 11 h on one GPU
PAPER_HOURS = 11
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
AGREEMENT = 1e-4  # relative, in log-likelihood: a faster wrong answer is no answer


def main(words: list[str] | None = None) -> None:
    """Print one line of JSON a thread count: seconds of both, their ratio, and the projection."""
    options = arguments(words)
    device = pick_device(options.device)
    points = modes(options.rows, options.width, options.components)
    start = first_rows(points, options.components)
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(
            json.dumps(
                compare(
                    points,
                    start,
                    options.iterations,
                    options.repeats,
                    threads,
                    device,
                    options.clock,
                )
            )
        )


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {
        "rows": 20_000,
        "width": 256,
        "components": 50,
        "iterations": 10,
        "repeats": 7,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    words_on_clock = (
        "cpu: time of this process, for a machine that does other work too; of one thread, on a CPU"
    )
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help=words_on_clock)
    return parser.parse_args(words)


def modes(rows: int, width: int, components: int) -> torch.Tensor:
    """Rows around overlapping centres, float64 (rows, width)."""
    random = generator(0, "benchmark-gmm")
    centres = torch.randn(components, width, generator=random, dtype=torch.float64)
    return centres[torch.arange(rows) % components] + torch.randn(
        rows, width, generator=random, dtype=torch.float64
    )


def first_rows(points: torch.Tensor, components: int) -> Mixture:
    """The start of both: the first rows as means, unit variances, equal weights."""
    weights = torch.full((components,), 1 / components, dtype=points.dtype)
    return Mixture(weights, points[:components].clone(), torch.ones_like(points[:components]))


def compare(
    points: torch.Tensor,
    start: Mixture,
    iterations: int,
    repeats: int,
    threads: int,
    device: torch.device,
    clock: str,
) -> dict[str, object]:
    """Seconds of scikit-learn and of ours at float64 and float32, alternating; the least of each,
    as other work only adds.
    """
    there = points.to(device)
    fits: dict[str, Callable[[], tuple[float, float]]] = {
        "sklearn": lambda: sklearn_fit(points, start, iterations, threads, CLOCKS[clock]),
        "float64": lambda: our_fit(there, start.to(device), iterations, "float64", CLOCKS[clock]),
        "float32": lambda: our_fit(there, start.to(device), iterations, "float32", CLOCKS[clock]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    likelihood = {}
    for _ in range(repeats + 1):  # the first round warms up
        for name, fit in fits.items():
            taken, likelihood[name] = fit()
            seconds[name].append(taken)
    least = {name: min(values[1:]) for name, values in seconds.items()}
    for name in ("float64", "float32"):
        if abs(likelihood[name] / likelihood["sklearn"] - 1) > AGREEMENT:
            raise SystemExit(f"log-likelihoods differ: {likelihood}")
    rows, width = points.shape
    work = rows * width * len(start.weights) * iterations
    hours = {name: projected_hours(least[name], work) for name in ("float64", "float32")}
    return {
        "device": describe(device, "fp32"),
        "clock": clock,
        "threads": threads,
        "rows": rows,
        "width": width,
        "components": len(start.weights),
        "iterations": iterations,
        **{f"seconds_{name}": round(value, 3) for name, value in least.items()},
        **{
            f"times_sklearn_{name}": round(least["sklearn"] / least[name], 2)
            for name in ("float64", "float32")
        },
        **{f"projected_hours_imagenet_{name}": round(value, 2) for name, value in hours.items()},
        "paper_hours_imagenet": PAPER_HOURS,
        "peak_gb": round(peak_gigabytes(device), 2),
    }


def projected_hours(seconds: float, work: int, *, iterations: int = 200) -> float:
    """Hours for all of ImageNet at the most iterations that are allowed, from the time a row,
    dimension, component and iteration.

    A fit is two matrix products of that size an iteration; rows are read once for all restarts.
    """
    rows, width, components = IMAGENET
    return seconds / work * rows * width * components * iterations / 3600


def our_fit(
    points: torch.Tensor, start: Mixture, iterations: int, precision: str, clock: Clock
) -> tuple[float, float]:
    """Seconds, and the mean log-likelihood after `iterations`."""
    settings = {
        "max_iterations": iterations,
        "tolerance": 0,
        "covariance_floor": 1e-6,
        "precision": precision,
    }
    begin = clock()
    mixture = fit_gmm(points, len(start.weights), start=start, **settings)
    return clock() - begin, -mixture.train_nll


def sklearn_fit(
    points: torch.Tensor, start: Mixture, iterations: int, threads: int, clock: Clock
) -> tuple[float, float]:
    """The same by scikit-learn, its BLAS held to the same number of threads; scoring is not timed
    (ours comes with the fit).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    theirs = GaussianMixture(
        len(start.weights),
        covariance_type="diag",
        tol=0,
        max_iter=iterations,
        reg_covar=1e-6,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=start.covariances.numpy(),
    )
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # the number of iterations is fixed on purpose
        begin = clock()
        theirs.fit(points.numpy())
        taken = clock() - begin
        return taken, float(theirs.score(points.numpy()))


if __name__ == "__main__":
    main()
