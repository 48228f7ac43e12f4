"""Frechet and kernel distance, precision and recall, beside torch-fidelity's.

    python benchmarks/metrics.py [--images 3000 --width 2048 --subsets 100 --subset-size 1000
                                  --repeats 5 --threads 1]

From the same features in float32, as networks give them, to the number. torch-fidelity's kernel
distance is a mean over subsets, ours one estimate of all images with bootstrap draws.
"""

import argparse
from collections.abc import Callable

import torch
from threadpoolctl import threadpool_limits
from timing import as_markdown, seconds_in_turns

from maetok_lab.evaluation.metrics import frechet_distance, kernel_distance, precision_recall
from maetok_lab.rng import generator

AGREEMENT = {"frechet": 1e-4, "kernel": 0.5, "precision": 1e-6}  # relative; of KID both are random
CPU = torch.device("cpu")


def main(words: list[str] | None = None) -> None:
    """Print a table for each thread count: seconds of both, the median, and their ratio."""
    options = arguments(words)
    x = features(options.images, options.width, "samples")
    y = features(options.images, options.width, "reference") + 0.02
    calls = {"ours": ours(x, y), "torch-fidelity": fidelity(x, y, options)}
    for metric, tolerance in AGREEMENT.items():
        one, two = (call[metric]() for call in calls.values())
        if abs(one / two - 1) > tolerance:
            raise SystemExit(f"{metric}: {one} here, {two} by torch-fidelity")

    for threads in options.threads:
        torch.set_num_threads(threads)
        rows = []
        for metric in AGREEMENT:
            pair = {name: call[metric] for name, call in calls.items()}
            with threadpool_limits(threads):  # numpy's threads are not torch's
                seconds = seconds_in_turns(pair, options.repeats, CPU)
            rows.append(
                {"metric": metric, "threads": threads}
                | {f"{name}, s": f"{value:.2f}" for name, value in seconds.items()}
                | {"times as fast": f"{seconds['torch-fidelity'] / seconds['ours']:.2f}"}
            )
        print(as_markdown(rows))


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--subset-size", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    return parser.parse_args(words)


def features(count: int, width: int, name: str) -> torch.Tensor:
    """Features like a network's: positive, correlated, variances falling as a power. (n, d)"""
    mix = torch.randn(width, width, generator=generator(0, "benchmark-metrics"))
    mix *= (torch.arange(1, width + 1) ** -0.7)[:, None]
    return 0.3 * (torch.randn(count, width, generator=generator(0, name)) @ mix).relu()


def ours(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], float]]:
    """Each metric from features to number."""
    return {
        "frechet": lambda: frechet_distance(x, y),
        "kernel": lambda: kernel_distance(x, y).value,
        "precision": lambda: precision_recall(x, y).precision,
    }


def fidelity(
    x: torch.Tensor, y: torch.Tensor, options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """The same by torch-fidelity."""
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    def frechet() -> float:
        statistics = [metric_fid.fid_features_to_statistics(side) for side in (x, y)]
        result = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
        return result[metric_fid.KEY_METRIC_FID]

    def kernel() -> float:
        subsets = {"kid_subsets": options.subsets, "kid_subset_size": options.subset_size}
        result = metric_kid.kid_features_to_metric(x, y, **subsets, verbose=False)
        return result[metric_kid.KEY_METRIC_KID_MEAN]

    def precision() -> float:
        return metric_prc.calculate_precision_recall_full(x, y)[0]

    return {"frechet": frechet, "kernel": kernel, "precision": precision}


if __name__ == "__main__":
    main()
