"""The authors' tokenizer weights under our names and back: MAETok's and SoftVQ's on the hub.

Both are of one code, and their tensors say which parts of it one is made of: mixed RoPE (MAETok) or
absolute positions alone (SoftVQ), a decoder that latents modulate (MAETok) or a plain one with
DINOv2's class token and LayerScale (SoftVQ), codebooks (SoftVQ). SoftVQ's form was read in that
code and in its config for softvq-l-64. Its weights were never opened here: that the smaller ones
and those of 512 px differ in sizes alone is inferred.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maetok_lab.runs.weights import check_shapes, plain_state, shapes_of
from maetok_lab.tokenizer.bottlenecks import TEMPERATURE
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
    ("decoder.model.cls_token", "decoder.class_token"),
    ("decoder.model.pos_embed", "decoder.positions.absolute"),
    ("decoder.model.norm.adaLN_modulation.1", "decoder.norm_modulation.linear"),
    ("decoder.model.", "decoder."),
    ("decoder.to_pixel.model", "to_pixels"),
    ("quantize.embedding", "bottleneck.codebook"),
]
# Ours that the skeleton's rules ("...model.") would catch, but that lie outside of it in theirs.
OUTSIDE = re.compile(r"(encoder|decoder)\.(latent_tokens|mask_token)$")
# Stored by them and computed by us: the places of patches, for RoPE.
COORDINATES = re.compile(r"(encoder|decoder)\.freqs_t_[xy]")
# Which codes SoftVQ's training chose last: stored, and used for a number in its log alone.
USAGE = "quantize.codebook_used"
LAST_CODES = 65_536  # of each codebook
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
    if USAGE not in state_dict:
        expected.pop(USAGE, None)  # their training stores it by default, but need not
    check_shapes(expected, shapes_of(state_dict), "released tokenizer")

    tokenizer = Tokenizer(shape)
    # beside the weights, not among them: only `to_released` wants them back
    unused = _unused_shapes(shape)
    tokenizer.unused = {name: state_dict[name] for name in unused if name in state_dict}
    tensors = {}
    for name, value in state_dict.items():
        if name not in unused and not COORDINATES.fullmatch(name):
            tensors[_our_name(name)] = value
    if shape.bottleneck == "softvq":
        tensors["bottleneck.codebook"] = tensors["bottleneck.codebook"].flatten(0, 1)
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()


def to_released(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The same weights under the authors' names, exactly those that the hub's files have.

    What nobody uses is zero in a tokenizer that does not come from them. Raises ValueError for one
    that their model cannot express.
    """
    _check_expressible(tokenizer.config)

    # our weights, but for the encoder's mask token, which the hub's files do not have
    tensors = {}
    for name, value in tokenizer.state_dict().items():
        if name != "encoder.mask_token":
            tensors[_their_name(name)] = value

    # theirs has an axis for the codebooks, ours has them one after the other
    config = tokenizer.config
    if config.bottleneck == "softvq":
        codebooks = tensors["quantize.embedding"].unflatten(0, (config.codebooks, -1))
        tensors["quantize.embedding"] = codebooks

    # what nobody uses, as it came, or zeros of its shape
    device = tokenizer.to_latents.weight.device
    unused = getattr(tokenizer, "unused", None)
    if unused is None:
        unused = {name: torch.zeros(shape) for name, shape in _unused_shapes(config).items()}
    for name, value in unused.items():
        tensors[name] = value.to(device)

    # the places of patches, where they are rotated by them: x is the column, y the row
    if "rope" in config.encoder.positions:
        down, across = config.grid
        index = torch.arange(down * across, device=device)
        for tower in ("encoder", "decoder"):
            tensors[f"{tower}.freqs_t_x"] = (index % across).float()
            tensors[f"{tower}.freqs_t_y"] = (index // across).float()
    return tensors


def _check_expressible(config: TokenizerConfig) -> None:
    """ValueError that lists everything in which a tokenizer differs from theirs."""
    positions = (config.encoder.positions, config.decoder.positions)
    ropes = {tower.rope for tower in (config.encoder, config.decoder) if "rope" in tower.positions}
    alike = {
        "class_token": config.class_token,
        # their absolute positions count one, whether it is there or not
        "decoder_class_token": config.decoder_class_token or config.decoder.positions != "ape",
        "layer_scale": config.layer_scale,
        # their modulated blocks have none, their plain ones have
        "decoder_layer_scale": config.decoder_modulation or config.decoder_layer_scale,
        "latent_tokens": config.latent_tokens == "learnable",
        "bottleneck": config.bottleneck in ("ae", "softvq"),
        "overlap": not config.overlap,
        "refine": not config.refine,
        "positions": positions in (("rope+ape", "rope"), ("ape", "ape")),
        "rope": ropes <= {"mixed"},
    }
    if not all(alike.values()):
        differences = ", ".join(name for name, same in alike.items() if not same)
        raise ValueError(
            "only tokenizers built like maetok-b-128 or softvq-l-64 have a released form; "
            f"this one differs in {differences}"
        )


def _unused_shapes(config: TokenizerConfig) -> dict[str, tuple[int, ...]]:
    """What they store and nobody uses: their decoder's skeleton brought it along, but for USAGE.

    Of what nothing uses, `decoder.norm_modulation` alone is in our models too (`LatentDecoder`).
    """
    width = config.decoder.width
    shapes: dict[str, tuple[int, ...]] = {}
    if config.decoder.positions == "rope":
        shapes["decoder.model.pos_embed"] = (1, 1 + math.prod(config.grid), width)
    shapes["decoder.model.patch_embed.proj.weight"] = (width, 3, *2 * (config.patch_size,))
    shapes["decoder.model.patch_embed.proj.bias"] = (width,)
    if config.bottleneck == "softvq":
        shapes[USAGE] = (config.codebooks, LAST_CODES)
    return shapes


def released_config(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TokenizerConfig:
    """Our config for released tensors. Raises ValueError where `config` says otherwise."""
    # A part is theirs if any of its tensors is there: what it lacks of the others is then missing.
    rope = any(re.match(r"(encoder|decoder)\.freqs", name) for name in state_dict)
    modulation = any(".adaLN_modulation." in name for name in state_dict)
    bottleneck: dict[str, Any] = {}
    try:
        width, _, patch_size, _ = state_dict["encoder.model.patch_embed.proj.weight"].shape
        patches = state_dict["encoder.model.pos_embed"].shape[1] - 1  # one is the class token's
        latent_dim = len(state_dict["quant_conv.bias"])
        num_latent_tokens = state_dict["encoder.latent_tokens"].shape[1]
        decoder_width = state_dict["decoder.mask_token"].shape[-1]
        if any(name.startswith("quantize.") for name in state_dict):
            codebooks, codes = state_dict["quantize.embedding"].shape[:2]
            bottleneck = {"bottleneck": "softvq", "codebooks": codebooks, "codes": codes}
    except KeyError as missing:
        raise ValueError(
            f"these are no released tokenizer weights: the tensor {missing} is missing"
        ) from None

    # MAETok's paper has RoPE alone in its encoder, the released code both
    encoder = _tower("encoder", width, state_dict, config)
    decoder = _tower("decoder", decoder_width, state_dict, config)
    if rope:
        encoder = dataclasses.replace(encoder, positions="rope+ape", rope="mixed")
        decoder = dataclasses.replace(decoder, rope="mixed")
    else:
        encoder = dataclasses.replace(encoder, positions="ape")
        decoder = dataclasses.replace(decoder, positions="ape")
    # a decoder without blocks lacks all of them, which is said where weights are loaded
    has_class_token = not rope or "decoder.model.cls_token" in state_dict
    layer_scale = None if modulation or not decoder.depth else 1e-5
    shape = TokenizerConfig(
        image_size=math.isqrt(patches) * patch_size,
        patch_size=patch_size,
        num_latent_tokens=num_latent_tokens,
        latent_dim=latent_dim,
        encoder=encoder,
        decoder=decoder,
        decoder_modulation=modulation,
        class_token=True,
        decoder_class_token=has_class_token and decoder.depth > 0,
        # only where they start: the weights replace them
        layer_scale=1e-5,
        decoder_layer_scale=layer_scale,
        rope_theta=float(config.get("rope_theta", 10.0)),
        **bottleneck,
    )
    for key, fact in _facts(shape).items():
        if key in config and config[key] != fact:
            raise ValueError(
                f"the config says {key} = {config[key]!r}, but the tensors say {fact!r}"
            )
    return shape


def _facts(shape: TokenizerConfig) -> dict[str, Any]:
    """What a config must say, if anything: the hub's keys, the short ones of the test fixture."""
    facts: dict[str, Any] = {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "enc_patch_size": shape.patch_size,
        "dec_patch_size": shape.patch_size,
        "num_latent_tokens": shape.num_latent_tokens,
        "latent_dim": shape.latent_dim,
        "codebook_embed_dim": shape.latent_dim,
        "width": shape.encoder.width,
        "depth": shape.encoder.depth,
        "dec_cls_token": shape.decoder_class_token,
        "decoder_cls_token": shape.decoder_class_token,
    }
    # without either their code rotates by frequencies that it does not store
    if "rope" in shape.decoder.positions:
        facts |= {"use_rope": True, "rope_mixed": True}
    else:
        facts |= {"use_rope": False, "use_ape": True}
    # an autoencoder's config has these too, but nothing reads them there
    if shape.bottleneck == "softvq":
        facts |= {
            "num_codebooks": shape.codebooks,
            "codebook_size": shape.codes,
            "codebook_l2_norm": True,
            "tau": TEMPERATURE,
        }
    return facts


def _tower(
    name: str, width: int, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> TowerConfig:
    """The size of one of their transformers, checked against the model's name in `config`."""
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
    return TowerConfig(width=width, depth=depth, num_heads=heads)


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
