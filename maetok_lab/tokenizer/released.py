"""The authors' tokenizer weights under our names and back (MAETok/maetok-b-128 on the hub)."""

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maetok_lab.runs.weights import check_shapes, plain_state, shapes_of
from maetok_lab.tokenizer.config import TokenizerConfig, TowerConfig
from maetok_lab.tokenizer.model import Tokenizer

# Theirs and ours, in order: the first pattern that matches the start of a name is replaced.
NAMES = [
    ("encoder.latent_pos_embed", "encoder.latent_positions"),
    ("encoder.freqs", "encoder.positions.rope.freqs"),
    ("encoder.model.cls_token", "encoder.class_token"),
    ("encoder.model.pos_embed", "encoder.positions.absolute"),
    ("encoder.model.patch_embed.proj", "encoder.patch_embed"),
    ("encoder.model.", "encoder."),
    ("quant_conv", "to_latents"),
    ("post_quant_conv", "decoder.from_latents"),
    ("decoder.latent_pos_embed", "decoder.latent_positions"),
    ("decoder.freqs", "decoder.positions.rope.freqs"),
    ("decoder.model.norm.adaLN_modulation.1", "decoder.norm_modulation.linear"),
    ("decoder.model.", "decoder."),
    ("decoder.to_pixel.model", "to_pixels"),
]
# Ours that the skeleton's rules ("...model.") would catch, but that lie outside of it in theirs.
OUTSIDE = re.compile(r"(encoder|decoder)\.(latent_tokens|mask_token)$")
# Stored by them and computed by us: the places of patches, for RoPE.
COORDINATES = re.compile(r"(encoder|decoder)\.freqs_t_[xy]")
# Stored by them and used by nobody: their decoder's skeleton brought them along. Of what nothing
# uses, `decoder.norm_modulation` alone is in our models too (see `LatentDecoder`).
UNUSED = (
    "decoder.model.pos_embed",
    "decoder.model.patch_embed.proj.weight",
    "decoder.model.patch_embed.proj.bias",
)
# Stored while they trained and used for nothing after: targets, and what decoded latents to them.
# `load_auxiliary` has no place for these: their auxiliary decoders are built in another way.
TRAINING = re.compile(
    r"(decoder|post_quant_conv|to_pixel)_\w+\.|(repa|clip)_model\.|projection\.|hog_generator\."
    r"|(clip_)?(de_)?scale\."
)
SIZES = {"base": (768, 12), "large": (1024, 24)}  # width and depth, by a word in a timm name
HEADS = {384: 6, 768: 12, 1024: 16}  # of ViT-S, -B and -L, by their width


