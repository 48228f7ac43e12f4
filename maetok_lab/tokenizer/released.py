"""The authors' tokenizer weights: their tensor names to ours and back (released code; MAETok/maetok-b-128 on the hub)."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from maetok_lab.runs.weights import check_shapes, load_strictly
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig

# In order: the first pattern that matches the start of a name is replaced.
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
COORDINATES = re.compile(r"(encoder|decoder)\.freqs_t_[xy]")
# Stored in the release, used by nothing: the decoder's skeleton brought them along.
UNUSED = (
    "decoder.model.pos_embed",
    "decoder.model.patch_embed.proj.weight",
    "decoder.model.patch_embed.proj.bias",
)
MODELS = {"base": (768, 12, 12), "large": (1024, 24, 16)}  # width, depth, heads


def from_released(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Tokenizer:
    """A Tokenizer in eval mode that computes what the authors' model does; sizes come from the tensors.

    `config` is the hub's config.json (or the short names of the test fixture): unknown keys are ignored, ones that
    contradict the tensors raise ValueError, as do tensors that are missing, unexpected or misshapen. The release stores no
    encoder mask token (nothing is masked at inference); ours is zero then.
    """
    tokenizer = Tokenizer(released_config(state_dict, config))
    tokenizer.unused = nn.Module()
    for name in UNUSED:
        if name in state_dict:
            tokenizer.unused.register_buffer(name.replace(".", "_"), state_dict[name].clone())
    check_shapes(_shapes(to_released(tokenizer)), _shapes(state_dict), "released tokenizer")
    tensors = {
        _our_name(name): value
        for name, value in state_dict.items()
        if name not in UNUSED and not COORDINATES.fullmatch(name)
    }
    unused = {f"unused.{name}": value for name, value in tokenizer.unused.state_dict().items()}
    masked = {"encoder.mask_token": torch.zeros_like(tokenizer.encoder.mask_token)}
    load_strictly(tokenizer, tensors | unused | masked, "released tokenizer")
    return tokenizer.eval()


def to_released(tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """The same weights under the authors' names; what their model stores but never uses is zero unless it came from them.

    Raises ValueError for a tokenizer that their model cannot express.
    """
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
        differs = ", ".join(name for name, same in alike.items() if not same)
        wanted = "only tokenizers built like maetok-b-128 (plain, mixed RoPE, modulated decoder) have a released form"
        raise ValueError(f"{wanted}; this one differs in {differs}")
    tensors = {}
    for name, value in tokenizer.state_dict().items():
        if name != "encoder.mask_token" and not name.startswith("unused."):
            tensors[_their_name(name)] = value
    down, across = config.grid
    width = config.decoder.width
    shapes = [
        (1, 1 + down * across, width),
        (width, 3, config.patch_size, config.patch_size),
        (width,),
    ]
    kept = getattr(tokenizer, "unused", nn.Module())
    for name, shape in zip(UNUSED, shapes):
        tensors[name] = getattr(
            kept, name.replace(".", "_"), torch.zeros(shape, device=value.device)
        )
    index = torch.arange(down * across, device=value.device)
    for tower in ("encoder", "decoder"):
        tensors[f"{tower}.freqs_t_x"] = (index % across).float()
        tensors[f"{tower}.freqs_t_y"] = (index // across).float()
    return tensors


def released_config(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> TokenizerConfig:
    """Our config for released tensors, with `config` checked against them."""
    try:
        width, _, patch_size, _ = state_dict["encoder.model.patch_embed.proj.weight"].shape
        patches = state_dict["encoder.model.pos_embed"].shape[1] - 1
        latent_dim, num_latent_tokens = (
            len(state_dict["quant_conv.bias"]),
            state_dict["encoder.latent_tokens"].shape[1],
        )
        decoder_width = state_dict["decoder.mask_token"].shape[-1]
    except KeyError as missing:
        raise ValueError(
            f"these are no released tokenizer weights: the tensor {missing} is missing"
        ) from None
    image_size = math.isqrt(patches) * patch_size
    encoder_depth, decoder_depth = (_depth(state_dict, tower) for tower in ("encoder", "decoder"))
    facts = {
        "image_size": image_size,
        "patch_size": patch_size,
        "enc_patch_size": patch_size,
        "dec_patch_size": patch_size,
        "num_latent_tokens": num_latent_tokens,
        "latent_dim": latent_dim,
        "codebook_embed_dim": latent_dim,
        "width": width,
        "depth": encoder_depth,
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
    for tower, size in (
        ("encoder", (width, encoder_depth)),
        ("decoder", (decoder_width, decoder_depth)),
    ):
        named = next(
            (MODELS[word] for word in MODELS if word in str(config.get(f"{tower}_model", ""))), None
        )
        if named and named[:2] != size:
            raise ValueError(
                f"the config says {tower}_model = {config[f'{tower}_model']!r}, but the tensors are {size}"
            )
    heads = config.get("num_heads", width // 64)
    return TokenizerConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_latent_tokens=num_latent_tokens,
        latent_dim=latent_dim,
        encoder=TowerConfig(
            width=width, depth=encoder_depth, num_heads=heads, positions="rope+ape", rope="mixed"
        ),
        decoder=TowerConfig(
            width=decoder_width,
            depth=decoder_depth,
            num_heads=config.get("num_heads", decoder_width // 64),
            rope="mixed",
        ),
        class_token=True,
        layer_scale=1e-5,
        rope_theta=float(config.get("rope_theta", 10.0)),
    )


def _depth(state_dict: Mapping[str, torch.Tensor], tower: str) -> int:
    numbers = [re.match(rf"{tower}\.model\.blocks\.(\d+)\.", name) for name in state_dict]
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def _our_name(name: str) -> str:
    for theirs, ours in NAMES:
        if name.startswith(theirs):
            name = ours + name[len(theirs) :]
            break
    return re.sub(r"^(decoder\.blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation.linear.", name)


def _their_name(name: str) -> str:
    name = re.sub(r"^(decoder\.blocks\.\d+)\.modulation\.linear\.", r"\1.adaLN_modulation.1.", name)
    for theirs, ours in NAMES:
        # A name that our rule for the skeleton would also catch belongs to the tower itself in the release.
        if name.startswith(ours) and not (theirs.endswith("model.") and _OUTSIDE.match(name)):
            return theirs + name[len(ours) :]
    return name


_OUTSIDE = re.compile(r"(encoder|decoder)\.(latent_tokens|mask_token)$")


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}
