"""How faithfully a tokenizer gives images back."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from maetok_lab.device import autocast
from maetok_lab.evaluation.features import Images, Net, image_batches, image_features, metric_name
from maetok_lab.evaluation.metrics import frechet_distance, kernel_distance, psnr, ssim
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult

SSIM = "gaussian 11x11, sigma 1.5, data_range 255"


class Autoencoder(Protocol):
    """What evaluation needs of a tokenizer."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N, C)."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3, H, W)."""


def evaluate_reconstruction(
    tokenizer: Autoencoder,
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
    `rfd_...`. The tokenizer runs in eval mode, at the protocol's precision. Raises ValueError for NaN pixels and for
    reconstructions of another size.
    """
    protocol = protocol or EvalProtocol(task="reconstruction")
    device = torch.device(device or _device_of(tokenizer))
    scores: dict[str, list[Tensor]] = {"psnr": [], "ssim": []} | ({"perceptual": []} if perceptual else {})
    features: list[tuple[Tensor, Tensor]] = []
    for images, rebuilt, count in _pairs(tokenizer, source, protocol, batch_size, device):
        scores["psnr"].append(psnr(rebuilt, images)[:count])
        scores["ssim"].append(ssim(rebuilt, images)[:count])
        if perceptual:
            with torch.inference_mode():
                scores["perceptual"].append(perceptual(rebuilt, images)[:count].double().cpu())
        if net is not None:
            features.append(tuple(image_features(x, net, batch_size=batch_size)[:count] for x in (rebuilt, images)))
        size = images.shape[-1]
    if not scores["psnr"]:
        raise ValueError("no images to reconstruct")
    metrics, intervals = {}, {}
    for name, parts in scores.items():
        metrics[name], *intervals[name] = _mean(torch.cat(parts))
    known = {"num_images": sum(map(len, scores["psnr"])), "image_size": size, "ssim": SSIM, **_known(source)}
    known |= {"perceptual": type(perceptual).__name__} if perceptual else {}
    if net is not None:
        _add_distances(metrics, intervals, features, net, protocol.seed)
        known |= {"net": net.name, "net_weights": net.weight_hash, "net_input_size": getattr(net, "input_size", None)}
    intervals = {name: tuple(pair) for name, pair in intervals.items()}
    return EvalResult(metrics=metrics, intervals=intervals, protocol=protocol.filled(task="reconstruction", **known))


def _known(source: Images | Tensor) -> dict[str, Any]:
    """What the source tells of itself, for the protocol."""
    if isinstance(source, Tensor):
        return {}
    names = {"reference": "split", "reference_sha256": "fingerprint", "crop": "crop"}
    return {field: getattr(source, name) for field, name in names.items() if hasattr(source, name)}


def _add_distances(
    metrics: dict[str, float], intervals: dict[str, Any], features: list[tuple[Tensor, Tensor]], net: Net, seed: int
) -> None:
    """Kernel and Frechet distance between the features of reconstructions and originals; in place."""
    made, real = (torch.cat(side) for side in zip(*features))
    kernel = kernel_distance(made, real, seed=seed)
    metrics[metric_name("rkid", net)], intervals[metric_name("rkid", net)] = kernel.value, (kernel.low, kernel.high)
    metrics[metric_name("rfd", net)] = frechet_distance(made, real)


def _pairs(
    tokenizer: Autoencoder, source: Images | Tensor, protocol: EvalProtocol, batch_size: int, device: torch.device
):
    """Batches of originals and reconstructions in float32, and how many of each batch count."""
    with torch.inference_mode(), _eval_mode(tokenizer):
        for images, count in image_batches(source, batch_size):
            images = images.to(device)
            with autocast(device, protocol.precision):
                rebuilt = tokenizer.decode(tokenizer.encode(images)).float()
            if rebuilt.shape != images.shape:
                raise ValueError(f"images {tuple(images.shape)} came back as {tuple(rebuilt.shape)}")
            yield images, rebuilt, count


def _mean(values: Tensor) -> tuple[float, float, float]:
    """Mean and 95 % interval of one number an image; an image given back exactly makes its PSNR, and the mean,
    infinite."""
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 and math.isfinite(mean) else math.nan
    return mean, mean - 1.96 * error, mean + 1.96 * error


@contextmanager
def _eval_mode(tokenizer: Any):
    training = getattr(tokenizer, "training", False)
    if training:
        tokenizer.eval()
    try:
        yield
    finally:
        if training:
            tokenizer.train()


def _device_of(tokenizer: Any) -> torch.device:
    parameter = next(tokenizer.parameters(), None) if isinstance(tokenizer, torch.nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
