"""Any tokenizer under one interface: ours, the authors', diffusers' autoencoders, raw pixels.

What comes out is what our own give, (B, N, C), so that caching, analysis and evaluation take all.
"""

import copy
import math
from pathlib import Path
from typing import Any

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
from maetok_lab.runs import runs_root
from maetok_lab.tokenizer.imported import import_tokenizer, is_import_path
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.tokenizer.registry import source_of

DIFFUSERS_CLASSES = (
    *("AutoencoderDC", "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage"),
    *("AutoencoderRAE", "AutoencoderTiny"),
)
UNIT_RANGE = ("AutoencoderRAE",)  # its images are in [0, 1], those of all others in [-1, 1]
WITH_TIME = ("AutoencoderKLQwenImage",)  # a picture is a film of one frame
# sources that are no place of weights of ours
PIXELS = "pixels"
DIFFUSERS = "diffusers:"  # before OWNER/NAME[/subfolder] on the hub


def open_tokenizer(
    source: str | Path, *, image_size: int, root: str | Path | None = None
) -> AnyTokenizer:
    """Any tokenizer for images of `image_size` px, in eval mode on the CPU.

    `source` is a name of `tokenizers()`, what `load_tokenizer` takes, "pixels", a folder of
    diffusers', "diffusers:OWNER/NAME[/subfolder]" on the hub, or one's own "module:Class". Raises
    what their loaders raise, and ValueError for another image size.
    """
    if str(source) == PIXELS:
        return RawPixels(image_size)
    # a folder or a run of that name comes first
    if not Path(source).exists() and not (runs_root(root) / str(source)).exists():
        if is_import_path(source):
            return import_tokenizer(source, image_size=image_size)
        if "/" not in str(source):
            runs = [path.parent.name for path in runs_root(root).glob("*/config.json")]
            source = source_of(str(source), runs)
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


def own_image_size(source: str | Path, *, root: str | Path | None = None) -> int | None:
    """Pixels a side of the images that a tokenizer of ours or the authors' takes.

    None for what takes other sizes, and for what is not there.
    """
    if str(source).startswith(DIFFUSERS) or is_import_path(source):
        return None
    try:
        return load_tokenizer(source, root=root).config.image_size
    except (FileNotFoundError, ValueError):
        return None


def from_diffusers(
    source: str | Path, *, image_size: int, subfolder: str | None = None
) -> "GridTokenizer":
    """One of `DIFFUSERS_CLASSES` from a folder or the hub, safetensors only.

    Raises ImportError without diffusers (or what its class needs), FileNotFoundError for what
    cannot be had, ValueError for another class of model or an image size that it does not take.
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
        _check_installed(diffusers, name)
        model = getattr(diffusers, name).from_pretrained(
            source, use_safetensors=True, subfolder=subfolder
        )
    except OSError as problem:
        raise FileNotFoundError(
            f"{source} is no folder of diffusers' and could not be fetched from the hub ({problem})"
        ) from None
    return GridTokenizer(model, image_size)


def _check_installed(diffusers: Any, name: str) -> None:
    """Raise an ImportError that says what a class of diffusers' still needs."""
    if not hasattr(diffusers, name):
        raise ImportError(
            f"{name} needs a newer diffusers than {diffusers.__version__}: pip install -U diffusers"
        )
    # its encoder is one of transformers', which nothing else here needs
    if name == "AutoencoderRAE" and not diffusers.utils.is_transformers_available():
        raise ImportError(f"{name} needs transformers: pip install transformers")


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
        self.unit_range = type(model).__name__ in UNIT_RANGE
        self.with_time = type(model).__name__ in WITH_TIME
        grid = self._grid_of_blank()
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
        """(B, N, C) -> (B, 3, H, W) float32, clamped only where the model does it"""
        _check_latents(latents, self.latent_shape)
        return self._images(latents.transpose(1, 2).unflatten(2, self.grid)).float()

    def _grid(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w), as the model's own `encode` gives it"""
        if self.unit_range:
            images = (images + 1) / 2
        if self.with_time:
            images = images[:, :, None]
        output = self._model().encode(images)
        # a posterior is taken at its mean; models without one name their latents in two ways
        if hasattr(output, "latent_dist"):
            grid = output.latent_dist.mode()
        else:
            grid = output.latents if hasattr(output, "latents") else output.latent
        return grid[:, :, 0] if self.with_time else grid

    def _images(self, grid: Tensor) -> Tensor:
        """The inverse of `_grid`."""
        if self.with_time:
            grid = grid[:, :, None]
        images = self._model().decode(grid).sample
        if self.with_time:
            images = images[:, :, 0]
        return images * 2 - 1 if self.unit_range else images

    def _model(self) -> nn.Module:
        """The model; one with time keeps frames in attributes, so each call has its own copy.

        Several threads encode at once (`cores`). The copies share the weights.
        """
        return copy.copy(self.model) if self.with_time else self.model

    def _grid_of_blank(self) -> Tensor:
        """The grid of one blank image, which must come back at its size: only the model knows."""
        # what a model says of a size that it cannot halve often enough names its own tensors
        name = type(self.model).__name__
        size = self.image_size
        blank = next(self.model.parameters()).new_zeros(1, 3, size, size)
        with torch.inference_mode():
            try:
                grid = self._grid(blank)
                height = self._images(grid).shape[-2]
            except RuntimeError as problem:
                raise ValueError(
                    f"{name} cannot take images of {size} px ({problem}); set `image_size` to a "
                    "multiple of what it reduces them by"
                ) from None
        # RAE scales to its encoder's size and gives back its own; others round down
        if height != size:
            raise ValueError(
                f"{name} gives back images of {height} px for those of {size}; set `image_size` "
                f"to {height}"
            )
        return grid


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
