"""Diffusion transformers from runs, local folders of weights and the hub, and into such folders."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maetok_lab.config import from_json, to_json
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.lightningdit import PATCH_EMBED, from_lightningdit
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, describe_model
from maetok_lab.diffusion.released import from_released
from maetok_lab.identity import check_owner
from maetok_lab.runs import Run, find_run
from maetok_lab.runs.building import build_to_fit, reading
from maetok_lab.runs.weights import load_strictly, read_weights, stored_as, write_weights


def load_diffusion(
    source: str | Path,
    *,
    ema: float | None = None,
    step: int | None = None,
    root: str | Path | None = None,
) -> DiffusionTransformer:
    """A diffusion model in eval mode on the CPU, from a run, a folder or .pt file of weights or the
    hub; SiT's and LightningDiT's too.

    `ema` chooses among a run's rates (the first), `step` among its checkpoints (the last).
    Raises FileNotFoundError for an unknown source, ValueError for what a run lacks and for weights
    that do not fit.
    """
    # a run's name or folder
    run = find_run(source, root)
    if run is not None:
        return _from_run(run, ema, step)

    # weights released by the authors, such as "MAETok/sit-xl_maetok-b-128" on the hub, or by hustvl
    tensors, config = read_weights(source)
    if ema is not None or step is not None:
        raise ValueError(f"{source} holds one set of weights, without a choice of EMA rate or step")
    with reading(source):
        if f"{PATCH_EMBED}weight" in tensors:
            return from_lightningdit(tensors)
        if config.get("class") != "DiffusionConfig":
            return from_released(tensors, config)
        return _exported(tensors, config, str(source))


def _exported(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: str
) -> DiffusionTransformer:
    """The weights that `export_diffusion` wrote, such as "shipped/diffusion"."""
    shape = from_json(DiffusionConfig, config["config"])
    sizes = config["sizes"]
    for name, value in sizes.items():
        if type(value) is not int:
            raise TypeError(f"{name} must be int, not {type(value).__name__} {value!r}")
    model = build_to_fit(lambda: DiffusionTransformer(shape, **sizes), tensors, source)
    model.set_training(config["path"], **_younger(config))
    model.tokenizer_fingerprint = str(config["latent_space"]["tokenizer"])
    return model.eval()


def _from_run(run: Run, ema: float | None, step: int | None) -> DiffusionTransformer:
    """The averaged weights of a run's checkpoint, of the last one without a step."""
    if run.class_name != "DiffusionTraining":
        raise ValueError(f"run {run.name} holds a {run.class_name}, not a diffusion model")
    rates = run.config["ema_decays"]
    if ema is None:
        ema = rates[0]
    elif ema not in rates:
        raise ValueError(f"run {run.name} has EMA rates {rates}, not {ema}")
    group = f"ema-{ema:g}"
    if step is None:
        checkpoint = run.last_checkpoint(group)
    else:
        checkpoint = run.load_checkpoint(step, groups=[group])
    # the sizes that `describe_model` gave; they come from the latents, not from the config
    sizes = {key: checkpoint.state[key] for key in ("num_tokens", "latent_dim", "num_classes")}
    model = DiffusionTransformer(from_json(DiffusionConfig, run.config["model"]), **sizes)
    load_strictly(model, checkpoint.tensors[group], f"run {run.name}")
    model.set_training(run.config["path"], **_younger(run.config))
    model.tokenizer_fingerprint = run.config["tokenizer"]
    return model.eval()


def _younger(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs and weights may say of a training that older ones do not."""
    return {name: config[name] for name in ("prediction", "time_shift") if name in config}


def export_diffusion(
    model: DiffusionTransformer,
    folder: str | Path,
    *,
    space: LatentSpace,
    tokenizer: nn.Module,
    about: str = "",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A folder that `load_diffusion` and `load_latent_space` take: weights, config and model card.

    `tokenizer` is the one that is exported beside it, at the same `dtype`: the folder is bound to
    its weights. Raises ValueError when `space` belongs to another.
    """
    check_owner(tokenizer, space.tokenizer, "latent space")
    config = {
        "class": "DiffusionConfig",
        "config": to_json(model.config),
        "sizes": describe_model(model),
        "path": model.trained_path,
        "prediction": model.trained_prediction,
        "time_shift": model.trained_shift or 1.0,
        "latent_space": {
            # of the weights as they are exported: at `dtype`, where they are rounded
            "tokenizer": copy.deepcopy(tokenizer).to(dtype).fingerprint,
            "mean": space.mean.tolist(),
            "std": space.std.tolist(),
        },
    }
    return write_weights(folder, stored_as(model.state_dict(), dtype), config, _card(model, about))


def _card(model: DiffusionTransformer, about: str) -> str:
    """The model card, in the hub's Markdown."""
    # what a stranger needs to call the model: its sizes, and the lines that draw images with it
    count = sum(p.numel() for p in model.parameters())
    classes = f"{model.num_classes or 'no'} classes"
    return f"""---
library_name: maetok-lab
tags: [diffusion, flow-matching, latent-diffusion]
---

# A diffusion transformer on MAETok tokens

{about or "Trained with maetok_lab."}

Velocity of {model.num_tokens} tokens of {model.latent_dim} channels, {classes};
{count:,} parameters.
Method: Masked Autoencoders Are Effective Tokenizers for Diffusion Models (ICML 2025).

```python
from maetok_lab.data.latents import load_latent_space
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.generation.images import generate

source = "this folder, or OWNER/NAME on the hub"
model = load_diffusion(source)
space = load_latent_space(source)
images = generate(model, tokenizer, space, labels, num_steps=250)
```
"""
