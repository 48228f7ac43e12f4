"""Diffusion transformers from where they are: our runs, local folders of weights, the hub; and into such folders."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maetok_lab.config import from_json, to_json
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, describe_model
from maetok_lab.diffusion.released import from_released
from maetok_lab.identity import check_owner
from maetok_lab.runs import Run, find_run
from maetok_lab.runs.weights import load_strictly, read_weights, stored_as, write_weights


def load_diffusion(
    source: str | Path, *, ema: float | None = None, root: str | Path | None = None
) -> DiffusionTransformer:
    """A diffusion model in eval mode on the CPU: a run's name or folder (its EMA weights; `ema` chooses among its rates), a
    folder of weights (exported by us or released by the authors), "shipped/diffusion", or a hub name such as
    "MAETok/sit-xl_maetok-b-128".

    `model.trained_path` is the interpolant of its training, `model.tokenizer_fingerprint` names the tokenizer whose latents
    it learned ("" where that is not known). Raises FileNotFoundError for what is none of these, ValueError for a run of
    another kind, a rate it has not, one without a checkpoint, and weights that do not fit.
    """
    run = find_run(source, root)
    if run is not None:
        return _from_run(run, ema)
    tensors, config = read_weights(source)
    if ema is not None:
        raise ValueError(f"{source} holds one set of weights, without a choice of EMA rates")
    if config.get("class") != "DiffusionConfig":
        return from_released(tensors, config)
    model = DiffusionTransformer(from_json(DiffusionConfig, config["config"]), **config["sizes"])
    load_strictly(model, tensors, str(source))
    model.trained_path, model.tokenizer_fingerprint = (
        config["path"],
        config["latent_space"]["tokenizer"],
    )
    return model.eval()


def _from_run(run: Run, ema: float | None) -> DiffusionTransformer:
    if run.class_name != "DiffusionTraining":
        raise ValueError(f"run {run.name} holds a {run.class_name}, not a diffusion model")
    rates = run.config["ema_decays"]
    if ema is not None and ema not in rates:
        raise ValueError(f"run {run.name} has EMA rates {rates}, not {ema}")
    group = f"ema-{rates[0] if ema is None else ema:g}"
    checkpoint = run.load_checkpoint(groups=[group])
    if checkpoint is None:
        raise ValueError(f"run {run.name} has no checkpoint yet")
    sizes = {key: checkpoint.state[key] for key in ("num_tokens", "latent_dim", "num_classes")}
    model = DiffusionTransformer(from_json(DiffusionConfig, run.config["model"]), **sizes)
    load_strictly(model, checkpoint.tensors[group], f"run {run.name}")
    model.trained_path, model.tokenizer_fingerprint = run.config["path"], run.config["tokenizer"]
    return model.eval()


def export_diffusion(
    model: DiffusionTransformer,
    folder: str | Path,
    *,
    space: LatentSpace,
    tokenizer: nn.Module,
    about: str = "",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A folder that `load_diffusion` and `load_latent_space` take: model.safetensors, config.json and a model card.

    `tokenizer` is the one that is exported beside it, at the same `dtype`: the folder is bound to its weights. Raises ValueError
    when `space` belongs to another.
    """
    check_owner(tokenizer, space.tokenizer, "latent space")
    statistics: dict[str, Any] = {"mean": space.mean.tolist(), "std": space.std.tolist()}
    config = {
        "class": "DiffusionConfig",
        "config": to_json(model.config),
        "sizes": describe_model(model),
        "path": model.trained_path,
        "latent_space": {
            # of the weights as they are exported: at `dtype`, where they are rounded
            "tokenizer": copy.deepcopy(tokenizer).to(dtype).fingerprint,
            **statistics,
        },
    }
    return write_weights(folder, stored_as(model.state_dict(), dtype), config, _card(model, about))


def _card(model: DiffusionTransformer, about: str) -> str:
    count = sum(p.numel() for p in model.parameters())
    classes = f"{model.num_classes} classes" if model.num_classes else "no classes"
    return f"""---
library_name: maetok-lab
tags: [diffusion, flow-matching, latent-diffusion]
---

# A diffusion transformer on MAETok tokens

{about or "Trained with maetok_lab."}

Velocity of {model.num_tokens} tokens of {model.latent_dim} channels, {classes}; {count:,} parameters.
Method: Masked Autoencoders Are Effective Tokenizers for Diffusion Models (ICML 2025).

```python
from maetok_lab.data.latents import load_latent_space
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.generation.images import generate

model, space = load_diffusion("this folder, or OWNER/NAME on the hub"), load_latent_space("the same")
images = generate(model, tokenizer, space, labels, num_steps=250)
```
"""
