"""The authors' SiT weights into a DiffusionTransformer and back (released code; MAETok/sit-xl_maetok-b-128 on the hub).

Our parameters carry their names, so that only sizes and the config have to be read.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from maetok_lab.config import choose
from maetok_lab.diffusion.model import DIFFUSION, DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.path import PATHS
from maetok_lab.runs.weights import load_strictly


def from_released(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> DiffusionTransformer:
    """A DiffusionTransformer in eval mode that computes what the authors' SiT does; sizes come from the tensors.

    `config` is the hub's config.json (or the short names of the test fixture): unknown keys are ignored, ones that
    contradict the tensors raise ValueError, as do tensors that are missing, unexpected or misshapen.
    """
    sizes = _sizes(state_dict)
    facts = sizes | {
        "hidden_size": sizes["width"],
        "input_size": sizes["num_tokens"],
        "in_channels": sizes["latent_dim"],
        "vae_1d": True,
    }
    for key, fact in facts.items():
        if key in config and config[key] != fact:
            raise ValueError(
                f"the config says {key} = {config[key]!r}, but the tensors say {fact!r}"
            )
    width, depth = sizes.pop("width"), sizes.pop("depth")
    heads = config["num_heads"] if "num_heads" in config else _heads(width, depth)
    model = DiffusionTransformer(
        DiffusionConfig(width=width, depth=depth, num_heads=heads), **sizes
    )
    load_strictly(model, state_dict, "released SiT")
    model.trained_path = str(config.get("path_type", "linear")).lower()
    choose(model.trained_path, PATHS, "path_type")
    return model.eval()


def to_released(model: DiffusionTransformer) -> dict[str, torch.Tensor]:
    """The weights under the authors' names. Raises ValueError for a model that their SiT cannot express."""
    config = model.config
    if config != DiffusionConfig(
        width=config.width, depth=config.depth, num_heads=config.num_heads
    ):
        raise ValueError(
            f"only SiT (LayerNorm, GELU, fixed 1-D sines, no QK-norm) has a released form, not {config}"
        )
    return dict(model.state_dict())


def _sizes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, int]:
    try:
        width, latent_dim = state_dict["x_embedder.weight"].shape
        num_tokens = state_dict["pos_embed"].shape[1]
        num_classes = len(state_dict["y_embedder.embedding_table.weight"]) - 1
    except KeyError as missing:
        raise ValueError(
            f"these are no released SiT weights: the tensor {missing} is missing"
        ) from None
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in state_dict]
    depth = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    return {
        "width": width,
        "depth": depth,
        "num_tokens": num_tokens,
        "latent_dim": latent_dim,
        "num_classes": num_classes,
    }


def _heads(width: int, depth: int) -> int:
    """Heads leave no trace in the tensors: those of the SiT of this size."""
    for name, preset in DIFFUSION.items():
        if name.startswith("sit-") and (preset.width, preset.depth) == (width, depth):
            return preset.num_heads
    raise ValueError(
        f"the config has no num_heads, and no SiT of the paper has width {width} and depth {depth}"
    )
