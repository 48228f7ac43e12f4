"""The authors' SiT weights as a DiffusionTransformer and back (hub: MAETok/sit-xl_maetok-b-128).

Our parameters carry their names, so that only sizes and the config have to be read.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maetok_lab.diffusion.model import DIFFUSION, DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.path import PATHS
from maetok_lab.hints import choose
from maetok_lab.runs.building import build_to_fit
from maetok_lab.runs.weights import plain_state


def from_released(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> DiffusionTransformer:
    """A DiffusionTransformer in eval mode that computes what the authors' SiT does.

    `state_dict` may be a training checkpoint's. Sizes come from the tensors; keys of `config` (the
    hub's config.json, or our short names) that contradict them raise ValueError, unknown ones are
    ignored. Tensors that are missing, unexpected or misshapen raise ValueError.
    """
    state_dict = plain_state(state_dict)
    # the config may only repeat what the tensors say, in the authors' words or in ours
    sizes = _sizes(state_dict)
    facts = sizes | {
        "hidden_size": sizes["width"],
        "input_size": sizes["num_tokens"],
        "in_channels": sizes["latent_dim"],
        "vae_1d": True,  # latents are tokens in a row, not a grid
    }
    for key, fact in facts.items():
        if key in config and config[key] != fact:
            raise ValueError(
                f"the config says {key} = {config[key]!r}, but the tensors say {fact!r}"
            )

    # heads leave no trace in the tensors
    width = sizes.pop("width")
    depth = sizes.pop("depth")
    heads = config.get("num_heads") or _heads(width, depth)
    shape = DiffusionConfig(width=width, depth=depth, num_heads=heads)
    model = build_to_fit(lambda: DiffusionTransformer(shape, **sizes), state_dict, "released SiT")
    # the authors write "Linear", we "linear"
    model.trained_path = str(config.get("path_type", "linear")).lower()
    choose(model.trained_path, PATHS, "path_type")
    return model.eval()


def to_released(model: DiffusionTransformer) -> dict[str, Tensor]:
    """The weights under the authors' names; ValueError for a model that their SiT cannot be."""
    config = model.config
    sit = DiffusionConfig(width=config.width, depth=config.depth, num_heads=config.num_heads)
    if config != sit or model.trained_prediction != "velocity":
        raise ValueError(
            "only SiT (LayerNorm, GELU, fixed 1-D sines, no QK-norm) that predicts a velocity has"
            f" a released form, not {config} that predicts {model.trained_prediction}"
        )
    return dict(model.state_dict())


def _sizes(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes say: width, depth, and the three sizes that come from the latents."""
    # the authors' names; one that is missing says that these weights are of something else
    try:
        width, latent_dim = state_dict["x_embedder.weight"].shape
        num_tokens = state_dict["pos_embed"].shape[1]
        num_classes = len(state_dict["y_embedder.embedding_table.weight"]) - 1
    except KeyError as missing:
        raise ValueError(
            f"these are no released SiT weights: the tensor {missing} is missing"
        ) from None
    return {
        "width": width,
        "depth": count_blocks(state_dict),
        "num_tokens": num_tokens,
        "latent_dim": latent_dim,
        "num_classes": num_classes,
    }


def count_blocks(state_dict: Mapping[str, Tensor]) -> int:
    """The depth of a transformer, by the names of its tensors."""
    depth = 0
    for name in state_dict:
        if match := re.match(r"blocks\.(\d+)\.", name):
            depth = max(depth, int(match[1]) + 1)
    return depth


def _heads(width: int, depth: int) -> int:
    """The heads of the paper's SiT of this size."""
    for name, preset in DIFFUSION.items():
        if name.startswith("sit-") and (preset.width, preset.depth) == (width, depth):
            return preset.num_heads
    raise ValueError(
        f"the config has no num_heads, and no SiT of the paper has width {width} and depth {depth}"
    )
