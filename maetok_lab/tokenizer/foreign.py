"""Any tokenizer under one interface: ours, the authors', diffusers' autoencoders, raw pixels.

What comes out is what our own give, (B, N, C), so that caching, analysis and evaluation take all.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from maetok_lab.files import read_json
from maetok_lab.identity import (
    fingerprint_of,
    remember_name,
    tensors_fingerprint,
    weights_fingerprint,
)
from maetok_lab.layers.grid import grid_size, patchify, unpatchify
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.tokenizer.loading import load_tokenizer

DIFFUSERS_CLASSES = ("AutoencoderDC", "AutoencoderKL")
# sources that are no place of weights of ours
PIXELS = "pixels"
DIFFUSERS = "diffusers:"  # before OWNER/NAME[/subfolder] on the hub


def open_tokenizer(
    source: str | Path, *, image_size: int, root: str | Path | None = None
) -> AnyTokenizer:
    """Any tokenizer for images of `image_size` px, in eval mode on the CPU.

    `source` is what `load_tokenizer` takes, "pixels" for `RawPixels`, a folder of diffusers', or
    "diffusers:OWNER/NAME[/subfolder]" on the hub. Raises what their loaders raise, and ValueError
    for a tokenizer of another image size.
    """
    if str(source) == PIXELS:
        return RawPixels(image_size)
    if str(source).startswith(DIFFUSERS):
        owner, name, *folders = str(source).removeprefix(DIFFUSERS).split("/")
        subfolder = "/".join(folders) or None
        return from_diffusers(f"{owner}/{name}", image_size=image_size, subfolder=subfolder)

    # a folder that diffusers wrote names the class of its model
    config = Path(source) / "config.json"
    if config.exists() and "_class_name" in read_json(config):
        return from_diffusers(source, image_size=image_size)

    # ours, and the authors'
    tokenizer = load_tokenizer(source, root=root)
    if tokenizer.config.image_size != image_size:
        raise ValueError(
            f"{source} takes images of {tokenizer.config.image_size} px, not {image_size}; "
            "set `image_size` to that, or take another tokenizer"
        )
    return tokenizer


def from_diffusers(
    source: str | Path, *, image_size: int, subfolder: str | None = None
) -> "GridTokenizer":
    """AutoencoderKL or AutoencoderDC from a folder or the hub, safetensors only.

    Raises ImportError without diffusers, FileNotFoundError for what cannot be had, ValueError for
    another class of model.
    """
    try:
        import diffusers
    except ImportError as problem:
        raise ImportError(
            "diffusers' autoencoders need diffusers: pip install 'maetok-lab[evaluation]'"
        ) from problem
    # every autoencoder reads the config of any other
    try:
        config = diffusers.AutoencoderKL.load_config(source, subfolder=subfolder)
        name = config.get("_class_name")
        if name not in DIFFUSERS_CLASSES:
            raise ValueError(f"{source} holds a {name}, not one of {list(DIFFUSERS_CLASSES)}")
        model = getattr(diffusers, name).from_pretrained(
            source, use_safetensors=True, subfolder=subfolder
        )
    except OSError as problem:
        raise FileNotFoundError(
            f"{source} is no folder of diffusers' and could not be fetched from the hub ({problem})"
        ) from None
    return GridTokenizer(model, image_size)


class GridTokenizer(nn.Module):
    """A diffusers autoencoder as a tokenizer: its grid of latents (B, C, h, w) as (B, h w, C).

    Tokens are row-major. Latents are raw: `scaling_factor` and the like are not applied, since
    every cache measures its own statistics.
    """

    def __init__(self, model: nn.Module, image_size: int):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.image_size = image_size
        remember_name(self, tensors_fingerprint(model.state_dict()))
        # only the model knows what grid it gives: one blank image tells
        with torch.inference_mode():
            grid = self._grid(next(model.parameters()).new_zeros(1, 3, image_size, image_size))
        self.grid = tuple(grid.shape[2:])
        self.latent_shape = (math.prod(self.grid), grid.shape[1])
        self.eval()

    @property
    def fingerprint(self) -> str:
        """A name for what it computes: a hash of its weights as they are now, and of its config."""
        # what diffusers adds to a config, such as the folder it was read from, changes no latents
        config = getattr(self.model, "config", {})
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        name = type(self.model).__name__
        return fingerprint_of([name, self.image_size, settings, weights_fingerprint(self.model)])

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], at the size it was opened for -> (B, N, C) float32"""
        _check_images(images, self.image_size)
        return self._grid(images).flatten(2).transpose(1, 2).float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3, H, W) float32, not clamped"""
        _check_latents(latents, self.latent_shape)
        return self.model.decode(latents.transpose(1, 2).unflatten(2, self.grid)).sample.float()

    def _grid(self, images: Tensor) -> Tensor:
        output = self.model.encode(images)
        if hasattr(output, "latent_dist"):  # KL has a posterior, taken at its mean; DC has none
            return output.latent_dist.mode()
        return output.latent


class RawPixels(nn.Module):
    """The null case: tokens are patches of pixels. What a latent space must be better than."""

    def __init__(self, image_size: int, patch_size: int = 4):
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.grid = grid_size(image_size, image_size, patch_size)
        self.latent_shape = (math.prod(self.grid), 3 * patch_size**2)
        self.eval()

    @property
    def fingerprint(self) -> str:
        """A name for what it computes, as tokenizers with weights have one."""
        return fingerprint_of([PIXELS, self.image_size, self.patch_size])

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, patches, 3 patch_size^2)"""
        _check_images(images, self.image_size)
        return patchify(images, self.patch_size)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`."""
        _check_latents(latents, self.latent_shape)
        return unpatchify(latents, self.grid, self.patch_size)


def _check_images(images: Tensor, image_size: int) -> None:
    if tuple(images.shape[1:]) != (3, image_size, image_size):
        raise ValueError(
            f"images must be (B, 3, {image_size}, {image_size}), not {tuple(images.shape)}"
        )


def _check_latents(latents: Tensor, shape: tuple[int, int]) -> None:
    if tuple(latents.shape[1:]) != shape:
        raise ValueError(f"latents must be (B, {shape[0]}, {shape[1]}), not {tuple(latents.shape)}")
