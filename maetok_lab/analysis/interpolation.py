"""What a decoder makes of mixtures of two images' latents: the interpolated distance, iFID.

As in the code released with arXiv 2603.05630: each test latent is mixed with one of the training
latents that are most like it, and the decoded mixtures are compared with the test images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from maetok_lab.analysis.decoding import Decode, decoded
from maetok_lab.analysis.preprocess import (
    CHUNK_VALUES,
    as_rows,
    flat_chunks,
    float64_device,
    take_rows,
    width_of,
)
from maetok_lab.device import wide
from maetok_lab.evaluation.features import AnyImages, Reference, make_reference, metric_name
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.hints import check_choice
from maetok_lab.neighbours import nearest_neighbours
from maetok_lab.protocols import Net
from maetok_lab.rng import generator
from maetok_lab.tokenizer.perturbation import slerp

Way = Literal["slerp", "linear"]


# Mixtures -----------------------------------------------------------------------------------------


def mix_latents(
    latents: Any, reference_latents: Any, *, neighbours: int = 10, way: Way = "slerp", seed: int = 0
) -> Tensor:
    """Each latent halfway to one of its nearest in the reference: (n, N, C), (m, N, C) -> (n, N, C)

    Nearest by cosine ("linear": by distance), flattened. One is drawn, by the softmax of minus the
    mean squared difference. The reference is read in chunks. Raises ValueError for fewer than
    `neighbours` of them, another shape, and NaN.
    """
    check_choice(way, ["slerp", "linear"], "way")
    latents = as_rows(latents)
    reference = as_rows(reference_latents)
    _check_rows(latents, reference, neighbours)
    nearest = _nearest(latents, reference, neighbours, cosine=way == "slerp")  # (n, k)

    # one number an image: the draws do not depend on how many are mixed at once
    draws = torch.rand(len(nearest), generator=generator(seed, "mix-latents"), dtype=torch.float64)
    mixed = []
    size = max(1, CHUNK_VALUES // (neighbours * width_of(latents)))
    for rows in torch.arange(len(nearest)).split(size):
        own = take_rows(latents, rows).float()  # (b, N, C)
        partners = _drawn(own, reference, nearest[rows], draws[rows])
        halfway = torch.lerp(own, partners, 0.5) if way == "linear" else slerp(own, partners, 0.5)
        mixed.append(halfway)
    return torch.cat(mixed)


def _check_rows(latents: Any, reference: Any, neighbours: int) -> None:
    """ValueError unless every latent has as many latents of its shape to be mixed with."""
    width_of(latents)
    if latents.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"latents {tuple(latents.shape)} and reference {tuple(reference.shape)} must be of one "
            "shape: take both from the same tokenizer"
        )
    if not 1 <= neighbours <= reference.shape[0]:
        raise ValueError(
            f"need 1 to {reference.shape[0]} neighbours, as many as there are reference latents, "
            f"not {neighbours}: give more images or set `neighbours`"
        )


def _nearest(latents: Any, reference: Any, neighbours: int, *, cosine: bool) -> Tensor:
    """The k nearest reference latents of each latent, nearest first: (n, k), on the CPU."""
    device = float64_device(latents)
    rows = torch.cat([_finite(part, cosine) for _, part in flat_chunks(latents, device)])
    indices = torch.zeros(len(rows), 0, dtype=torch.long, device=device)
    distances = rows.new_zeros(len(rows), 0)
    for start, chunk in flat_chunks(reference, device):
        count = min(neighbours, len(chunk))
        near = nearest_neighbours(rows, _finite(chunk, cosine), neighbours=count, cosine=cosine)
        # those of all chunks so far
        indices = torch.cat([indices, near.indices + start], dim=1)
        distances = torch.cat([distances, near.distances], dim=1)
        best = distances.topk(min(neighbours, distances.shape[1]), largest=False)
        indices = indices.gather(1, best.indices)
        distances = best.values
    return indices.cpu()


def _finite(rows: Tensor, cosine: bool) -> Tensor:
    """Rows (b, D), of length 1 for cosines; ValueError for NaN, which is near to nothing."""
    if not rows.isfinite().all():
        raise ValueError("latents hold NaN or infinite values: there is nothing to mix")
    return normalize(rows) if cosine else rows


def _drawn(own: Tensor, reference: Any, nearest: Tensor, draws: Tensor) -> Tensor:
    """One neighbour each: (b, N, C), indices (b, k), numbers in [0, 1) (b,) -> (b, N, C)."""
    candidates = take_rows(reference, nearest.flatten()).to(own)
    candidates = candidates.unflatten(0, nearest.shape)  # (b, k, N, C)
    apart = wide(candidates - own[:, None]).square().flatten(2).mean(dim=2)
    bounds = (-apart).softmax(dim=1).cumsum(dim=1)
    # rounding may leave the last bound below 1
    places = (bounds[:, :-1] <= draws[:, None].to(bounds.device)).sum(dim=1).to(own.device)
    return candidates[torch.arange(len(own), device=own.device), places]


# Their distance -----------------------------------------------------------------------------------


def interpolated_distance(
    decode: Decode,
    latents: Any,
    reference_latents: Any,
    images: AnyImages | Reference,
    *,
    net: Net,
    neighbours: int = 10,
    way: Way = "slerp",
    metrics: Sequence[str] = ("kid",),
    preview: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> EvalResult:
    """How far decoded mixtures are from test images: `ikid_NET`, beside `rkid_NET` of the latents'
    own reconstructions, and `ikid_gap_NET` from mixtures to reconstructions.

    `latents` (n, N, C) are of `images`, in their order. `metrics` "fd" gives `ifd_NET` (Inception:
    `ifid`) and so on. Raises ValueError as `mix_latents` and `evaluate_generation` do.
    """
    for metric in metrics:
        check_choice(metric, ["kid", "fd"], "metric")
    latents = as_rows(latents)
    mixed = mix_latents(latents, reference_latents, neighbours=neighbours, way=way, seed=seed)
    if not isinstance(images, Reference):
        images = make_reference(images, net, batch_size=batch_size)
    if images.count != len(mixed):
        raise ValueError(
            f"{len(mixed)} latents of {images.count} images: give the images that were encoded"
        )

    def pictures_of(rows: Any, name: str) -> Reference:
        return make_reference(
            decoded(decode, rows, batch_size), net, name=name, batch_size=batch_size
        )

    mixtures = pictures_of(mixed, "mixtures")
    reconstructions = pictures_of(latents, "reconstructions")

    # the gap leaves out what the decoder loses of any image
    count = as_rows(reference_latents).shape[0]
    sampler = f"{way} halfway to 1 of the {neighbours} nearest of {count:,} latents"
    protocol = EvalProtocol(seed=seed, sampler=sampler)
    options = {"net": net, "protocol": protocol, "preview": preview, "metrics": metrics}
    results = {
        "i{}": evaluate_generation(mixtures, images, **options),
        "r{}": evaluate_generation(reconstructions, images, **options),
        "i{}_gap": evaluate_generation(mixtures, reconstructions, **options),
    }
    return _joined(results, metrics, net)


def _joined(results: Mapping[str, EvalResult], metrics: Sequence[str], net: Net) -> EvalResult:
    """One result of several under the first one's protocol, named by forms such as "i{}_gap"."""
    numbers = {"metrics": {}, "intervals": {}, "floor": {}}
    for form, result in results.items():
        for metric in metrics:
            name = metric_name(form.format(metric), net)
            for field, values in numbers.items():
                values[name] = getattr(result, field)[metric_name(metric, net)]
    first = next(iter(results.values()))
    return EvalResult(protocol=first.protocol, preview=first.preview, **numbers)
