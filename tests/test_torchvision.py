"""The real torchvision and timm run beside whatever torch is installed."""

import subprocess
import sys

import torch

import maetok_lab  # noqa: F401
from maetok_lab._torchvision import make_importable


def test_the_real_torchvision_runs_a_model():
    import torchvision

    model = torchvision.models.squeezenet1_1(weights=None).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert torchvision.utils.make_grid(torch.zeros(4, 3, 8, 8), padding=0, nrow=2).shape == (
        3,
        16,
        16,
    )


def test_the_real_timm_runs_a_model():
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_calling_twice_is_harmless():
    library = make_importable()
    assert make_importable() is library
    # even without the cache: the operators are there, nothing is declared again
    make_importable.__wrapped__()
    assert hasattr(torch.ops.torchvision, "nms")


def test_importing_the_package_does_not_import_torchvision():
    code = (
        "import sys, maetok_lab; assert 'torchvision' not in sys.modules; import torchvision, timm"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
