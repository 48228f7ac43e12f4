"""Weights in and out: strict loading with a table of what does not fit, and folders with safetensors and config.json."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from maetok_lab.files import atomic_path, read_json, write_bytes, write_json


def load_strictly(module: nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Load every tensor into its place; ValueError with a table of missing, unexpected and misshapen ones otherwise."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    check_shapes(expected, given, what)
    module.load_state_dict(dict(tensors))


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """ValueError with one line a tensor that is missing, unexpected, or of another shape (20 at most of each kind)."""
    kinds = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in given],
        "unexpected": [f"{name} {given[name]}" for name in given if name not in expected],
        "misshapen": [
            f"{name} is {given[name]}, needs {expected[name]}"
            for name in expected
            if name in given and given[name] != expected[name]
        ],
    }
    lines = []
    for kind, entries in kinds.items():
        lines += [f"  {kind:<10}  {entry}" for entry in entries[:20]]
        if len(entries) > 20:
            lines.append(f"  {kind:<10}  and {len(entries) - 20} more")
    if lines:
        raise ValueError(f"{what}: the tensors do not fit the model\n" + "\n".join(lines))


AUXILIARY = "auxiliary.safetensors"  # only where auxiliary decoders were exported too
FILES = ("model.safetensors", AUXILIARY, "config.json", "README.md")
SHIPPED = Path(__file__).parents[2] / "data" / "pretrained"


def write_weights(
    folder: str | Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], card: str
) -> Path:
    """A folder as the hub has it: model.safetensors, config.json, README.md (the model card). -> the folder"""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config)
    write_bytes(folder / "README.md", card.encode())
    return folder


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file(
            {name: value.detach().contiguous().cpu() for name, value in tensors.items()}, temporary
        )


def stored_as(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What is kept of float tensors at `dtype`; others as they are."""
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def weights_folder(source: str | Path) -> Path:
    """Where weights are: a local folder, "shipped/NAME" under data/pretrained, or a hub repository "owner/name", fetched.

    Raises FileNotFoundError that says what is there, or that the hub could not be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    owner, _, name = str(source).partition("/")
    if owner != "shipped":
        return _download(str(source))
    there = sorted(path.name for path in SHIPPED.glob("*/"))
    if name in there:
        return SHIPPED / name
    raise FileNotFoundError(
        f"{source} is not among what is shipped ({', '.join(there) or 'nothing'}); `python data/build_pretrained.py` makes it"
    )


def read_weights(source: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of `weights_folder(source)` (safetensors and JSON only: nothing is executed).

    Raises FileNotFoundError that says which file is missing, or as `weights_folder` does.
    """
    folder = weights_folder(source)
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} holds no weights: {name} is missing")
    try:
        return load_file(folder / "model.safetensors"), read_json(folder / "config.json")
    except SafetensorError as problem:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {problem}") from None


def _download(repository: str) -> Path:
    if repository.count("/") != 1:
        raise FileNotFoundError(
            f"{repository!r} is neither a run, nor a folder, nor a hub name OWNER/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=[*FILES]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as problem:
        raise FileNotFoundError(
            f"{repository} is not in the hub's cache and could not be fetched ({type(problem).__name__}); "
            "download it elsewhere and give the folder"
        ) from None


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Short hash of names and values: what names weights that come from no run."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def push_folder(folder: str | Path, repository: str) -> str:
    """Upload a weights folder to the hub as OWNER/NAME (needs a login and a network). -> its address"""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder))
