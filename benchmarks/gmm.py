"""Gaussian mixtures against scikit-learn, and what ImageNet would take.

    python benchmarks/gmm.py [--rows 20000 --width 256 --components 50 --iterations 10
                              --repeats 7 --threads 1 2 --device cpu --clock wall]

Same rows, same start, same number of iterations, in one process.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable

import torch
from timing import peak_gigabytes

from maetok_lab.analysis.fitting import GmmProtocol, fit_gmm
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.device import describe, pick_device
from maetok_lab.rng import generator

# Images, dimensions after PCA, components: the paper's longest fit, and its hours on one GPU.
IMAGENET = (1_281_167, 1024, 200)
PAPER_HOURS = 11
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
AGREEMENT = 1e-4  # relative, in log-likelihood: a faster wrong answer is no answer
FLOOR = 1e-6  # added to variances by both
PRECISIONS = ("float64", "float32")


def main(words: list[str] | None = None) -> None:
    """Print one line of JSON a thread count: seconds of both, their ratio, and the projection."""
    options = arguments(words)
    device = pick_device(options.device)
    points = modes(options.rows, options.width, options.components)
    start = first_rows(points, options.components)
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(json.dumps(compare(points, start, options, threads, device)))


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--components", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    clock = "cpu: time of this process, for a busy machine; of one thread, on a CPU"
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help=clock)
    return parser.parse_args(words)


def modes(rows: int, width: int, components: int) -> torch.Tensor:
    """Rows around overlapping centres, float64 (rows, width)."""
    random = generator(0, "benchmark-gmm")
    centres = torch.randn(components, width, generator=random, dtype=torch.float64)
    spread = torch.randn(rows, width, generator=random, dtype=torch.float64)
    return centres[torch.arange(rows) % components] + spread


def first_rows(points: torch.Tensor, components: int) -> Mixture:
    """The start of both: the first rows as means, unit variances, equal weights."""
    weights = torch.full((components,), 1 / components, dtype=points.dtype)
    means = points[:components].clone()
    return Mixture(weights, means, torch.ones_like(means))


def compare(
    points: torch.Tensor,
    start: Mixture,
    options: argparse.Namespace,
    threads: int,
    device: torch.device,
) -> dict[str, object]:
    """Seconds of scikit-learn and of ours at both precisions, and ratios; the least of each."""
    clock = CLOCKS[options.clock]
    iterations = options.iterations
    there = points.to(device)
    begin = start.to(device)
    fits: dict[str, Callable[[], tuple[float, float]]] = {
        "sklearn": lambda: sklearn_fit(points, start, iterations, threads, clock),
        "float64": lambda: our_fit(there, begin, iterations, "float64", clock),
        "float32": lambda: our_fit(there, begin, iterations, "float32", clock),
    }

    # Alternating, so that all meet the same machine; the least, as other work only adds.
    least = dict.fromkeys(fits, float("inf"))
    likelihood = {}
    for repeat in range(options.repeats + 1):
        for name, fit in fits.items():
            seconds, likelihood[name] = fit()
            if repeat > 0:  # the first round warms up
                least[name] = min(least[name], seconds)
    for name in PRECISIONS:
        if abs(likelihood[name] / likelihood["sklearn"] - 1) > AGREEMENT:
            raise SystemExit(f"log-likelihoods differ: {likelihood}")

    rows, width = points.shape
    work = rows * width * len(start.weights) * iterations
    line: dict[str, object] = {
        "device": describe(device, "fp32"),
        "clock": options.clock,
        "threads": threads,
        "rows": rows,
        "width": width,
        "components": len(start.weights),
        "iterations": iterations,
    }
    for name, seconds in least.items():
        line[f"seconds_{name}"] = round(seconds, 3)
    for name in PRECISIONS:
        line[f"times_sklearn_{name}"] = round(least["sklearn"] / least[name], 2)
    for name in PRECISIONS:
        hours = projected_hours(least[name], work)
        line[f"projected_hours_imagenet_{name}"] = round(hours, 2)
    line["paper_hours_imagenet"] = PAPER_HOURS
    line["peak_gb"] = round(peak_gigabytes(device), 2)
    return line


def projected_hours(seconds: float, work: int) -> float:
    """Hours for all of ImageNet at 200 iterations, the most that are allowed.

    `work` is rows x dimensions x components x iterations of what took `seconds`. An iteration is
    two matrix products of that size; rows are read once for all restarts.
    """
    rows, width, components = IMAGENET
    iterations = GmmProtocol().max_iterations
    return seconds / work * rows * width * components * iterations / 3600


def our_fit(
    points: torch.Tensor, start: Mixture, iterations: int, precision: str, clock: Clock
) -> tuple[float, float]:
    """Seconds, and the mean log-likelihood after `iterations`."""
    protocol = GmmProtocol(
        max_iterations=iterations, tolerance=0, covariance_floor=FLOOR, precision=precision
    )
    begin = clock()
    mixture = fit_gmm(points, len(start.weights), protocol, start=start)
    return clock() - begin, -mixture.train_nll


def sklearn_fit(
    points: torch.Tensor, start: Mixture, iterations: int, threads: int, clock: Clock
) -> tuple[float, float]:
    """The same by scikit-learn, its BLAS held to the same number of threads."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    mixture = GaussianMixture(
        len(start.weights),
        covariance_type="diag",
        tol=0,
        max_iter=iterations,
        reg_covar=FLOOR,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=start.covariances.numpy(),  # all are one
    )
    with threadpool_limits(threads), warnings.catch_warnings():
        # the number of iterations is fixed on purpose
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = clock()
        mixture.fit(points.numpy())
        seconds = clock() - begin
        # not timed: ours comes with the fit
        return seconds, float(mixture.score(points.numpy()))


if __name__ == "__main__":
    main()
