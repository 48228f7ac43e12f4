"""Tokenizers from where they are (our runs, folders of weights, the hub), and into such folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maetok_lab.config import from_json, to_json
from maetok_lab.files import read_json
from maetok_lab.identity import fingerprint_of, remember_name, tensors_fingerprint
from maetok_lab.runs import Run, find_run
from maetok_lab.runs.building import build_to_fit, reading
from maetok_lab.runs.weights import (
    AUXILIARY,
    load_strictly,
    read_weights,
    stored_as,
    weights_folder,
    write_tensors,
    write_weights,
)
from maetok_lab.tokenizer.alignment import make_head
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig, num_parameters
from maetok_lab.tokenizer.released import from_released


def load_tokenizer(source: str | Path, *, root: str | Path | None = None) -> Tokenizer:
    """A tokenizer in eval mode on the CPU.

    `source` is a run's name or folder (its averaged weights), a folder of weights, ours or the
    authors', a .pt file of their training, "shipped/tokenizer", or a hub name such as
    "MAETok/maetok-b-128". Raises FileNotFoundError for none of these, ValueError for other runs
    and weights that do not fit.
    """
    run = find_run(source, root)
    if run is not None:
        return _from_run(run)
    # what we exported names its config's class; the authors' config.json has another form
    tensors, config = read_weights(source)
    with reading(source):
        if config.get("class") == "TokenizerConfig":
            shape = from_json(TokenizerConfig, config["config"])
            tokenizer = build_to_fit(lambda: Tokenizer(shape), tensors, str(source))
        else:
            tokenizer = from_released(tensors, config)
    remember_name(tokenizer, tensors_fingerprint(tensors))
    return tokenizer.eval()


def _from_run(run: Run) -> Tokenizer:
    config = from_json(TokenizerConfig, _training_config(run)["model"])
    # the averaged weights, as everywhere outside of training
    checkpoint = run.last_checkpoint("ema")
    tokenizer = Tokenizer(config)
    load_strictly(tokenizer, checkpoint.tensors["ema"], f"run {run.name}")
    remember_name(tokenizer, fingerprint_of([run.fingerprint, checkpoint.step]))
    return tokenizer.eval()


def _training_config(run: Run) -> dict[str, Any]:
    """The config of a run that trained a tokenizer, as plain JSON; ValueError for another run."""
    if run.class_name != "TokenizerTraining":
        raise ValueError(f"run {run.name} holds a {run.class_name}, not a tokenizer")
    return run.config


def load_auxiliary(
    source: str | Path, *, root: str | Path | None = None
) -> dict[str, AuxiliaryDecoder]:
    """The auxiliary decoders that shaped a tokenizer, by target, in eval mode on the CPU.

    `source` is the run that trained them, one tuned from it, or a folder of weights that was
    exported with them. Raises ValueError where there are none. A target's network is loaded when
    `decoder.target` is first called.
    """
    # An exported folder has them in a file of their own.
    run = find_run(source, root)
    if run is None:
        folder = weights_folder(source)
        if not (folder / AUXILIARY).exists():
            raise ValueError(
                f"{source} holds a tokenizer's weights only; its auxiliary decoders are in the run "
                "that trained it"
            )
        with reading(folder / AUXILIARY):
            config = read_json(folder / "config.json")
            tensors = load_file(folder / AUXILIARY)
            return _auxiliary(config["config"], config["targets"], tensors, str(source))

    # Decoder tuning dropped them: back to the run of the first stage.
    while run.config.get("trains") == "decoder":
        run = _parent(run)
    targets = _training_config(run)["targets"]
    if not targets:
        raise ValueError(f"run {run.name} was trained without auxiliary targets")
    # the weights of the last step: there is no average of them
    tensors = run.last_checkpoint("auxiliary").tensors["auxiliary"]
    return _auxiliary(run.config["model"], targets, tensors, f"run {run.name}")


def _auxiliary(
    model: dict[str, Any],
    targets: list[dict[str, Any]],
    tensors: Mapping[str, Tensor],
    subject: str,
) -> dict[str, AuxiliaryDecoder]:
    """Decoders from plain JSON and their tensors; `subject` is what an error speaks of."""
    tokenizer = from_json(TokenizerConfig, model)
    configs = [from_json(AuxiliaryConfig, target) for target in targets]

    def make() -> nn.ModuleDict:
        heads = nn.ModuleDict()
        for config in configs:
            heads[config.module_name] = make_head(config, tokenizer)
        return heads

    # a head that aligns latents with features predicts nothing that could be looked at
    decoders = {}
    for head in build_to_fit(make, tensors, subject).values():
        if isinstance(head, AuxiliaryDecoder):
            decoders[head.config.target] = head.eval()
    if not decoders:
        raise ValueError(f"{subject} was trained without auxiliary decoders")
    return decoders


def _parent(run: Run) -> Run:
    """The run whose decoder this one tunes, which must still be the one that it was tuned from."""
    # a run's config names its parent's fingerprint, its provenance the name that it had then
    fingerprint = run.config["parent"]
    for entry in run.provenance["parents"]:
        if entry["fingerprint"] == fingerprint:
            parent = Run(run.folder.parent / entry["run"])
            break
    else:
        raise ValueError(
            f"run {run.name} does not record the run it was tuned from (fingerprint {fingerprint})"
        )
    if parent.fingerprint != fingerprint:
        raise ValueError(
            f"run {run.name} was tuned from another run than the {parent.name} "
            "that is beside it now"
        )
    return parent


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    about: str = "",
    auxiliary: Mapping[str, AuxiliaryDecoder] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A folder that `load_tokenizer` takes: weights, config and a card that starts with `about`.

    With `auxiliary` decoders, as `load_auxiliary` gives them, it takes the folder too.
    """
    # the class lets `load_tokenizer` tell our folders from the authors'
    config: dict[str, Any] = {"class": "TokenizerConfig", "config": to_json(tokenizer.config)}
    if auxiliary:
        config["targets"] = [to_json(decoder.config) for decoder in auxiliary.values()]
        decoders = nn.ModuleDict()
        for decoder in auxiliary.values():
            decoders[decoder.config.module_name] = decoder
        write_tensors(Path(folder) / AUXILIARY, stored_as(decoders.state_dict(), dtype))
    tensors = stored_as(tokenizer.state_dict(), dtype)
    return write_weights(folder, tensors, config, _card(tokenizer, about))


def _card(tokenizer: Tokenizer, about: str) -> str:
    """The model card, as the hub shows it."""
    # what a stranger needs to call it: sizes of images and latents, and the lines that load it
    size = tokenizer.config.image_size
    tokens, channels = tokenizer.latent_shape
    return f"""---
library_name: maetok-lab
tags: [tokenizer, autoencoder, diffusion]
---

# A MAETok tokenizer

{about or "Trained with maetok_lab."}

Images of {size} px in [-1, 1] to {tokens} tokens of {channels} channels and back;
{num_parameters(tokenizer):,} parameters. Method: Masked Autoencoders Are Effective Tokenizers for
Diffusion Models (ICML 2025).

```python
from maetok_lab.tokenizer.loading import load_tokenizer

tokenizer = load_tokenizer("this folder, or OWNER/NAME on the hub")
latents = tokenizer.encode(images)
```
"""
