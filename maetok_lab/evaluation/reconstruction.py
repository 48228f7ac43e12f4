"""How faithfully a tokenizer gives images back."""

import collections
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from maetok_lab.device import autocast
from maetok_lab.evaluation.features import about_net, batch_features, image_batches, metric_name
from maetok_lab.evaluation.metrics import Estimate, frechet_distance, kernel_distance
from maetok_lab.evaluation.pixels import psnr, round_to_uint8, ssim
from maetok_lab.evaluation.protocol import PREVIEW_IMAGES, EvalProtocol, EvalResult
from maetok_lab.evaluation.scaling import frechet_error
from maetok_lab.inference import device_of, eval_mode
from maetok_lab.pictures import from_uint8
from maetok_lab.processes import share_images
from maetok_lab.protocols import AnyTokenizer, Images, Net

SSIM = "gaussian 11x11, sigma 1.5, data_range 255"
Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of images -> (B,)


def evaluate_reconstruction(
    tokenizer: AnyTokenizer,
    source: Images | Tensor,
    *,
    protocol: EvalProtocol | None = None,
    perceptual: Distance | None = None,
    net: Net | None = None,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> EvalResult:
    """PSNR in dB and SSIM of unmasked reconstructions, means over images rounded to uint8.

    `source` holds images in [-1, 1]. `perceptual` adds its mean; `net` the kernel and Frechet
    distance between originals and reconstructions, `rkid_...` and `rfd_...`. Processes share the
    work. Raises ValueError for NaN pixels and for reconstructions of another size.
    """
    protocol = protocol or EvalProtocol(task="reconstruction")
    device = torch.device(device or device_of(tokenizer))

    def measure(part: Images | Tensor) -> dict[str, Any]:
        return _measure(_pairs(tokenizer, part, protocol, batch_size, device), perceptual, net)

    # means over images
    values = share_images(source, measure)
    estimates = {"psnr": _mean(values["psnr"]), "ssim": _mean(values["ssim"])}
    count = len(values["psnr"])
    facts = {"num_images": count, "image_size": values["image_size"], "ssim": SSIM}
    if perceptual:
        estimates["perceptual"] = _mean(values["perceptual"])
        facts["perceptual"] = getattr(perceptual, "__name__", type(perceptual).__name__)
    # the error of the Frechet distance is taken over halves in which images stay with their
    # reconstructions
    if net is not None:
        sides = (values["reconstructed"], values["original"])
        kid = kernel_distance(*sides, seed=protocol.seed)
        error = frechet_error(*sides, seed=protocol.seed)
        estimates[metric_name("rkid", net)] = Estimate(kid.value, (kid.low, kid.high))
        estimates[metric_name("rfd", net)] = Estimate.normal(frechet_distance(*sides), error)
        facts |= about_net(net)

    # distances of features need many images; a mean over images has no such bias
    preview = net is not None and count < PREVIEW_IMAGES
    protocol = protocol.filled(task="reconstruction", **facts, **_source_facts(source))
    return EvalResult.from_estimates(estimates, protocol=protocol, preview=preview)


def _pairs(
    tokenizer: AnyTokenizer,
    source: Images | Tensor,
    protocol: EvalProtocol,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield originals and reconstructions in float32, and how many of a batch are no padding."""
    with torch.inference_mode(), eval_mode(tokenizer):
        for originals, count in image_batches(source, batch_size):
            originals = originals.to(device)
            with autocast(device, protocol.precision):
                reconstructions = tokenizer.decode(tokenizer.encode(originals)).float()
            if reconstructions.shape != originals.shape:
                shape = tuple(reconstructions.shape)
                raise ValueError(f"images {tuple(originals.shape)} came back as {shape}")
            if protocol.rounding == "truncated":
                reconstructions = from_uint8(round_to_uint8(reconstructions, "truncated"))
            yield originals, reconstructions, count


def _measure(
    pairs: Iterable[tuple[Tensor, Tensor, int]], perceptual: Distance | None, net: Net | None
) -> dict[str, Any]:
    """The numbers (n,) of each pair, and where there is a net the features (n, D) of both sides."""
    parts = collections.defaultdict(list)
    for originals, reconstructions, count in pairs:
        values = {
            "psnr": psnr(reconstructions, originals),
            "ssim": ssim(reconstructions, originals),
        }
        if perceptual:
            with torch.inference_mode():
                values["perceptual"] = perceptual(reconstructions, originals).double()
        if net is not None:
            values["reconstructed"] = batch_features(reconstructions, net)
            values["original"] = batch_features(originals, net)
        # the last batch was padded to be full
        for name, batch in values.items():
            parts[name].append(batch[:count].cpu())
    if not parts:
        raise ValueError("no images to reconstruct")
    joined = {name: torch.cat(batches) for name, batches in parts.items()}
    return joined | {"image_size": originals.shape[-1]}


def _source_facts(source: Images | Tensor) -> dict[str, Any]:
    """What a source tells of itself, for the protocol."""
    if isinstance(source, Tensor):
        return {}
    names = {"reference": "split", "reference_sha256": "fingerprint"}
    names |= {"crop": "crop", "resize": "resize"}
    return {field: getattr(source, name) for field, name in names.items() if hasattr(source, name)}


def _mean(values: Tensor) -> Estimate:
    """Mean of one number an image: (n,) -> its estimate."""
    # an image given back exactly has an infinite PSNR, and so has the mean
    mean = float(values.mean())
    error = math.nan
    if len(values) > 1 and math.isfinite(mean):
        error = float(values.std()) / math.sqrt(len(values))
    return Estimate.normal(mean, error)
