"""How close samples are to real images, on a chosen feature network, with intervals and the real/real floor."""

import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from maetok_lab.evaluation.features import Images, Net, Reference, image_features, make_reference, metric_name
from maetok_lab.evaluation.metrics import (
    Gaussian,
    as_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from maetok_lab.evaluation.protocol import PREVIEW_IMAGES, EvalProtocol, EvalResult
from maetok_lab.rng import generator

__all__ = ["evaluate_generation", "image_features", "make_reference"]

FD_IMAGES = 3000  # below this the Frechet distance of 1280 features is mostly bias (real against real: 44 at 3,000)
METRICS = ("kid", "fd", "precision", "recall")
CHOICES = (*METRICS, "is")


def evaluate_generation(
    samples: Tensor | Images | Iterable[Tensor] | Reference,
    reference: Tensor | Images | Reference,
    *,
    net: Net,
    protocol: EvalProtocol,
    preview: bool = False,
    metrics: Sequence[str] = METRICS,
    second_reference: Tensor | Images | Reference | None = None,
    fd_draws: int = 8,
    batch_size: int = 32,
) -> EvalResult:
    """Kernel and Frechet distance, precision and recall of samples (n, 3, H, W) in [-1, 1] against real images.

    `metrics` may also name "is", the inception score. The names carry the network: `kid_efflite2`, `fd_efflite2`;
    Inception's alone are `kid`, `fid`. The floor is the same distance between two halves of the reference, or from a
    second real set to it. Intervals: bootstrap for the kernel distance; for the Frechet distance the spread over
    `fd_draws` halves of the samples, scaled to all of them (bootstrap copies would add bias). Under 10,000 images the
    result is marked a preview. Raises ValueError for NaN or equal samples, sizes or protocol fields that do not match,
    and for the Frechet distance under 3,000 images a side unless `preview`.
    """
    unknown = sorted(set(metrics) - set(CHOICES))
    if unknown or not metrics:
        raise ValueError(f"unknown metrics {unknown}; choose from {list(CHOICES)}")
    real = _as_reference(reference, net, batch_size)
    size = _image_size(samples)
    if None not in (size, real.image_size) and size != real.image_size:
        raise ValueError(f"samples are {size} px, but the reference {real.name} has images of {real.image_size} px")
    if isinstance(samples, Reference):
        features = samples.features
    else:
        features = image_features(samples, net, batch_size=batch_size)
    _check(features, real, metrics, preview)
    values, intervals = _distances(features, real, metrics, fd_draws, protocol.seed)
    if "is" in metrics:
        values["is"], intervals["is"] = _score(samples, net, batch_size, protocol.seed)
    floor = _floor(real, second_reference, net, metrics, batch_size, protocol.seed)
    known = {"num_images": len(features), "reference": real.name, "reference_images": real.count}
    known |= {"image_size": size or real.image_size, "reference_sha256": real.sha256, "net": net.name}
    known |= {"net_weights": net.weight_hash, "net_input_size": getattr(net, "input_size", None)}
    named = [{metric_name(key, net): value for key, value in part.items()} for part in (values, intervals, floor)]
    return EvalResult(
        metrics=named[0],
        intervals=named[1],
        floor=named[2],
        protocol=protocol.filled(task="generation", **known),
        preview=len(features) < PREVIEW_IMAGES,
    )


def _as_reference(given: Tensor | Images | Reference, net: Net, batch_size: int) -> Reference:
    return given if isinstance(given, Reference) else make_reference(given, net, batch_size=batch_size)


def _image_size(samples: Tensor | Images | Iterable[Tensor]) -> int | None:
    return samples.shape[-1] if isinstance(samples, Tensor) else getattr(samples, "image_size", None)


def _check(features: Tensor, real: Reference, metrics: Sequence[str], preview: bool) -> None:
    if len(features) > 1 and (features == features[0]).all():
        raise ValueError(f"all {len(features)} samples are the same image")
    fewest = min(len(features), real.count or len(features))
    if "fd" in metrics and fewest < FD_IMAGES and not preview:
        raise ValueError(
            f"the Frechet distance needs {FD_IMAGES} images a side, not {fewest}: pass preview=True to have it all the "
            "same, or leave 'fd' out of metrics"
        )
    if real.features is None and not set(metrics) <= {"fd", "is"}:
        raise ValueError(f"{real.name} is only a mean and a covariance: it can give metrics=['fd'] and nothing else")


def _score(samples: Tensor | Images, net: Net, batch_size: int, seed: int) -> tuple[float, tuple[float, float]]:
    """Inception score over ten splits, and the interval of their mean."""
    if not (isinstance(samples, Tensor) or hasattr(samples, "batch")) or not hasattr(net, "logits"):
        raise ValueError("the inception score needs samples that can be read twice and a network with class logits")
    score = inception_score(image_features(samples, net, batch_size=batch_size, output="logits"), seed=seed)
    error = 1.96 * score.std / 3  # ten splits: std / sqrt(10 - 1)
    return score.mean, (score.mean - error, score.mean + error)


def _distances(
    features: Tensor, real: Reference, metrics: Sequence[str], draws: int, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The chosen metrics and their intervals, under their short names."""
    values, intervals = {}, {}
    if "kid" in metrics:
        kernel = kernel_distance(features, real.features, seed=seed)
        values["kid"], intervals["kid"] = kernel.value, (kernel.low, kernel.high)
    if "fd" in metrics:
        target = as_gaussian(real.features if real.statistics is None else real.statistics, "reference")
        values["fd"] = frechet_distance(features, target)
        if draws > 1:
            error = _frechet_error(features, target, draws, seed)
            intervals["fd"] = (values["fd"] - 1.96 * error, values["fd"] + 1.96 * error)
    if {"precision", "recall"} & set(metrics):
        both = precision_recall(features, real.features)
        values |= {name: getattr(both, name) for name in ("precision", "recall") if name in metrics}
    return values, intervals


def _frechet_error(features: Tensor, target: Gaussian, draws: int, seed: int) -> float:
    """Standard error of the Frechet distance: its spread over random halves of the samples, times sqrt(1/2)."""
    random = generator(seed, "frechet-halves")
    half = max(2, len(features) // 2)
    picks = [torch.randperm(len(features), generator=random)[:half] for _ in range(draws)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few images: the distance itself has warned
        values = [frechet_distance(features[pick], target) for pick in picks]
    return float(torch.tensor(values, dtype=torch.float64).std() / math.sqrt(2))


def _floor(
    real: Reference,
    second: Tensor | Images | Reference | None,
    net: Net,
    metrics: Sequence[str],
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """The metrics between real and real: a second set against the reference, or one random half against the other."""
    if second is not None:
        other, against = _as_reference(second, net, batch_size).features, real
    elif real.features is None:
        return {}
    else:
        order = torch.randperm(len(real.features), generator=generator(seed, "reference-halves"))
        half, rest = order.tensor_split(2)
        other, against = real.features[half], Reference(real.name, "", len(rest), None, real.features[rest])
    if min(len(other), against.count or len(other)) < 8:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _distances(other, against, metrics, 0, seed)[0]
