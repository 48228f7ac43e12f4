"""How close samples are to real images, on a feature network, with intervals and a floor."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from maetok_lab.evaluation.features import (
    AnyImages,
    Reference,
    about_net,
    make_reference,
    metric_name,
)
from maetok_lab.evaluation.metrics import (
    MIN_IMAGES,
    Z95,
    Estimate,
    Statistics,
    as_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    monge_distance,
    precision_recall,
)
from maetok_lab.evaluation.protocol import PREVIEW_IMAGES, EvalProtocol, EvalResult
from maetok_lab.evaluation.scaling import frechet_error, halves_error
from maetok_lab.pictures import Rounding
from maetok_lab.protocols import Net
from maetok_lab.rng import generator

# below this the Frechet distance of 1280 features is mostly bias (real against real: 44 at 3,000)
FD_IMAGES = 3000
# "sfd" is the Frechet distance of spatial features, "is" the inception score, "mind" the Monge
# distance
METRICS = ("kid", "fd", "precision", "recall", "sfd", "is", "mind")
DEFAULT_METRICS = METRICS[:4]
CONFIDENCE = math.erf(Z95 / math.sqrt(2))  # 0.950004: the share of a normal within Z95


def evaluate_generation(
    samples: AnyImages | Reference,
    reference: AnyImages | Reference,
    *,
    net: Net,
    protocol: EvalProtocol,
    preview: bool = False,
    metrics: Sequence[str] = DEFAULT_METRICS,
    second_reference: AnyImages | Reference | None = None,
    fd_draws: int = 8,  # halves of the samples for intervals of "fd", "sfd", "mind"; 0 for none
    batch_size: int = 32,
) -> EvalResult:
    """Distances of samples (n, 3, H, W) in [-1, 1] to real images, by names that carry the net.

    `metrics` are some of `METRICS`. The floor is what real images get in the samples' place, those
    of `second_reference` or half the reference. Raises ValueError for NaN, equal images, unequal
    sizes, and Frechet distances under 3,000 images unless `preview`.
    """
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise ValueError(f"unknown metrics {unknown}; choose one or more of {list(METRICS)}")

    # sizes are compared before the samples cost a pass through the network
    as_reference = functools.partial(_as_reference, net=net, metrics=metrics, batch_size=batch_size)
    reference = as_reference(reference)
    _check_size(samples, reference)
    samples = as_reference(samples, rounding=protocol.rounding)
    if samples.rounding not in (None, protocol.rounding):
        raise ValueError(
            f"the protocol says rounding = {protocol.rounding!r}, but features of {samples.name} "
            f"are of pixels under {samples.rounding!r}: give the samples themselves, or "
            "`make_reference(samples, net, rounding=protocol.rounding)`"
        )
    if second_reference is not None:
        second_reference = as_reference(second_reference)
    _check(samples, reference, metrics, preview)

    # the protocol gets what was really compared, beside what the caller stated
    estimates = _estimates(samples, reference, metrics, fd_draws, protocol.seed)
    floor = _floor(reference, second_reference, metrics, protocol.seed)
    protocol = protocol.filled(
        task="generation",
        num_images=samples.count,
        image_size=samples.image_size or reference.image_size,
        crop=reference.crop,
        resize=reference.resize,
        reference=reference.name,
        reference_images=reference.count,
        reference_sha256=reference.sha256,
        floor=_floor_images(reference, second_reference),
        **about_net(net),
    )
    return EvalResult.from_estimates(
        {metric_name(metric, net): estimate for metric, estimate in estimates.items()},
        floor={metric_name(metric, net): value for metric, value in floor.items()},
        protocol=protocol,
        preview=samples.count < PREVIEW_IMAGES,
    )


def _as_reference(
    images: AnyImages | Reference,
    *,
    net: Net,
    metrics: Sequence[str],
    batch_size: int,
    rounding: Rounding = "uint8",
) -> Reference:
    """The outputs that the metrics need of a set of images; a Reference has its own already."""
    if isinstance(images, Reference):
        return images
    outputs = ["features"]
    if "sfd" in metrics:
        outputs.append("spatial")
    if "is" in metrics:
        if not hasattr(net, "logits"):
            raise ValueError(f"{net.name} gives no class logits, so there is no inception score")
        outputs.append("logits")
    return make_reference(images, net, batch_size=batch_size, outputs=outputs, rounding=rounding)


# What cannot be computed or trusted -------------------------------------------------------------


def _check_size(samples: AnyImages | Reference, reference: Reference) -> None:
    if isinstance(samples, Tensor):
        size = samples.shape[-1]
    else:
        size = getattr(samples, "image_size", None)
    if None not in (size, reference.image_size) and size != reference.image_size:
        raise ValueError(
            f"samples are {size} px, but the reference {reference.name} has images of "
            f"{reference.image_size} px"
        )


def _check(samples: Reference, reference: Reference, metrics: Sequence[str], preview: bool) -> None:
    _check_distinct(samples, "samples")
    _check_distinct(reference, f"images of the reference {reference.name}")
    if samples.features is None:
        raise ValueError(
            f"{samples.name} is only a mean and a covariance: samples need their images"
        )
    if reference.features is None and not set(metrics) <= {"fd", "sfd", "is"}:
        raise ValueError(
            f"{reference.name} is only a mean and a covariance: it can give no metrics "
            "but 'fd', 'sfd' and 'is'"
        )
    # published statistics were made of enough images
    pairs = {"fd": reference.statistics, "sfd": reference.spatial_statistics}
    for metric, statistics in pairs.items():
        count = samples.count
        if statistics is None:
            count = min(count, reference.count or 0)
        if metric in metrics and count < FD_IMAGES and not preview:
            raise ValueError(
                f"the Frechet distance needs {FD_IMAGES} images a side, not {count}: pass "
                f"preview=True to have it all the same, or leave {metric!r} out of metrics"
            )
    # a Reference that was made before may lack outputs
    if "sfd" in metrics:
        _check_output(samples, samples.spatial, "sfd", "spatial")
        spatial = reference.spatial_statistics or reference.spatial
        _check_output(reference, spatial, "sfd", "spatial")
    if "is" in metrics:
        _check_output(samples, samples.logits, "is", "logits")


def _check_distinct(side: Reference, kind: str) -> None:
    """Refuse copies of one image, such as those of a model that diverged."""
    features = side.features
    if features is not None and side.count > 1 and (features == features[0]).all():
        raise ValueError(f"all {side.count} {kind} are the same image")


def _check_output(side: Reference, values: object, metric: str, output: str) -> None:
    if values is None:
        how_to = f"make_reference(..., outputs=['features', {output!r}])"
        raise ValueError(f"{metric!r} needs {output} of {side.name}: {how_to}")


# Metrics with their intervals -------------------------------------------------------------------


def _estimates(
    samples: Reference, reference: Reference, metrics: Sequence[str], draws: int, seed: int
) -> dict[str, Estimate]:
    """Those of `METRICS` that are asked for, each with its interval."""
    estimates = {}
    if "kid" in metrics:
        kid = kernel_distance(samples.features, reference.features, seed=seed)
        estimates["kid"] = Estimate(kid.value, (kid.low, kid.high))
    if "fd" in metrics:
        target = reference.statistics or reference.features
        estimates["fd"] = _frechet(samples.features, target, draws, seed)
    if "sfd" in metrics:
        target = reference.spatial_statistics or reference.spatial
        estimates["sfd"] = _frechet(samples.spatial, target, draws, seed)

    if "mind" in metrics:
        estimates["mind"] = _monge(samples.features, reference.features, draws, seed)

    # precision is a share of the samples, recall of the reference: each interval takes the other
    # set as fixed
    if "precision" in metrics or "recall" in metrics:
        shares = precision_recall(samples.features, reference.features)
        if "precision" in metrics:
            interval = _wilson(shares.precision, samples.count)
            estimates["precision"] = Estimate(shares.precision, interval)
        if "recall" in metrics:
            interval = _wilson(shares.recall, reference.count)
            estimates["recall"] = Estimate(shares.recall, interval)
    if "is" in metrics:
        estimates["is"] = _score(samples.logits, seed)
    return estimates


def _frechet(features: Tensor, reference: Tensor | Statistics, draws: int, seed: int) -> Estimate:
    """The distance, with an interval of random halves: a bootstrap's copies would add bias."""
    target = as_gaussian(reference, "reference")
    value = frechet_distance(features, target)
    if draws < 2:
        return Estimate(value)
    error = frechet_error(features, target, draws=draws, seed=seed)
    return Estimate.normal(value, error)


