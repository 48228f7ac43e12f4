"""The Inception network of FID, through torch-fidelity: the only network whose metrics carry the plain names."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maetok_lab.evaluation.features import SPATIAL_CHANNELS
from maetok_lab.identity import DIGITS, file_hash
from maetok_lab.nets import FeatureNet, load_net
from maetok_lab.pictures import to_uint8


class Inception(nn.Module):
    """FID's InceptionV3 (2015-12-05) with TensorFlow's resizing to 299 px; always in eval mode."""

    name, input_size = "inception", 299

    def __init__(self, model: nn.Module, weight_hash: str):
        super().__init__()
        self.model, self.weight_hash = model.eval().requires_grad_(False), weight_hash

    def train(self, mode: bool = True) -> "Inception":
        """Stay in eval mode."""
        return super().train(False)

    def outputs(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Several of "features", "spatial" and "logits" in one pass: images (B, 3, H, W) in [-1, 1] -> name: (B, D)."""
        maps: list[Tensor] = []
        # TensorFlow's mixed_6/conv, after its ReLU: of its 17 x 17 map ADM's sFID takes the first 7 channels
        hook = self.model.Mixed_6d.branch1x1.register_forward_hook(
            lambda module, inputs, output: maps.append(output)
        )
        try:
            pooled, logits = self.model(to_uint8(images))
        finally:
            hook.remove()
        found = {
            "features": pooled,
            "spatial": maps[0][:, :SPATIAL_CHANNELS].flatten(1),
            "logits": logits,
        }
        return {name: found[name] for name in names}

    def features(self, images: Tensor) -> Tensor:
        """Pooled features: images (B, 3, H, W) in [-1, 1] -> (B, 2048)."""
        return self.outputs(images, ["features"])["features"]

    def spatial(self, images: Tensor) -> Tensor:
        """Spatial features of sFID: (B, 3, H, W) -> (B, 2023)."""
        return self.outputs(images, ["spatial"])["spatial"]

    def logits(self, images: Tensor) -> Tensor:
        """Class logits without bias, as the inception score uses them: (B, 3, H, W) -> (B, 1008)."""
        return self.outputs(images, ["logits"])["logits"]


def load_inception(weights: str | Path | None = None) -> Inception:
    """FID's network, its weights from a local file (torch-fidelity's .pth) or, without one, from torch-fidelity's
    release.

    Raises ImportError without torch-fidelity, FileNotFoundError where the weights are not here and cannot be fetched.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as problem:
        raise ImportError(
            "FID's network needs torch-fidelity: pip install 'maetok-lab[evaluation]'"
        ) from problem
    path = Path(weights) if weights else _download(URL_INCEPTION_V3)
    if not path.exists():
        raise FileNotFoundError(f"no Inception weights at {path}")
    # torch-fidelity unpickles whatever the file holds; so it gets a copy that was read as tensors only
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "weights.pth"
        torch.save(state, copy)
        model = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(copy),
        )
    return Inception(model, file_hash(path)[:DIGITS])


def load_metric_net(
    name: str, *, weights: str | Path | None = None, input_size: int | None = None
) -> Inception | FeatureNet:
    """A network for metrics: "inception" (FID's own), or what `nets.load_net` takes: a shipped one, or "timm:NAME".

    `weights` is a local file in place of the hub's; `input_size` is for all but Inception.
    """
    if name != "inception":
        return load_net(name, weights=weights, input_size=input_size)
    if input_size is not None:
        raise ValueError(f"Inception's input is always {Inception.input_size} px, not {input_size}")
    return load_inception(weights)


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=path.stem.rsplit("-", 1)[1], progress=False
            )
        except (OSError, RuntimeError) as problem:
            raise FileNotFoundError(
                f"FID's Inception weights are not here and could not be fetched ({problem}); download {url} elsewhere "
                "and give the file as load_inception(weights=FILE)"
            ) from problem
    return path
