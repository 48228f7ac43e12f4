"""Tokenizers from where they are: our runs, local folders of weights, the hub; and into such folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from maetok_lab.config import from_json, to_json
from maetok_lab.files import read_json
from maetok_lab.identity import fingerprint_of, remember_name, tensors_fingerprint
from maetok_lab.runs import Run, find_run
from maetok_lab.runs.weights import (
    AUXILIARY,
    load_strictly,
    read_weights,
    stored_as,
    weights_folder,
    write_tensors,
    write_weights,
)
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig, num_parameters
from maetok_lab.tokenizer.released import from_released


def load_tokenizer(source: str | Path, *, root: str | Path | None = None) -> Tokenizer:
    """A tokenizer in eval mode on the CPU: a run's name or folder (its EMA weights), a folder of weights (exported by us or
    released by the authors), "shipped/tokenizer", or a hub name such as "MAETok/maetok-b-128".

    Caches and diffusion models are bound to `tokenizer.fingerprint`. Raises FileNotFoundError for what is
    none of these, ValueError for a run of another kind, one without a checkpoint, and weights that do not fit.
    """
    run = find_run(source, root)
    if run is not None:
        return _from_run(run)
    tensors, config = read_weights(source)
    if config.get("class") == "TokenizerConfig":
        tokenizer = Tokenizer(from_json(TokenizerConfig, config["config"]))
        load_strictly(tokenizer, tensors, str(source))
    else:
        tokenizer = from_released(tensors, config)
    remember_name(tokenizer, tensors_fingerprint(tensors))
    return tokenizer.eval()


def _from_run(run: Run) -> Tokenizer:
    model = from_json(TokenizerConfig, _tokenizer_config(run)["model"])
    checkpoint = run.load_checkpoint(groups=["ema"])
    if checkpoint is None:
        raise ValueError(f"run {run.name} has no checkpoint yet")
    tokenizer = Tokenizer(model)
    load_strictly(tokenizer, checkpoint.tensors["ema"], f"run {run.name}")
    remember_name(tokenizer, fingerprint_of([run.fingerprint, checkpoint.step]))
    return tokenizer.eval()


def load_auxiliary(
    source: str | Path, *, root: str | Path | None = None
) -> dict[str, AuxiliaryDecoder]:
    """The auxiliary decoders that shaped a tokenizer, by target, in eval mode on the CPU, to look at what they predict.

    `source` is the run that trained them, one tuned from it (its parents are looked up beside it), or a folder of weights that
    was exported with them. Their weights are those of the last step: no average of them is kept. A target's network is loaded
    when `decoder.target` is first called.
    """
    run = find_run(source, root)
    if run is None:
        folder = weights_folder(source)
        if not (folder / AUXILIARY).exists():
            raise ValueError(
                f"{source} holds a tokenizer's weights only; its auxiliary decoders are in the run that trained it"
            )
        config = read_json(folder / "config.json")
        return _auxiliary(
            config["config"], config["targets"], load_file(folder / AUXILIARY), str(source)
        )
    while run.config.get("trains") == "decoder":
        run = _tuned_from(run)
    targets = _tokenizer_config(run)["targets"]
    checkpoint = run.load_checkpoint(groups=["auxiliary"])
    if not targets or checkpoint is None:
        raise ValueError(
            f"run {run.name} {'has no checkpoint yet' if targets else 'was trained without auxiliary targets'}"
        )
    return _auxiliary(
        run.config["model"], targets, checkpoint.tensors["auxiliary"], f"run {run.name}"
    )


def _auxiliary(
    model: dict[str, Any],
    targets: list[dict[str, Any]],
    tensors: dict[str, torch.Tensor],
    what: str,
) -> dict[str, AuxiliaryDecoder]:
    tokenizer = from_json(TokenizerConfig, model)
    decoders = nn.ModuleDict()
    for target in (from_json(AuxiliaryConfig, target) for target in targets):
        decoders[target.module_name] = AuxiliaryDecoder(target, tokenizer)
    load_strictly(decoders, tensors, what)
    return {decoder.config.target: decoder.eval() for decoder in decoders.values()}


def _tuned_from(run: Run) -> Run:
    wanted = run.config["parent"]
    names = [
        parent["run"] for parent in run.provenance["parents"] if parent["fingerprint"] == wanted
    ]
    if not names:
        raise ValueError(
            f"run {run.name} does not record the run it was tuned from (fingerprint {wanted})"
        )
    found = Run(run.folder.parent / names[0])
    if found.fingerprint != wanted:
        raise ValueError(
            f"run {run.name} was tuned from another run than the {found.name} that is beside it now"
        )
    return found


def _tokenizer_config(run: Run) -> dict[str, Any]:
    if run.class_name != "TokenizerTraining":
        raise ValueError(f"run {run.name} holds a {run.class_name}, not a tokenizer")
    return run.config


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    about: str = "",
    auxiliary: Mapping[str, AuxiliaryDecoder] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A folder that `load_tokenizer` takes: model.safetensors, config.json and a model card that starts with `about`.

    With `auxiliary` decoders (as `load_auxiliary` gives them) it has those too, in auxiliary.safetensors.
    """
    config: dict[str, Any] = {"class": "TokenizerConfig", "config": to_json(tokenizer.config)}
    if auxiliary:
        config["targets"] = [to_json(decoder.config) for decoder in auxiliary.values()]
        decoders = nn.ModuleDict(
            {decoder.config.module_name: decoder for decoder in auxiliary.values()}
        )
        write_tensors(Path(folder) / AUXILIARY, stored_as(decoders.state_dict(), dtype))
    return write_weights(
        folder, stored_as(tokenizer.state_dict(), dtype), config, _card(tokenizer, about)
    )


def _card(tokenizer: Tokenizer, about: str) -> str:
    config = tokenizer.config
    return f"""---
library_name: maetok-lab
tags: [tokenizer, autoencoder, diffusion]
---

# A MAETok tokenizer

{about or "Trained with maetok_lab."}

Images of {config.image_size} px in [-1, 1] to {config.num_latent_tokens} tokens of {config.latent_dim} channels and back;
{num_parameters(tokenizer):,} parameters. Method: Masked Autoencoders Are Effective Tokenizers for Diffusion Models (ICML 2025).

```python
from maetok_lab.tokenizer.loading import load_tokenizer

tokenizer = load_tokenizer("this folder, or OWNER/NAME on the hub")
latents = tokenizer.encode(images)
```
"""
