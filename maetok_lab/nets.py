"""Frozen feature networks, each with the input scaling it wants, for perceptual loss, semantic targets and metrics.

Three small ImageNet networks are shipped in data/weights; others come from timm, their weights from the hub or a file.
"""

import contextlib
import json
import logging
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from maetok_lab.hints import did_you_mean
from maetok_lab.identity import DIGITS, file_hash, weights_hash

WEIGHTS = Path(__file__).resolve().parents[1] / "data" / "weights"
# after these torchvision layers LPIPS compares SqueezeNet's activations (Zhang et al. 2018, the authors' slices)
_SQUEEZENET_STAGES = (1, 4, 7, 9, 10, 11, 12)
SQUEEZENET_WIDTH = 512
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """How a network wants its input: (0..255 value - mean) / std per channel, rgb or bgr, at input_size."""

    file: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: str = "rgb"


SHIPPED = {
    "squeezenet1_1": NetSpec(
        file="squeezenet1_1.safetensors",
        input_size=227,
        mean=(123.68, 116.779, 103.939),
        std=(1.0, 1.0, 1.0),
        order="bgr",  # Keras's port of the Caffe network
    ),
    "efficientnet_lite0": NetSpec(
        file="tf_efficientnet_lite0.safetensors",
        input_size=224,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
    ),
    "efficientnet_lite2": NetSpec(
        file="tf_efficientnet_lite2.safetensors",
        input_size=260,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
    ),
}


class FeatureNet(nn.Module):
    """A frozen network over images (B, 3, H, W) in [-1, 1]: always in eval mode, gradients only to the images.

    num_features is the width of `features`; weight_hash names the weights; name and input_size say what it is.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        order: str,
        input_size: int,
        weight_hash: str,
    ):
        super().__init__()
        self.model = model.to(
            memory_format=torch.channels_last
        )  # a fifth faster on a CPU, more on a GPU
        self.name, self.order, self.input_size, self.weight_hash = (
            name,
            order,
            input_size,
            weight_hash,
        )
        self.is_squeezenet = name == "squeezenet1_1"
        self.num_features = SQUEEZENET_WIDTH if self.is_squeezenet else model.num_features
        # on [-1, 1] the scaling is one multiplication and one addition
        mean, std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 127.5 / std, persistent=False)
        self.register_buffer("shift", (127.5 - mean) / std, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeatureNet":
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def prepare(self, images: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Resize (antialiased bilinear) and scale as the network wants. (B, 3, H, W) -> (B, 3, size, size)"""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"{self.name} wants images (B, 3, H, W) in [-1, 1], got {tuple(images.shape)}"
            )
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(
                images, size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )
        scaled = images * self.scale + self.shift
        return scaled.flip(1) if self.order == "bgr" else scaled

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pool the last layer before the classifier. (B, 3, H, W) -> (B, num_features)"""
        if self.is_squeezenet:
            return self.model.features(self.prepare(images, self.input_size)).mean(dim=(2, 3))
        last = self.model.forward_features(self.prepare(images, self.input_size))
        return self.model.forward_head(last, pre_logits=True)

    def feature_map(self, images: torch.Tensor, *, grid: int) -> torch.Tensor:
        """Give features by place: the image is resized so that the map is exactly grid x grid.

        (B, 3, H, W) -> (B, grid, grid, num_features)
        """
        if self.is_squeezenet:
            found = self.model.features(self.prepare(images, 16 * grid + 15))
        else:
            found = self.model.forward_features(self.prepare(images, self._stride() * grid))
        if found.ndim == 3:  # a transformer's tokens, class and register tokens first
            return rearrange(
                found[:, self.model.num_prefix_tokens :], "b (h w) d -> b h w d", h=grid
            )
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        found = found if channels_last else rearrange(found, "b d h w -> b h w d")
        if found.shape[1:3] != (grid, grid):
            raise ValueError(
                f"{self.name} gives a map of {tuple(found.shape[1:3])}, not {grid} x {grid}"
            )
        return found

    def _stride(self) -> int:
        """Count the input pixels a side of one place of the map."""
        embedding = getattr(self.model, "patch_embed", None)
        if hasattr(self.model, "num_prefix_tokens") and embedding is not None:
            return embedding.patch_size[0]
        return self.model.feature_info[-1]["reduction"]

    def stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Give SqueezeNet's 7 activations that LPIPS compares, at the images' own size. -> [(B, D_i, h_i, w_i)]"""
        if not self.is_squeezenet:
            raise ValueError(f"stages are there for squeezenet1_1 only, not for {self.name}")
        found, x = [], self.prepare(images)
        for i, layer in enumerate(self.model.features):
            x = layer(x)
            if i in _SQUEEZENET_STAGES:
                found.append(x)
        return found

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Classify. (B, 3, H, W) -> (B, classes), 1000 of ImageNet for the shipped ones"""
        return self.model(self.prepare(images, self.input_size))

    forward = features


def load_net(
    name: str,
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    patch_size: int | None = None,
    scaling: Literal["own", "imagenet"] = "own",
) -> FeatureNet:
    """Load "squeezenet1_1", "efficientnet_lite0", "efficientnet_lite2" (shipped), or any "timm:NAME".

    weights is a local file to use instead of the shipped one or of the hub's. With patch_size a transformer of timm is
    rebuilt for that patch and exactly input_size: timm resamples the patch kernel and the positions. scaling "imagenet"
    feeds ImageNet's mean and std whatever the network was trained with.
    """
    if name.startswith("timm:"):
        if patch_size is not None and input_size is None:
            raise ValueError(
                f"{name} can be rebuilt with patches of {patch_size} px only for a given input_size"
            )
        rebuilt = {"patch_size": patch_size, "img_size": input_size} if patch_size else {}
        return _load_timm(name.removeprefix("timm:"), weights, input_size, rebuilt, scaling)
    if name not in SHIPPED:
        raise ValueError(f"unknown network {name!r}{did_you_mean(name, [*SHIPPED, 'timm:NAME'])}")
    if patch_size is not None or scaling != "own":
        raise ValueError(f"patch_size and scaling are for timm:NAME, not for {name}")
    spec = SHIPPED[name]
    state, weight_hash = _read_weights(
        Path(weights) if weights else WEIGHTS / spec.file, shipped=weights is None
    )
    model = _build(spec.file.removesuffix(".safetensors"))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not fit {name}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return FeatureNet(
        model,
        name=name,
        mean=spec.mean,
        std=spec.std,
        order=spec.order,
        input_size=input_size or spec.input_size,
        weight_hash=weight_hash,
    )


def feature_width(name: str) -> int:
    """Count the channels of a network's features without loading or making its weights."""
    model = (
        name.removeprefix("timm:")
        if name.startswith("timm:")
        else SHIPPED[name].file.removesuffix(".safetensors")
    )
    if model == "squeezenet1_1":
        return SQUEEZENET_WIDTH
    if name.startswith("timm:"):
        check_timm_name(model)
    with torch.device("meta"):
        return _build(model).num_features


