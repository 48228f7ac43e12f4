"""How faithfully a tokenizer gives images back."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from maetok_lab.device import autocast
from maetok_lab.evaluation.features import (
    about_net,
    batch_features,
    image_batches,
    metric_name,
    share_work,
)
from maetok_lab.evaluation.metrics import frechet_distance, kernel_distance, psnr, ssim
from maetok_lab.evaluation.protocol import PREVIEW_IMAGES, EvalProtocol, EvalResult
from maetok_lab.evaluation.scaling import frechet_error
from maetok_lab.inference import device_of, eval_mode
from maetok_lab.protocols import AnyTokenizer, Images, Net

SSIM = "gaussian 11x11, sigma 1.5, data_range 255"


def evaluate_reconstruction(
    tokenizer: AnyTokenizer,
    source: Images | Tensor,
    *,
    protocol: EvalProtocol | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    net: Net | None = None,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> EvalResult:
    """PSNR in dB and SSIM of unmasked reconstructions, means over images after rounding to uint8, with 95 % intervals.

    `source` gives images in [-1, 1]: an ImageSource, or a tensor (n, 3, H, W). With `perceptual` (two image batches ->
    (B,)) its mean too; with `net` the kernel and Frechet distance between originals and reconstructions, `rkid_...` and
    `rfd_...`, a preview under 10,000 images. The tokenizer runs in eval mode, at the protocol's precision. In a
    `torch.distributed` group each process does its share, and all get the result. Raises ValueError for NaN pixels and
    for reconstructions of another size.
    """
    protocol = protocol or EvalProtocol(task="reconstruction")
    device = torch.device(device or device_of(tokenizer))

    def measure(part: Images | Tensor) -> dict[str, Any]:
        return _measure(_pairs(tokenizer, part, protocol, batch_size, device), perceptual, net)

    found = share_work(source, measure)
    metrics, intervals = {}, {}
    for name in ("psnr", "ssim", *(["perceptual"] if perceptual else [])):
        metrics[name], *intervals[name] = _mean(found[name])
    known = {
        "num_images": len(found["psnr"]),
        "image_size": found["image_size"],
        "ssim": SSIM,
        **_known(source),
    }
    known |= (
        {"perceptual": getattr(perceptual, "__name__", type(perceptual).__name__)}
        if perceptual
        else {}
    )
    if net is not None:
        _add_distances(metrics, intervals, found["made"], found["real"], net, protocol.seed)
        known |= about_net(net)
    intervals = {name: tuple(pair) for name, pair in intervals.items()}
    preview = net is not None and known["num_images"] < PREVIEW_IMAGES
    protocol = protocol.filled(task="reconstruction", **known)
    return EvalResult(metrics=metrics, intervals=intervals, protocol=protocol, preview=preview)


def _measure(
    pairs: Iterable[tuple[Tensor, Tensor, int]],
    perceptual: Callable[[Tensor, Tensor], Tensor] | None,
    net: Net | None,
) -> dict[str, Any]:
    """The numbers of each pair (n,), the features (n, D) of both sides ("made", "real") where there is a net."""
    found: dict[str, list[Tensor]] = {}
    size = None
    for images, rebuilt, count in pairs:
        size = images.shape[-1]
        numbers = {"psnr": psnr(rebuilt, images), "ssim": ssim(rebuilt, images)}
        if perceptual:
            with torch.inference_mode():
                numbers["perceptual"] = perceptual(rebuilt, images).double().cpu()
        if net is not None:
            for side, batch in (("made", rebuilt), ("real", images)):
                numbers[side] = batch_features(batch, net)
        for name, values in numbers.items():
            found.setdefault(name, []).append(values[:count].cpu())
    if not found:
        raise ValueError("no images to reconstruct")
    return {name: torch.cat(parts) for name, parts in found.items()} | {"image_size": size}


def _known(source: Images | Tensor) -> dict[str, Any]:
    """What the source tells of itself, for the protocol."""
    if isinstance(source, Tensor):
        return {}
    names = {
        "reference": "split",
        "reference_sha256": "fingerprint",
        "crop": "crop",
        "resize": "resize",
    }
    return {field: getattr(source, name) for field, name in names.items() if hasattr(source, name)}


def _add_distances(
    metrics: dict[str, float],
    intervals: dict[str, Any],
    made: Tensor,
    real: Tensor,
    net: Net,
    seed: int,
) -> None:
    """Kernel and Frechet distance between the features of reconstructions and originals; in place."""
    kernel = kernel_distance(made, real, seed=seed)
    metrics[metric_name("rkid", net)], intervals[metric_name("rkid", net)] = (
        kernel.value,
        (kernel.low, kernel.high),
    )
    value = frechet_distance(made, real)
    error = 1.96 * frechet_error(made, real, seed=seed)
    metrics[metric_name("rfd", net)], intervals[metric_name("rfd", net)] = (
        value,
        (value - error, value + error),
    )


def _pairs(
    tokenizer: AnyTokenizer,
    source: Images | Tensor,
    protocol: EvalProtocol,
    batch_size: int,
    device: torch.device,
):
    """Batches of originals and reconstructions in float32, and how many of each batch count."""
    with torch.inference_mode(), eval_mode(tokenizer):
        for images, count in image_batches(source, batch_size):
            images = images.to(device)
            with autocast(device, protocol.precision):
                rebuilt = tokenizer.decode(tokenizer.encode(images)).float()
            if rebuilt.shape != images.shape:
                raise ValueError(
                    f"images {tuple(images.shape)} came back as {tuple(rebuilt.shape)}"
                )
            yield images, rebuilt, count


def _mean(values: Tensor) -> tuple[float, float, float]:
    """Mean and 95 % interval of one number an image; an image given back exactly makes its PSNR, and the mean,
    infinite."""
    mean = float(values.mean())
    error = (
        float(values.std()) / math.sqrt(len(values))
        if len(values) > 1 and math.isfinite(mean)
        else math.nan
    )
    return mean, mean - 1.96 * error, mean + 1.96 * error
