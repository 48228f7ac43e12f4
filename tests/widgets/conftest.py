"""A small studio's parts, without a browser or a kernel."""

import io

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def pixels():
    """`pixels(png)`: the uint8 (h, w, 3) picture that a widget's PNG bytes hold."""

    def decode(png: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    return decode


@pytest.fixture(scope="session")
def small_images():
    """Twelve images of blobs on white (12, 3, 64, 64): flat, soft and busy patches."""
    draw = torch.Generator().manual_seed(0)
    images = torch.ones(12, 3, 64, 64)
    images[:, :, 8:56, 8:40] = torch.rand(12, 3, 1, 1, generator=draw) * 2 - 1
    images[:, :, 24:48, 24:60] = torch.rand(12, 3, 24, 36, generator=draw) * 2 - 1
    return images
