"""Perceptual distances: LPIPS on VGG16, and LPIPS' form on the shipped SqueezeNet, which needs no download."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from maetok_lab.nets import FeatureNet, load_net
from maetok_lab.runs.weights import check_shapes
from maetok_lab.tokenizer.losses import LossConfig


def make_perceptual(config: LossConfig) -> nn.Module | None:
    """The distance (images, reference) -> (B,) that a config names; None where there is none or its weight is 0.

    Raises ImportError without the package, FileNotFoundError without the weights, ValueError for weights that do not fit.
    """
    if config.perceptual == "none" or not config.perceptual_weight:
        return None
    if config.perceptual == "lpips":
        return VggLpips(config.perceptual_weights)
    return SqueezePerceptual(load_net("squeezenet1_1", weights=config.perceptual_weights))


class SqueezePerceptual(nn.Module):
    """Sum over SqueezeNet's seven stages of the squared distance between unit-length feature vectors, averaged over places.

    LPIPS' equation 1 (Zhang et al. 2018) with every channel weight 1: not LPIPS, and not comparable with it.
    """

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """images, reference (B, 3, H, W) in [-1, 1] -> (B,); gradients reach `images` only"""
        with torch.no_grad():
            wanted = self.net.stages(reference)
        distances = [
            stage_distance(mine, theirs) for mine, theirs in zip(self.net.stages(images), wanted)
        ]
        return torch.stack(distances).sum(0)


class VggLpips(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018): VGG16's five stages and the package's learned channel weights; frozen, without dropout.

    Images are taken at their own size: below the 64 px that LPIPS was calibrated at nothing is resized, and the numbers
    compare with others at that size only; 16 px is the least. `weights` is a file with torchvision's VGG16 (.pth or
    .safetensors); without one it comes from torch hub's cache, or is downloaded into it.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        try:
            from lpips import LPIPS
        except ImportError as problem:
            raise ImportError(
                "perceptual='lpips' needs lpips: pip install 'maetok-lab[evaluation]'"
            ) from problem
        state = _vgg_weights(weights)
        with (
            warnings.catch_warnings()
        ):  # the package asks torchvision for VGG16 in a deprecated way
            warnings.simplefilter("ignore", UserWarning)
            self.model = LPIPS(net="vgg", pnet_rand=True, verbose=False)
        names = {f"features.{name.split('.', 1)[1]}": name for name in self.model.net.state_dict()}
        expected = {
            old: tuple(self.model.net.state_dict()[new].shape) for old, new in names.items()
        }
        given = {old: tuple(state[old].shape) for old in names if old in state}
        check_shapes(expected, given, f"{weights or 'the hub cache'} is not torchvision's VGG16")
        self.model.net.load_state_dict({new: state[old] for old, new in names.items()})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "VggLpips":
        """Stay in eval mode, whatever the module around it does: the package's heads have dropout."""
        return super().train(False)

    def stages(self, images: torch.Tensor) -> Iterable[torch.Tensor]:
        """VGG16's activations that LPIPS compares. (B, 3, H, W) -> five (B, D_i, h_i, w_i)"""
        if min(images.shape[-2:]) < 16:
            raise ValueError(
                f"VGG-LPIPS needs images of at least 16 px, not {tuple(images.shape[-2:])}"
            )
        return self.model.net(self.model.scaling_layer(images))

    def forward(self, images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """images, reference (B, 3, H, W) in [-1, 1] -> (B,); gradients reach `images` only"""
        with torch.no_grad():
            wanted = self.stages(reference)
        heads = [head.model[-1].weight[0] for head in self.model.lins]  # (D_i, 1, 1) each
        distances = [stage_distance(*stage) for stage in zip(self.stages(images), wanted, heads)]
        return torch.stack(distances).sum(0)


def stage_distance(
    mine: torch.Tensor, theirs: torch.Tensor, weights: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Weighted squared distance of unit-length feature vectors, averaged over places, in float32. (B, D, h, w) twice -> (B,)

    Unlike the package's own, its gradient is finite where all of a place's features are zero.
    """
    difference = nn.functional.normalize(mine.float(), dim=1) - nn.functional.normalize(
        theirs.float(), dim=1
    )
    return (difference.square() * weights).sum(1).mean((1, 2))


def _vgg_weights(weights: str | Path | None) -> dict[str, torch.Tensor]:
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    if weights is None:
        try:
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (
            OSError,
            RuntimeError,
        ) as problem:  # no network, no such host; a download with a wrong hash
            raise FileNotFoundError(
                f"torchvision's VGG16 is not in {torch.hub.get_dir()}/checkpoints and could not be fetched ({problem}); "
                f"download {url} elsewhere and give the file as LossConfig.perceptual_weights"
            ) from problem
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {path} (LossConfig.perceptual_weights); {url} is what is wanted"
        )
    try:
        return (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (
        Exception
    ) as problem:  # pickle, zip and safetensors each have their own kinds of broken file
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path} is no readable weights file: {reason}") from problem