def _monge(features: Tensor, reference: Tensor, draws: int, seed: int) -> Estimate:
    """The distance, with an interval of random halves for the same reason."""
    value = monge_distance(features, reference, seed=seed)
    if draws < 2:
        return Estimate(value)

    def distance(half: Tensor) -> float:
        """Of these rows."""
        return monge_distance(features[half], reference, seed=seed)

    return Estimate.normal(value, halves_error(distance, len(features), draws=draws, seed=seed))


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` images."""
    from scipy.stats import binomtest  # here, because importing it takes half a second

    test = binomtest(round(share * count), count)
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def _score(logits: Tensor, seed: int) -> Estimate:
    """Inception score over ten splits, and the interval of their mean."""
    score = inception_score(logits, seed=seed)
    margin = Z95 * score.std / 3  # ten splits: std / sqrt(10 - 1)
    return Estimate(score.mean, (score.mean - margin, score.mean + margin))


# Floor ------------------------------------------------------------------------------------------


def _floor(
    reference: Reference, second: Reference | None, metrics: Sequence[str], seed: int
) -> dict[str, float]:
    """The metrics between real images and real ones; the inception score of the reference."""
    # without a second set one random half stands for the samples, the other for the reference
    target = reference
    if second is None and reference.features is not None:
        order = torch.randperm(reference.count, generator=generator(seed, "reference-halves"))
        half, other_half = order.tensor_split(2)
        second = _rows(reference, half)
        target = _rows(reference, other_half)

    floor = {}
    distances = [metric for metric in metrics if metric != "is"]
    if second is not None:  # few images have none: it is NaN, so that tables keep their columns
        floor = dict.fromkeys(distances, math.nan)
    if second is not None and min(second.count, target.count or second.count) >= MIN_IMAGES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few images: the samples have been warned of
            estimates = _estimates(second, target, distances, 0, seed)
        floor |= {metric: estimate.value for metric, estimate in estimates.items()}
    if "is" in metrics and reference.logits is not None:
        floor["is"] = _score(reference.logits, seed).value
    return floor


def _floor_images(reference: Reference, second: Reference | None) -> str | None:
    """What stood in the samples' place for the floor, in words."""
    if second is not None:
        return f"{second.count:,} of {second.name}"
    return None if reference.features is None else f"one half of {reference.name}, to the other"


def _rows(reference: Reference, rows: Tensor) -> Reference:
    """Some of a reference's images, without published statistics."""
    spatial = None if reference.spatial is None else reference.spatial[rows]
    return dataclasses.replace(
        reference,
        count=len(rows),
        features=reference.features[rows],
        spatial=spatial,
        statistics=None,
        spatial_statistics=None,
    )
