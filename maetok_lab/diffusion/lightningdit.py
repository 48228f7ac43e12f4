"""The weights that hustvl/LightningDiT published, as a DiffusionTransformer.

What theirs does otherwise folds into the weights: norms with a factor, and time, which runs from
noise at 0 to data at 1.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.released import count_blocks
from maetok_lab.runs.building import build_to_fit
from maetok_lab.runs.weights import check_shapes, plain_state, shapes_of

PATCH_EMBED = "x_embedder.proj."  # of their names alone: they take images, we tokens
ROPE = "feat_rope."  # constants, which ours computes
NORM = re.compile(r"blocks\.\d+\.norm[12]\.weight|final_layer\.norm_final\.weight")


def from_lightningdit(state_dict: Mapping[str, Tensor]) -> DiffusionTransformer:
    """A model in eval mode with v(x, t) = -theirs(x, 1 - t); x (B, h * w, C), row by row.

    Latents are normalised by their `latents_stats.pt`; guiding the first 3 channels alone is up to
    their sampler. Raises ValueError for patches over 1, another RoPE, and tensors that do not fit
    (other norms or MLPs, no shifts).
    """
    state = plain_state(state_dict)
    config, sizes = _sizes(state)
    tensors = {}
    for name, value in state.items():
        if not name.startswith(ROPE):
            tensors[name.replace(PATCH_EMBED, "x_embedder.")] = value
    tensors["x_embedder.weight"] = tensors["x_embedder.weight"].flatten(1)  # 1 x 1 convolution

    # their norms have factors, ours none
    names = [name for name in tensors if NORM.fullmatch(name)]
    factors = {name: tensors.pop(name) for name in names}
    model = build_to_fit(lambda: DiffusionTransformer(config, **sizes), tensors, "LightningDiT")
    _check_rotation(model, state)
    places = _modulations(model)
    check_shapes(dict.fromkeys(places, (config.width,)), shapes_of(factors), "LightningDiT")

    # in float64: what is folded is rounded once
    with torch.no_grad():
        for name, (linear, part) in places.items():
            _fold_factor(factors[name], linear, part)
        _reverse_time(model)
    return model.eval()


def _sizes(state: Mapping[str, Tensor]) -> tuple[DiffusionConfig, dict[str, int]]:
    """What a model of theirs is made of; heads come from the width of a head that RoPE turns."""
    try:
        width, latent_dim, patch_size, _ = _four(state[f"{PATCH_EMBED}weight"].shape)
        num_tokens = state["pos_embed"].shape[1]
        head_dim = state[f"{ROPE}freqs_cos"].shape[1]  # of (N, head_dim), as the sines
        num_classes = len(state["y_embedder.embedding_table.weight"]) - 1
    except KeyError as missing:
        raise ValueError(
            f"these are no LightningDiT weights: the tensor {missing} is missing"
        ) from None
    if not head_dim or width % head_dim:
        raise ValueError(
            f"the RoPE of these weights turns heads of {head_dim} channels, into which a width of "
            f"{width} cannot be divided"
        )
    if patch_size != 1:
        raise ValueError(
            f"this LightningDiT has patches of {patch_size} x {patch_size} latents; only those of "
            "one latent a token (B/1, XL/1) can be loaded"
        )
    config = DiffusionConfig(
        width=width,
        depth=count_blocks(state),
        num_heads=width // head_dim,
        norm="rmsnorm",
        mlp="swiglu",
        positions="lightningdit",
        qk_norm="blocks.0.attn.q_norm.weight" in state,
    )
    return config, {"num_tokens": num_tokens, "latent_dim": latent_dim, "num_classes": num_classes}


def _check_rotation(model: DiffusionTransformer, state: Mapping[str, Tensor]) -> None:
    """ValueError for constants of another RoPE than the model's."""
    # each angle is stored twice, for both channels of a pair; weights may be stored in bf16
    names = (f"{ROPE}freqs_cos", f"{ROPE}freqs_sin")
    for name, ours in zip(names, model.rotation(torch.device("cpu"))):
        theirs = state[name][None, :, ::2].float()
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=0.01):
            raise ValueError(
                f"the RoPE of these weights is another than that of a grid of {model.num_tokens} "
                "tokens with theta 10000, which alone can be loaded"
            )


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        raise ValueError(
            f"{PATCH_EMBED}weight of LightningDiT is a convolution's (width, channels, 1, 1), not "
            f"{tuple(shape)}"
        )
    return shape


def _modulations(model: DiffusionTransformer) -> dict[str, tuple[nn.Linear, int]]:
    """By the name of each norm of theirs: what modulates it, and which part of that is a scale."""
    places = {"final_layer.norm_final.weight": (model.final_layer.adaLN_modulation[1], 1)}
    for index, block in enumerate(model.blocks):
        places[f"blocks.{index}.norm1.weight"] = (block.adaLN_modulation[1], 1)
        places[f"blocks.{index}.norm2.weight"] = (block.adaLN_modulation[1], 4)
    return places


def _fold_factor(factor: Tensor, linear: nn.Linear, part: int) -> None:
    """factor * (1 + scale) = 1 + (factor * (1 + scale) - 1); `part` says which rows are the scale.

    factor (D,), linear D -> 2 D or 6 D
    """
    factor = factor.double()
    weight = linear.weight.unflatten(0, (-1, len(factor)))[part]
    bias = linear.bias.unflatten(0, (-1, len(factor)))[part]
    weight.copy_(factor[:, None] * weight.double())
    bias.copy_(factor * (1 + bias.double()) - 1)


def _reverse_time(model: DiffusionTransformer) -> None:
    """The same model of 1 - t, and its velocity the other way.

    Sinusoids of 1 - t are rotated ones of t: cos((1 - t) f) = cos f cos(t f) + sin f sin(t f),
    sin((1 - t) f) = sin f cos(t f) - cos f sin(t f).
    """
    first = model.t_embedder.mlp[0]
    frequencies = model.t_embedder.frequencies.double()
    cos, sin = frequencies.cos(), frequencies.sin()
    of_cos, of_sin = first.weight.double().chunk(2, dim=1)  # each (D, 128)
    first.weight.copy_(torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1))
    last = model.final_layer.linear
    last.weight.neg_()
    last.bias.neg_()
