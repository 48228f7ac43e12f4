"""Gaussian mixtures against scikit-learn, and what ImageNet would take.

    python benchmarks/gmm.py [--sections iterations fits
                              --rows 20000 --width 256 --components 50 --iterations 10
                              --repeats 7 --threads 1 2 --device cpu --clock wall]

In one process, on the same rows: `iterations` from the same start, as many of both; `fits` with
ten starts each, of its own, to the same tolerance, of components that overlap and that do not.
"""

import argparse
import functools
import json
import time
import warnings
from collections.abc import Callable, Mapping

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
Fit = Callable[[], tuple[float, float]]  # seconds, log-likelihood
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
AGREEMENT = 1e-4  # relative, in log-likelihood: a faster wrong answer is no answer
FLOOR = 1e-6  # added to variances by both
PRECISIONS = ("float64", "float32")
# Typical distances between the centres of whole fits, in standard deviations of a component.
DISTANCES = {"overlapping": 3.0, "separated": 20.0}
STARTS = ("kmeans", "k-means++")  # scikit-learn's init_params; the first is its default
# Nats per row that a whole fit may be worse than scikit-learn's better one, or `AGREEMENT` of it:
# both end in local optima.
WORSE = 1e-2


def main(words: list[str] | None = None) -> None:
    """Print lines of JSON for each thread count: seconds of both and their ratios."""
    options = arguments(words)
    device = pick_device(options.device)
    for threads in options.threads:
        torch.set_num_threads(threads)
        if "iterations" in options.sections:
            points = modes(options.rows, options.width, options.components)
            start = first_rows(points, options.components)
            print(json.dumps(compare(points, start, options, threads, device)), flush=True)
        if "fits" in options.sections:
            for name in DISTANCES:
                print(json.dumps(compare_fits(name, options, threads, device)), flush=True)


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ("iterations", "fits")
    parser.add_argument("--sections", nargs="+", default=list(sections), choices=sections)
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


def modes(rows: int, width: int, components: int, distance: float | None = None) -> torch.Tensor:
    """Rows around normal centres, or some typically `distance` apart, float64 (rows, width)."""
    random = generator(0, "benchmark-gmm")
    centres = torch.randn(components, width, generator=random, dtype=torch.float64)
    if distance is not None:
        centres *= distance / (2 * width) ** 0.5
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
    components, iterations = len(start.weights), options.iterations
    protocols = {
        precision: GmmProtocol(
            max_iterations=iterations, tolerance=0, covariance_floor=FLOOR, precision=precision
        )
        for precision in PRECISIONS
    }
    settings = {
        "n_components": components,
        "tol": 0,
        "max_iter": iterations,
        "reg_covar": FLOOR,
        "weights_init": start.weights.numpy(),
        "means_init": start.means.numpy(),
        "precisions_init": start.covariances.numpy(),  # all are one
    }
    there = points.to(device)
    begin = start.to(device)
    least, likelihood = in_turns(
        {
            "sklearn": lambda: sklearn_fit(points, settings, threads, clock),
            "float64": lambda: our_fit(there, components, protocols["float64"], clock, begin),
            "float32": lambda: our_fit(there, components, protocols["float32"], clock, begin),
        },
        options.repeats,
    )
    for name in PRECISIONS:
        if abs(likelihood[name] / likelihood["sklearn"] - 1) > AGREEMENT:
            raise SystemExit(f"log-likelihoods differ: {likelihood}")

    rows, width = points.shape
    work = rows * width * len(start.weights) * iterations
    line: dict[str, object] = {**setting(options, threads, device), "iterations": iterations}
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


def compare_fits(
    name: str, options: argparse.Namespace, threads: int, device: torch.device
) -> dict[str, object]:
    """Seconds of whole fits with ten starts, scikit-learn's two kinds and ours, and ratios."""
    clock = CLOCKS[options.clock]
    components = options.components
    points = modes(options.rows, options.width, components, DISTANCES[name])
    protocol = GmmProtocol()
    fits: dict[str, Fit] = {}
    for start in STARTS:
        settings = {
            "n_components": components,
            "n_init": protocol.restarts,
            "tol": protocol.tolerance,
            "max_iter": protocol.max_iterations,
            "reg_covar": protocol.covariance_floor,
            "init_params": start,
            "random_state": protocol.seed,
        }
        fits[start] = functools.partial(sklearn_fit, points, settings, threads, clock)
    there = points.to(device)
    for precision in PRECISIONS:
        protocol = GmmProtocol(precision=precision)
        fits[precision] = functools.partial(our_fit, there, components, protocol, clock)
    least, likelihood = in_turns(fits, options.repeats)
    best = max(likelihood[start] for start in STARTS)
    for precision in PRECISIONS:
        if likelihood[precision] < best - max(WORSE, AGREEMENT * abs(best)):
            raise SystemExit(f"a whole fit is worse than scikit-learn's: {likelihood}")

    line: dict[str, object] = {"components are": name, **setting(options, threads, device)}
    for fit, seconds in least.items():
        line[f"seconds_{fit}"] = round(seconds, 3)
    for start in STARTS:
        for precision in PRECISIONS:
            line[f"times_{start}_{precision}"] = round(least[start] / least[precision], 2)
    for fit, value in likelihood.items():
        line[f"log_likelihood_{fit}"] = round(value, 4)
    return line


def in_turns(fits: Mapping[str, Fit], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """The least seconds of each fit, and its log-likelihood."""
    # Alternating, so that all meet the same machine; the least, as other work only adds.
    least = dict.fromkeys(fits, float("inf"))
    likelihood = {}
    for repeat in range(repeats + 1):
        for name, fit in fits.items():
            seconds, likelihood[name] = fit()
            if repeat > 0:  # the first round warms up
                least[name] = min(least[name], seconds)
    return least, likelihood


def setting(options: argparse.Namespace, threads: int, device: torch.device) -> dict[str, object]:
    """What was measured where."""
    return {
        "device": describe(device, "fp32"),
        "clock": options.clock,
        "threads": threads,
        "rows": options.rows,
        "width": options.width,
        "components": options.components,
    }


def projected_hours(seconds: float, work: int) -> float:
    """Hours for all of ImageNet at 200 iterations, the most that are allowed.

    `work` is rows x dimensions x components x iterations of what took `seconds`. An iteration is
    two matrix products of that size; rows are read once for all restarts.
    """
    rows, width, components = IMAGENET
    iterations = GmmProtocol().max_iterations
    return seconds / work * rows * width * components * iterations / 3600


def our_fit(
    points: torch.Tensor,
    components: int,
    protocol: GmmProtocol,
    clock: Clock,
    start: Mixture | None = None,
) -> tuple[float, float]:
    """Seconds, and the mean log-likelihood in the end."""
    begin = clock()
    mixture = fit_gmm(points, components, protocol, start=start)
    return clock() - begin, -mixture.train_nll


def sklearn_fit(
    points: torch.Tensor, settings: Mapping[str, object], threads: int, clock: Clock
) -> tuple[float, float]:
    """The same by scikit-learn, its BLAS held to the same number of threads."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    mixture = GaussianMixture(covariance_type="diag", **settings)
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
