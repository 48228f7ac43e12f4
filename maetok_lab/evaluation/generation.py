"""How close samples are to real images, on a chosen feature network, with intervals and the real/real floor."""

import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from maetok_lab.evaluation.features import (
    Reference,
    about_net,
    image_features,
    make_reference,
    metric_name,
)
from maetok_lab.evaluation.metrics import (
    Statistics,
    as_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from maetok_lab.evaluation.protocol import PREVIEW_IMAGES, EvalProtocol, EvalResult
from maetok_lab.evaluation.scaling import frechet_error
from maetok_lab.protocols import Images, Net
from maetok_lab.rng import generator

__all__ = ["evaluate_generation", "image_features", "make_reference"]

FD_IMAGES = 3000  # below this the Frechet distance of 1280 features is mostly bias (real against real: 44 at 3,000)
METRICS = ("kid", "fd", "precision", "recall")
CHOICES = (*METRICS, "sfd", "is")
Numbers = tuple[dict[str, float], dict[str, tuple[float, float]]]


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

    `metrics` may also name "sfd", the Frechet distance of spatial features, and "is", the inception score. The names
    carry the network: `kid_efflite2`, `fd_efflite2`; Inception's alone are `kid`, `fid`, `sfid`. The floor is the same
    distance between two halves of the reference, or from a second real set to it (of "is": the reference's own score).
    95 % intervals: bootstrap for the kernel distance; for the Frechet distances the spread over `fd_draws` halves of the
    samples, scaled to all of them (bootstrap copies would add bias); Wilson's for precision and recall, the other set
    being fixed. Under 10,000 images the result is marked a preview. Raises ValueError for NaN or equal images, sizes or
    protocol fields that do not match, and for the Frechet distances under 3,000 images a side unless `preview`.
    """
    unknown = sorted(set(metrics) - set(CHOICES))
    if unknown or not metrics:
        raise ValueError(f"unknown metrics {unknown}; choose from {list(CHOICES)}")
    real = _as_reference(reference, net, metrics, batch_size)
    size = _image_size(samples)
    if None not in (size, real.image_size) and size != real.image_size:
        raise ValueError(
            f"samples are {size} px, but the reference {real.name} has images of {real.image_size} px"
        )
    made = _as_reference(samples, net, metrics, batch_size)
    _check(made, real, metrics, preview)
    values, intervals = _distances(made, real, metrics, fd_draws, protocol.seed)
    second = (
        None
        if second_reference is None
        else _as_reference(second_reference, net, metrics, batch_size)
    )
    floor = _floor(real, second, metrics, protocol.seed)
    known = {"num_images": made.count, "reference": real.name, "reference_images": real.count}
    known |= {"image_size": made.image_size or real.image_size, "reference_sha256": real.sha256}
    known |= {"crop": real.crop, "resize": real.resize, **about_net(net)}
    named = [
        {metric_name(key, net): value for key, value in part.items()}
        for part in (values, intervals, floor)
    ]
    return EvalResult(
        metrics=named[0],
        intervals=named[1],
        floor=named[2],
        protocol=protocol.filled(task="generation", **known),
        preview=made.count < PREVIEW_IMAGES,
    )


def _as_reference(
    given: Tensor | Images | Iterable[Tensor] | Reference,
    net: Net,
    metrics: Sequence[str],
    batch_size: int,
) -> Reference:
    if isinstance(given, Reference):
        return given
    outputs = ["features"] + ["spatial"] * ("sfd" in metrics) + ["logits"] * ("is" in metrics)
    if "is" in metrics and not hasattr(net, "logits"):
        raise ValueError(f"{net.name} gives no class logits, so there is no inception score")
    return make_reference(given, net, batch_size=batch_size, outputs=outputs)


def _image_size(samples: Tensor | Images | Iterable[Tensor]) -> int | None:
    return (
        samples.shape[-1] if isinstance(samples, Tensor) else getattr(samples, "image_size", None)
    )


def _check(made: Reference, real: Reference, metrics: Sequence[str], preview: bool) -> None:
    for side, name in ((made, "samples"), (real, f"images of the reference {real.name}")):
        if (
            side.features is not None
            and side.count > 1
            and (side.features == side.features[0]).all()
        ):
            raise ValueError(f"all {side.count} {name} are the same image")
    if made.features is None:
        raise ValueError(f"{made.name} is only a mean and a covariance: samples need their images")
    if real.features is None and not set(metrics) <= {"fd", "sfd", "is"}:
        raise ValueError(
            f"{real.name} is only a mean and a covariance: it can give metrics=['fd'] and nothing else"
        )
    for metric, pair in (("fd", real.statistics), ("sfd", real.spatial_statistics)):
        fewest = made.count if pair is not None else min(made.count, real.count or 0)
        if metric in metrics and fewest < FD_IMAGES and not preview:
            raise ValueError(
                f"the Frechet distance needs {FD_IMAGES} images a side, not {fewest}: pass preview=True to have it all "
                f"the same, or leave {metric!r} out of metrics"
            )
    for metric, field, sides in (("sfd", "spatial", (made, real)), ("is", "logits", (made,))):
        for side in sides if metric in metrics else ():
            if getattr(side, field) is None and getattr(side, f"{field}_statistics", None) is None:
                raise ValueError(
                    f"{metric!r} needs {field} of {side.name}: make_reference(..., outputs=['features', {field!r}])"
                )


def _distances(
    made: Reference, real: Reference, metrics: Sequence[str], draws: int, seed: int
) -> Numbers:
    """The chosen metrics and their intervals, under their short names."""
    values, intervals = {}, {}
    if "kid" in metrics:
        kernel = kernel_distance(made.features, real.features, seed=seed)
        values["kid"], intervals["kid"] = kernel.value, (kernel.low, kernel.high)
    sides = {
        "fd": (made.features, real.features if real.statistics is None else real.statistics),
        "sfd": (
            made.spatial,
            real.spatial if real.spatial_statistics is None else real.spatial_statistics,
        ),
    }
    for metric in ("fd", "sfd"):
        if metric in metrics:
            values[metric], spread = _frechet(*sides[metric], draws, seed)
            intervals |= {metric: spread} if spread else {}
    if {"precision", "recall"} & set(metrics):
        both = precision_recall(made.features, real.features)
        for name, count in (("precision", made.count), ("recall", real.count)):
            if name in metrics:
                values[name] = getattr(both, name)
                intervals[name] = _wilson(values[name], count)
    if "is" in metrics:
        values["is"], intervals["is"] = _score(made.logits, seed)
    return values, intervals


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` images."""
    z = 1.96
    middle, width = (
        share + z * z / (2 * count),
        z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2),
    )
    return (middle - width) / (1 + z * z / count), (middle + width) / (1 + z * z / count)


def _score(logits: Tensor, seed: int) -> tuple[float, tuple[float, float]]:
    """Inception score over ten splits, and the interval of their mean."""
    score = inception_score(logits, seed=seed)
    error = 1.96 * score.std / 3  # ten splits: std / sqrt(10 - 1)
    return score.mean, (score.mean - error, score.mean + error)


def _frechet(
    features: Tensor, reference: Tensor | Statistics, draws: int, seed: int
) -> tuple[float, tuple[float, float] | None]:
    target = as_gaussian(reference, "reference")
    value = frechet_distance(features, target)
    if draws < 2:
        return value, None
    error = 1.96 * frechet_error(features, target, draws=draws, seed=seed)
    return value, (value - error, value + error)


def _floor(
    real: Reference, second: Reference | None, metrics: Sequence[str], seed: int
) -> dict[str, float]:
    """The metrics between real and real: a second set against the reference, or one random half against the other."""
    score = (
        {"is": _score(real.logits, seed)[0]} if "is" in metrics and real.logits is not None else {}
    )
    metrics = [name for name in metrics if name != "is"]
    if second is None and real.features is None:
        return score
    if second is None:
        half, rest = torch.randperm(
            real.count, generator=generator(seed, "reference-halves")
        ).tensor_split(2)
        second, against = _rows(real, half), _rows(real, rest)
    else:
        against = real
    if min(second.count, against.count or second.count) < 8:
        return score
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _distances(second, against, metrics, 0, seed)[0] | score


def _rows(real: Reference, rows: Tensor) -> Reference:
    """Some of a reference's images, without published statistics."""
    spatial = None if real.spatial is None else real.spatial[rows]
    return Reference(
        real.name, "", len(rows), real.image_size, real.features[rows], spatial=spatial
    )
