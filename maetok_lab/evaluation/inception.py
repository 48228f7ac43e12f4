"""FID's Inception network, through torch-fidelity: only its metrics carry the plain names."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from maetok_lab.evaluation.features import SPATIAL_CHANNELS
from maetok_lab.identity import DIGITS, file_hash
from maetok_lab.nets import FeatureNet, load_net
from maetok_lab.pictures import to_uint8


class Inception(nn.Module):
    """FID's InceptionV3 (2015-12-05) with TensorFlow's resizing to 299 px; always in eval mode."""

    name = "inception"
    input_size = 299

    def __init__(self, model: nn.Module, weight_hash: str):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.weight_hash = weight_hash

    def train(self, mode: bool = True) -> "Inception":
        """Stay in eval mode."""
        return super().train(False)

    def outputs(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Several of "features", "spatial" and "logits" in one pass, by name.

        images (B, 3, H, W) in [-1, 1] -> (B, D) each
        """
        # ADM's sFID looks at TensorFlow's mixed_6/conv, after its ReLU: a 17 x 17 map
        maps: list[Tensor] = []
        layer = self.model.Mixed_6d.branch1x1
        hook = layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            pooled, logits = self.model(to_uint8(images))
        finally:
            hook.remove()
        spatial = maps[0][:, :SPATIAL_CHANNELS].flatten(1)
        outputs = {"features": pooled, "spatial": spatial, "logits": logits}
        return {name: outputs[name] for name in names}

    def features(self, images: Tensor) -> Tensor:
        """Pooled features: images (B, 3, H, W) in [-1, 1] -> (B, 2048)."""
        return self.outputs(images, ["features"])["features"]

    def spatial(self, images: Tensor) -> Tensor:
        """Spatial features of sFID: (B, 3, H, W) -> (B, 2023)."""
        return self.outputs(images, ["spatial"])["spatial"]

    def logits(self, images: Tensor) -> Tensor:
        """Class logits without bias, for the inception score: (B, 3, H, W) -> (B, 1008)."""
        return self.outputs(images, ["logits"])["logits"]


def load_inception(weights: str | Path | None = None) -> Inception:
    """FID's network, its weights from a local file (torch-fidelity's .pth) or from its release.

    Raises ImportError without torch-fidelity, FileNotFoundError where the weights are not here and
    cannot be fetched.
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
    # torch-fidelity unpickles whatever the file holds: it gets a copy that was read as tensors only
    state = torch.load(path, weights_only=True, map_location="cpu")
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
    """A network for metrics: "inception", FID's own, or what `nets.load_net` takes.

    `weights` is a local file in place of the hub's; `input_size` is for all but Inception.
    """
    if name != "inception":
        return load_net(name, weights=weights, input_size=input_size)
    if input_size is not None:
        raise ValueError(f"Inception's input is always {Inception.input_size} px, not {input_size}")
    return load_inception(weights)


def _download(url: str) -> Path:
    """torch-fidelity's weights, from torch.hub's cache or into it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = path.stem.rsplit("-", 1)[1]  # the release has it in the file's name
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum, progress=False)
    except (OSError, RuntimeError) as problem:
        raise FileNotFoundError(
            f"FID's Inception weights are not here and could not be fetched ({problem}); "
            f"download {url} elsewhere and give the file as load_inception(weights=FILE)"
        ) from problem
    return path