def from_released(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tokenizer:
    """A Tokenizer in eval mode that computes what the authors' does; the tensors say its sizes.

    `state_dict` may be a training checkpoint's. `config` is the hub's config.json: unknown keys are
    ignored. Raises ValueError for keys that contradict the tensors, for a number of heads that
    nothing says, and for tensors that are missing, unexpected or misshapen.
    """
    state_dict = _without_training_parts(plain_state(state_dict))
    shape = released_config(state_dict, config)

    # The hub's files have no encoder mask token: nothing is masked at inference. Ours is zero then.
    mask_token = torch.zeros(1, 1, shape.encoder.width)
    state_dict = {"encoder.mask_token": mask_token} | state_dict
    # without memory at first: names alone can claim a hundred blocks
    with torch.device("meta"):
        expected = shapes_of(to_released(Tokenizer(shape)))
    expected |= shapes_of({"encoder.mask_token": mask_token})
    check_shapes(expected, shapes_of(state_dict), "released tokenizer")

    tokenizer = Tokenizer(shape)
    # beside the weights, not among them: only `to_released` wants them back
    tokenizer.unused = {name: state_dict[name] for name in UNUSED if name in state_dict}
    tensors = {}
    for name, value in state_dict.items():
        if name not in UNUSED and not COORDINATES.fullmatch(name):
            tensors[_our_name(name)] = value
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()


def to_released(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The same weights under the authors' names, exactly those that the hub's files have.

    What nobody uses is zero in a tokenizer that does not come from them. Raises ValueError for one
    that their model cannot express.
    """
    # everything in which a tokenizer may differ from theirs
    config = tokenizer.config
    alike = {
        "class_token": config.class_token,
        "layer_scale": config.layer_scale,
        "refine": not config.refine,
        "decoder_modulation": config.decoder_modulation,
        "bottleneck": config.bottleneck == "ae",
        "rope": {config.encoder.rope, config.decoder.rope} == {"mixed"},
    }
    if not all(alike.values()):
        differences = ", ".join(name for name, same in alike.items() if not same)
        raise ValueError(
            "only tokenizers built like maetok-b-128 (plain, mixed RoPE, modulated decoder) have a "
            f"released form; this one differs in {differences}"
        )

    # our weights, but for the encoder's mask token, which the hub's files do not have
    tensors = {}
    for name, value in tokenizer.state_dict().items():
        if name != "encoder.mask_token":
            tensors[_their_name(name)] = value

    # what nobody uses, as it came, or zeros of its shape
    device = tokenizer.to_latents.weight.device
    down, across = config.grid
    width = config.decoder.width
    kernel = (width, 3, config.patch_size, config.patch_size)
    unused = getattr(tokenizer, "unused", {})
    for name, shape in zip(UNUSED, [(1, 1 + down * across, width), kernel, (width,)]):
        tensors[name] = unused.get(name, torch.zeros(shape)).to(device)

    # the places of patches: x is the column, y the row
    index = torch.arange(down * across, device=device)
    for tower in ("encoder", "decoder"):
        tensors[f"{tower}.freqs_t_x"] = (index % across).float()
        tensors[f"{tower}.freqs_t_y"] = (index // across).float()
    return tensors


def released_config(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TokenizerConfig:
    """Our config for released tensors. Raises ValueError where `config` says otherwise."""
    try:
        width, _, patch_size, _ = state_dict["encoder.model.patch_embed.proj.weight"].shape
        patches = state_dict["encoder.model.pos_embed"].shape[1] - 1  # one is the class token's
        latent_dim = len(state_dict["quant_conv.bias"])
        num_latent_tokens = state_dict["encoder.latent_tokens"].shape[1]
        decoder_width = state_dict["decoder.mask_token"].shape[-1]
    except KeyError as missing:
        raise ValueError(
            f"these are no released tokenizer weights: the tensor {missing} is missing"
        ) from None
    image_size = math.isqrt(patches) * patch_size
    encoder = _tower("encoder", width, state_dict, config)
    decoder = _tower("decoder", decoder_width, state_dict, config)

    # the hub's keys, and the short ones of the test fixture
    facts = {
        "image_size": image_size,
        "patch_size": patch_size,
        "enc_patch_size": patch_size,
        "dec_patch_size": patch_size,
        "num_latent_tokens": num_latent_tokens,
        "latent_dim": latent_dim,
        "codebook_embed_dim": latent_dim,
        "width": width,
        "depth": encoder.depth,
        "use_rope": True,
        "rope_mixed": True,
        "dec_cls_token": False,
        "decoder_cls_token": False,
    }
    for key, fact in facts.items():
        if key in config and config[key] != fact:
            raise ValueError(
                f"the config says {key} = {config[key]!r}, but the tensors say {fact!r}"
            )
    return TokenizerConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_latent_tokens=num_latent_tokens,
        latent_dim=latent_dim,
        # the paper has RoPE alone in its encoder, the released code both
        encoder=dataclasses.replace(encoder, positions="rope+ape"),
        decoder=decoder,
        class_token=True,
        layer_scale=1e-5,  # only where it starts: the weights replace it
        rope_theta=float(config.get("rope_theta", 10.0)),
    )


def _tower(
    name: str, width: int, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> TowerConfig:
    """The config of one of their transformers, checked against the model's name in `config`."""
    blocks = re.compile(rf"{name}\.model\.blocks\.(\d+)\.")
    numbers = [int(match[1]) for match in map(blocks.match, state_dict) if match]
    depth = 1 + max(numbers, default=-1)
    model = str(config.get(f"{name}_model", ""))
    for word, size in SIZES.items():
        if word in model and size != (width, depth):
            raise ValueError(
                f"the config says {name}_model = {model!r}, but the tensors are {(width, depth)}"
            )
    # tensors do not say how many heads there are, but those of a standard ViT have 64 channels each
    heads = config.get("num_heads") or HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"nothing says how many heads the {name} of width {width} has: put num_heads into the "
            "config (config.json, beside a .pt file too)"
        )
    return TowerConfig(width=width, depth=depth, num_heads=heads, rope="mixed")


def _without_training_parts(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's own tensors; a warning says which parts were left out."""
    own = {}
    parts = {}  # in order, each once
    for name, value in state_dict.items():
        if TRAINING.match(name):
            parts[name.partition(".")[0]] = None
        else:
            own[name] = value
    if parts:
        warnings.warn(f"left out, used in training alone: {', '.join(parts)}", stacklevel=3)
    return own


def _our_name(name: str) -> str:
    for released, ours in NAMES:
        if name.startswith(released):
            name = ours + name[len(released) :]
            break
    return re.sub(r"^(decoder\.blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation.linear.", name)


def _their_name(name: str) -> str:
    name = re.sub(r"^(decoder\.blocks\.\d+)\.modulation\.linear\.", r"\1.adaLN_modulation.1.", name)
    for released, ours in NAMES:
        if name.startswith(ours) and not (released.endswith("model.") and OUTSIDE.match(name)):
            return released + name[len(ours) :]
    return name
