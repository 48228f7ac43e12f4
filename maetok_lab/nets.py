"""Frozen feature networks: for the perceptual loss, the semantic targets and the metrics.

Each comes with the input scaling it was trained with. Three small ImageNet networks are shipped in
data/weights; others are timm's, with weights from the hub or a file.
"""

import contextlib
import dataclasses
import json
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maetok_lab.hints import did_you_mean
from maetok_lab.identity import DIGITS, file_hash, weights_fingerprint

WEIGHTS = Path(__file__).resolve().parents[1] / "data" / "weights"
REMAKE = "restore it from the repository, or run `python data/build_weights.py`"
TIMM = "timm:"
SQUEEZENET = "squeezenet1_1"
SQUEEZENET_WIDTH = 512
# LPIPS compares the activations after these of its layers (Zhang et al. 2018, the authors' slices)
SQUEEZENET_STAGES = (1, 4, 7, 9, 10, 11, 12)
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels in 0..1; most networks are trained with them
IMAGENET_STD = (0.229, 0.224, 0.225)
# timm builds these for one image size unless it is told otherwise
ANY_SIZE = ("vit_", "eva02_", "deit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A network's name, and the size and scaling of the images that it was trained with."""

    name: str  # of its metrics, and in protocols
    model: str = ""  # what builds a shipped one: SqueezeNet, or timm's name
    input_size: int  # pixels a side
    mean: tuple[float, ...]  # of pixels in 0..255, a number a channel, subtracted first
    std: tuple[float, ...]  # they are divided by it afterwards
    order: Literal["rgb", "bgr"] = "rgb"  # of the channels


_LITE = {"mean": (127.0,) * 3, "std": (128.0,) * 3}
SHIPPED = {
    SQUEEZENET: NetSpec(
        name=SQUEEZENET,
        model=SQUEEZENET,
        input_size=227,
        # as Keras's port of the Caffe network has it
        mean=(123.68, 116.779, 103.939),
        std=(1.0, 1.0, 1.0),
        order="bgr",
    ),
    "efficientnet_lite0": NetSpec(
        name="efficientnet_lite0", model="tf_efficientnet_lite0", input_size=224, **_LITE
    ),
    "efficientnet_lite2": NetSpec(
        name="efficientnet_lite2", model="tf_efficientnet_lite2", input_size=260, **_LITE
    ),
}


class FeatureNet(nn.Module):
    """A frozen network over images (B, 3, H, W) in [-1, 1].

    It is always in eval mode; gradients go to the images only. `num_features` is D below.
    """

    def __init__(self, model: nn.Module, spec: NetSpec, *, weight_hash: str):
        super().__init__()
        # channels last: a fifth faster on a CPU, more on a GPU
        self.model = model.to(memory_format=torch.channels_last)
        self.name = spec.name
        self.input_size = spec.input_size
        self.weight_hash = weight_hash
        self.is_bgr = spec.order == "bgr"
        self.is_squeezenet = spec.name == SQUEEZENET
        self.num_features = SQUEEZENET_WIDTH if self.is_squeezenet else model.num_features
        # on [-1, 1] the scaling is one multiplication and one addition
        mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
        std = torch.tensor(spec.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 127.5 / std, persistent=False)
        self.register_buffer("shift", (127.5 - mean) / std, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeatureNet":
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def prepare(self, images: Tensor, size: int | None = None) -> Tensor:
        """Resize and scale as the network wants: (B, 3, H, W) -> (B, 3, size, size)."""
        if images.ndim != 4 or images.shape[1] != 3:
            shape = tuple(images.shape)
            raise ValueError(f"{self.name} wants images (B, 3, H, W) in [-1, 1], got {shape}")
        if size is not None and images.shape[-2:] != (size, size):
            # antialiased: else a feature distance sees how an image was shrunk (Parmar et al. 2022)
            images = F.interpolate(
                images, size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )
        scaled = images * self.scale + self.shift
        return scaled.flip(1) if self.is_bgr else scaled

    def features(self, images: Tensor) -> Tensor:
        """The last layer before the classifier, pooled: (B, 3, H, W) -> (B, D)."""
        prepared = self.prepare(images, self.input_size)
        if self.is_squeezenet:
            return self.model.features(prepared).mean(dim=(2, 3))
        return self.model.forward_head(self.model.forward_features(prepared), pre_logits=True)

    forward = features

    def feature_map(self, images: Tensor, *, grid: int) -> Tensor:
        """Features by place: (B, 3, H, W) -> (B, grid, grid, D).

        The image is resized so that the map has exactly this size.
        """
        if self.is_squeezenet:
            # one convolution and three poolings of stride 2 without padding make g of 16 g + 15
            features = self.model.features(self.prepare(images, 16 * grid + 15))
        else:
            features = self.model.forward_features(self.prepare(images, self._stride() * grid))

        # it may be a transformer's tokens, or a map with channels last (Swin) or first
        if features.ndim == 3:
            patches = features[:, self.model.num_prefix_tokens :]  # no class and register tokens
            return rearrange(patches, "b (h w) d -> b h w d", h=grid)
        if getattr(self.model, "output_fmt", "NCHW") == "NCHW":
            features = rearrange(features, "b d h w -> b h w d")
        shape = tuple(features.shape[1:3])
        if shape != (grid, grid):
            raise ValueError(f"{self.name} gives a map of {shape}, not {grid} x {grid}")
        return features

    def _stride(self) -> int:
        """Input pixels a side of one place of the map."""
        embedding = getattr(self.model, "patch_embed", None)
        if hasattr(self.model, "num_prefix_tokens") and embedding is not None:
            return embedding.patch_size[0]
        return self.model.feature_info[-1]["reduction"]

    def stages(self, images: Tensor) -> list[Tensor]:
        """The 7 activations of SqueezeNet that LPIPS compares, at the images' own size.

        (B, 3, H, W) -> [(B, D_i, h_i, w_i)]. Raises ValueError for other networks.
        """
        if not self.is_squeezenet:
            raise ValueError(f"stages are there for {SQUEEZENET} only, not for {self.name}")
        x = self.prepare(images)
        activations = []
        for number, layer in enumerate(self.model.features):
            x = layer(x)
            if number in SQUEEZENET_STAGES:
                activations.append(x)
        return activations

    def logits(self, images: Tensor) -> Tensor:
        """Classify: (B, 3, H, W) -> (B, classes), ImageNet's 1000 for the shipped ones."""
        return self.model(self.prepare(images, self.input_size))


# Loading ------------------------------------------------------------------------------------------


def load_net(
    name: str,
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    patch_size: int | None = None,
    scaling: Literal["own", "imagenet"] = "own",
) -> FeatureNet:
    """A shipped network (squeezenet1_1, efficientnet_lite0, efficientnet_lite2), or "timm:NAME".

    `weights` is a file to use instead. With `patch_size` a transformer of timm is rebuilt for that
    patch and exactly `input_size`. `scaling` "imagenet" scales images by ImageNet's mean and std,
    whatever it was trained with. Raises ValueError for a wrong name or wrong weights,
    FileNotFoundError for missing ones.
    """
    if name.startswith(TIMM):
        if patch_size is not None and input_size is None:
            raise ValueError(
                f"{name} can be rebuilt with patches of {patch_size} px only for a given input_size"
            )
        return _load_timm(name, weights, input_size, patch_size, scaling)
    if name not in SHIPPED:
        raise ValueError(f"unknown network {name!r}{did_you_mean(name, [*SHIPPED, 'timm:NAME'])}")
    if patch_size is not None or scaling != "own":
        raise ValueError(f"patch_size and scaling are for timm:NAME, not for {name}")

    # strictly: a tensor that is missing would stay random
    spec = SHIPPED[name]
    state, weight_hash = _read_weights(spec, weights)
    model = _build(spec.model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{weights} does not fit {name}: {reason}") from error
    spec = dataclasses.replace(spec, input_size=input_size or spec.input_size)
    return FeatureNet(model, spec, weight_hash=weight_hash)


def feature_width(name: str) -> int:
    """The D of a network's features, without loading or making its weights."""
    if name == SQUEEZENET:
        return SQUEEZENET_WIDTH
    if name.startswith(TIMM):
        model_name = name.removeprefix(TIMM)
        check_timm_name(model_name)
    else:
        model_name = SHIPPED[name].model
    with torch.device("meta"):
        return _build(model_name).num_features


def _build(model_name: str) -> nn.Module:
    """A network of random weights."""
    if model_name == SQUEEZENET:
        from torchvision.models import squeezenet1_1

        return squeezenet1_1(weights=None)
    import timm

    return timm.create_model(model_name, pretrained=False)


def _read_weights(spec: NetSpec, weights: str | Path | None) -> tuple[dict[str, Tensor], str]:
    """Float32 tensors of a shipped network, or of the file `weights` for it; the file's hash."""
    path = Path(weights) if weights else WEIGHTS / f"{spec.model}.safetensors"
    advice = "" if weights else f"; {REMAKE}"
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}{advice}")
    digest = file_hash(path)
    if not weights:
        # the numbers of the docs and the tests hold for exactly these weights
        expected = json.loads((WEIGHTS / "index.json").read_text())[path.name]["sha256"]
        if digest != expected:
            raise ValueError(
                f"{path} is damaged: sha256 {digest[:DIGITS]}, expected {expected[:DIGITS]}{advice}"
            )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    for key, value in state.items():
        if value.is_floating_point():  # fp16 in the file, for half the space
            state[key] = value.float()
    return state, digest[:DIGITS]


# timm ---------------------------------------------------------------------------------------------


def _load_timm(
    name: str,
    weights: str | Path | None,
    input_size: int | None,
    patch_size: int | None,
    scaling: str,
) -> FeatureNet:
    model_name = name.removeprefix(TIMM)
    check_timm_name(model_name)
    if weights and not Path(weights).exists():
        raise FileNotFoundError(f"no weights at {weights} for {name}")
    options: dict[str, Any] = {}
    if weights:
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    if patch_size:
        # timm resamples the patch kernel and the positions of the weights
        options |= {"patch_size": patch_size, "img_size": input_size}
    elif model_name.startswith(ANY_SIZE):
        options["dynamic_img_size"] = True
    model = _create_timm(model_name, weights, options)

    config = model.pretrained_cfg
    mean = config["mean"]
    std = config["std"]
    if scaling == "imagenet":
        mean = IMAGENET_MEAN
        std = IMAGENET_STD
    spec = NetSpec(
        name=name,
        input_size=input_size or config["input_size"][-1],
        mean=tuple(255 * value for value in mean),
        std=tuple(255 * value for value in std),
    )
    weight_hash = file_hash(weights)[:DIGITS] if weights else weights_fingerprint(model)
    return FeatureNet(model, spec, weight_hash=weight_hash)


def check_timm_name(name: str) -> None:
    """Raise a ValueError with the nearest name for one that timm does not know."""
    import timm

    base = name.split(".")[0]  # a name may go on with the tag of its weights
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models())
        raise ValueError(f"timm {timm.__version__} has no {name!r}{hint}")


def _create_timm(name: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    """A network of timm with its weights, or an error that says where they could not be had."""
    import timm

    try:
        with _no_missing_weights():
            return timm.create_model(name, pretrained=True, **options)
    # The hub's client raises many kinds of error for no network, no such file, no such entry; which
    # of them it was is in the message alone.
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        reason = f"{type(error).__name__}: {first_line}"
        if weights:
            raise ValueError(f"{weights} does not fit {TIMM}{name} ({reason})") from error
        hub = timm.get_pretrained_cfg(name)
        site = "timm's site"
        if hub and hub.hf_hub_id:
            site = f"hf.co/{hub.hf_hub_id} (model.safetensors)"
        raise FileNotFoundError(
            f"the weights of {TIMM}{name} are not here and could not be fetched from {site}:"
            f" {reason}. Download the file elsewhere and give it as weights=FILE"
        ) from error


@contextlib.contextmanager
def _no_missing_weights() -> Iterator[None]:
    """Refuse what timm only logs: SigLIP without some of its weights, which would stay random."""
    # timm loads it non-strictly, and does not even warn of keys that are missing
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("timm.models")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    for message in messages:
        if message.startswith("Missing keys"):
            raise ValueError(textwrap.shorten(message, 200))
