"""A tokenizer of one's own by its import path, "module:Class", checked against what all must have.

class Halves:  # in mine.py, beside the notebook: "mine:Halves"
    fingerprint, latent_shape = "halves-1", (256, 3)
    def encode(self, images): return avg_pool2d(images, 2).flatten(2).transpose(1, 2)
    def decode(self, latents): return interpolate(latents.mT.unflatten(2, (16, 16)), (32, 32))
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maetok_lab.hints import did_you_mean
from maetok_lab.protocols import AnyTokenizer

IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
NEEDS = {
    "fingerprint": "a string, another one for other weights (`lab.identity.weights_fingerprint`)",
    "latent_shape": "(tokens, channels) of one image",
    "encode": "encode(images (B, 3, H, W) in [-1, 1]) -> (B, tokens, channels)",
    "decode": "decode(latents (B, tokens, channels)) -> (B, 3, H, W)",
}


def is_import_path(source: str | Path) -> bool:
    """Whether `source` reads as "module:Class"; hub names and folders have slashes."""
    return IMPORT_PATH.fullmatch(str(source)) is not None


def import_tokenizer(source: str | Path, *, image_size: int) -> AnyTokenizer:
    """What "module:Class" makes, called with `image_size` if it takes that, else with nothing.

    The module is imported from the notebook's folder or wherever Python looks. In eval mode.
    Raises ImportError where there is none, ValueError with a line for each thing it lacks.
    """
    module_name, _, name = str(source).partition(":")
    module = _module(module_name)
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise ImportError(f"{module_name} has no {name}{did_you_mean(name, public)}")
    make = getattr(module, name)
    takes_size = "image_size" in inspect.signature(make).parameters
    tokenizer = make(image_size=image_size) if takes_size else make()
    if isinstance(tokenizer, nn.Module):
        tokenizer.eval()
    _check(tokenizer, str(source), image_size)
    return tokenizer


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        # what the module itself imports in vain is its own error
        if not f"{name}.".startswith(f"{problem.name}."):
            raise
        raise ImportError(
            f"there is no module {name!r}: put {name.replace('.', '/')}.py beside the notebook, or "
            "into a folder of sys.path"
        ) from None


def _check(tokenizer: Any, source: str, image_size: int) -> None:
    """Raise a ValueError unless it is a tokenizer and one blank image goes through it."""
    # all that lacks at once: whoever writes one mends it in one go
    lacking = [f"  {name}: {need}" for name, need in NEEDS.items() if not hasattr(tokenizer, name)]
    if lacking:
        raise ValueError(f"{source} is no tokenizer yet, it lacks\n" + "\n".join(lacking))

    # what is there may still give other shapes than it says
    images = torch.zeros(1, 3, image_size, image_size)
    with torch.inference_mode():
        latents = tokenizer.encode(images)
        expected = (1, *tokenizer.latent_shape)
        if tuple(latents.shape) != expected:
            raise ValueError(
                f"{source}: encode must give {expected}, as latent_shape says, not "
                f"{tuple(latents.shape)}"
            )
        shape = tuple(tokenizer.decode(latents).shape)
    if shape != tuple(images.shape):
        raise ValueError(f"{source}: decode must give {tuple(images.shape)} back, not {shape}")
