"""Perceptual distances: LPIPS on VGG16, and its form on the shipped SqueezeNet (no download)."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maetok_lab.nets import FeatureNet, load_net
from maetok_lab.runs.weights import check_shapes
from maetok_lab.tokenizer.losses import LossConfig


def make_perceptual(config: LossConfig) -> nn.Module | None:
    """The distance (images, reference) -> (B,) that a config names; None where it has no weight.

    Raises ImportError without the package, FileNotFoundError without the weights, ValueError for
    weights that do not fit.
    """
    if config.perceptual == "none" or not config.perceptual_weight:
        return None
    if config.perceptual == "lpips":
        return VggLpips(config.perceptual_weights)
    return SqueezePerceptual(load_net("squeezenet1_1", weights=config.perceptual_weights))


class SqueezePerceptual(nn.Module):
    """LPIPS' equation 1 (Zhang et al. 2018) on SqueezeNet, with every channel weight 1.

    It is not LPIPS, and not comparable with it.
    """

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """images, reference (B, 3, H, W) in [-1, 1] -> (B,); gradients reach `images` only"""
        with torch.no_grad():
            targets = self.net.stages(reference)
        stages = zip(self.net.stages(images), targets)
        return torch.stack([stage_distance(*stage) for stage in stages]).sum(0)


class VggLpips(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018) on VGG16, with the package's learned channel weights.

    `weights` is a file with torchvision's VGG16 (.pth or .safetensors); without one it comes from
    torch hub's cache, or is downloaded into it.
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

        # The package asks torchvision for an untrained VGG16 in a deprecated way.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.model = LPIPS(net="vgg", pnet_rand=True, verbose=False)

        # It splits torchvision's features.0 .. features.28 into slices, under the same numbers.
        vgg = self.model.net
        expected = {}
        tensors = {}
        for name, value in vgg.state_dict().items():
            original = f"features.{name.split('.', 1)[1]}"
            expected[original] = tuple(value.shape)
            if original in state:
                tensors[name] = state[original]
        shapes = {name: tuple(state[name].shape) for name in expected if name in state}
        check_shapes(expected, shapes, f"{weights or 'the hub cache'} is not torchvision's VGG16")
        vgg.load_state_dict(tensors)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "VggLpips":
        """Stay in eval mode, whatever the module around it does: the heads have dropout."""
        return super().train(False)

    def stages(self, images: Tensor) -> Iterable[Tensor]:
        """The VGG16 activations that LPIPS compares. (B, 3, H, W) -> five (B, D_i, h_i, w_i)"""
        # Nothing is resized: below the 64 px that LPIPS was calibrated at, its numbers compare with
        # others at the same size only. Below 16 px the last stage has no place left.
        if min(images.shape[-2:]) < 16:
            raise ValueError(
                f"VGG-LPIPS needs images of at least 16 px, not {tuple(images.shape[-2:])}"
            )
        return self.model.net(self.model.scaling_layer(images))

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """images, reference (B, 3, H, W) in [-1, 1] -> (B,); gradients reach `images` only"""
        with torch.no_grad():
            targets = self.stages(reference)
        heads = [head.model[-1].weight[0] for head in self.model.lins]  # (D_i, 1, 1) each
        stages = zip(self.stages(images), targets, heads)
        return torch.stack([stage_distance(*stage) for stage in stages]).sum(0)


def stage_distance(features: Tensor, target: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Weighted squared distance of unit-length feature vectors, averaged over places, in float32.

    features, target (B, D, h, w) -> (B,)
    """
    # normalize()'s floor keeps the gradient finite where all features of a place are zero; the
    # package's own distance has none
    features = nn.functional.normalize(features.float(), dim=1)
    difference = features - nn.functional.normalize(target.float(), dim=1)
    return (difference.square() * weights).sum(1).mean((1, 2))


def _vgg_weights(weights: str | Path | None) -> dict[str, Tensor]:
    """torchvision's VGG16 from a file, torch hub's cache or the network."""
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    if weights is None:
        # no network or no such host raise OSError; a download with a wrong hash RuntimeError
        try:
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as problem:
            raise FileNotFoundError(
                f"torchvision's VGG16 is not in {torch.hub.get_dir()}/checkpoints and could not be "
                f"fetched ({problem}); download {url} elsewhere and give the file as "
                "LossConfig.perceptual_weights"
            ) from problem

    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {path} (LossConfig.perceptual_weights); {url} is what is needed"
        )
    # pickle, zip and safetensors each have their own kinds of broken file
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path} is no readable weights file: {reason}") from problem