def _build(name: str) -> nn.Module:
    """Make the network without weights."""
    if name == "squeezenet1_1":
        from torchvision.models import squeezenet1_1

        return squeezenet1_1(weights=None)
    import timm

    return timm.create_model(name, pretrained=False)


def _read_weights(path: Path, *, shipped: bool) -> tuple[dict[str, torch.Tensor], str]:
    """Read a safetensors file as fp32, and its hash; a shipped one must be the one in the index."""
    remake = (
        "; restore it from the repository, or run `python data/build_weights.py`" if shipped else ""
    )
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}{remake}")
    sha256 = file_hash(path)
    if shipped:
        expected = json.loads((path.parent / "index.json").read_text())[path.name]["sha256"]
        if sha256 != expected:
            raise ValueError(
                f"{path} is damaged: sha256 {sha256[:DIGITS]}, expected {expected[:DIGITS]}{remake}"
            )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }, sha256[:DIGITS]


def _load_timm(
    name: str,
    weights: str | Path | None,
    input_size: int | None,
    rebuilt: dict[str, int],
    scaling: str,
) -> FeatureNet:
    """Load a network of timm, its weights from a local file or the hub."""
    check_timm_name(name)
    if weights and not Path(weights).exists():
        raise FileNotFoundError(f"no weights at {weights} for timm:{name}")
    model = _create_timm(name, weights, rebuilt)
    config = model.pretrained_cfg
    if weights:
        weight_hash = file_hash(weights)[:DIGITS]
    else:
        weight_hash = weights_hash(model)
    mean, std = (
        (config["mean"], config["std"]) if scaling == "own" else (IMAGENET_MEAN, IMAGENET_STD)
    )
    return FeatureNet(
        model,
        name=f"timm:{name}",
        mean=[255 * value for value in mean],
        std=[255 * value for value in std],
        order="rgb",
        input_size=input_size or config["input_size"][-1],
        weight_hash=weight_hash,
    )


def check_timm_name(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest one."""
    import timm

    base = name.split(".")[0]
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models())
        raise ValueError(f"timm {timm.__version__} has no {name!r}{hint}")


def _create_timm(name: str, weights: str | Path | None, rebuilt: dict[str, int]) -> nn.Module:
    """Make a network of timm with weights; transformers that are not rebuilt for one image size take any."""
    import timm

    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    if rebuilt:
        options |= rebuilt
    elif name.startswith(("vit_", "eva02_", "deit")):
        options["dynamic_img_size"] = True
    try:
        with _no_missing_weights():
            return timm.create_model(name, pretrained=True, **options)
    # the hub's client raises many kinds for no network, no such file, no such entry; the kind is in the message
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        reason = f"{type(error).__name__}: {first_line}"
        if weights:
            raise ValueError(f"{weights} does not fit timm:{name} ({reason})") from error
        hub = timm.get_pretrained_cfg(name)
        where = (
            f"hf.co/{hub.hf_hub_id} (model.safetensors)" if hub and hub.hf_hub_id else "timm's site"
        )
        raise FileNotFoundError(
            f"the weights of timm:{name} are not here and could not be fetched from {where}: {reason}. "
            "Download the file elsewhere and give it as weights=FILE"
        ) from error


@contextlib.contextmanager
def _no_missing_weights() -> Iterator[None]:
    """Refuse what timm only logs: it loads SigLIP non-strictly, and what its file lacks would stay random."""
    handler, messages, logger = logging.Handler(), [], logging.getLogger("timm.models")
    handler.emit = lambda record: messages.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)  # timm does not even warn of keys that are missing
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    missing = [message for message in messages if message.startswith("Missing keys")]
    if missing:
        raise ValueError(textwrap.shorten(missing[0], 200))
