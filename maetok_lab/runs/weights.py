"""Weights in and out: strict loading that lists what does not fit, folders as the hub has them,
training checkpoints of other people's code.
"""

import argparse
import copy
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from maetok_lab.files import atomic_path, read_json, write_bytes, write_json

AUXILIARY = "auxiliary.safetensors"  # only where auxiliary decoders were exported too
FILES = ("model.safetensors", AUXILIARY, "config.json", "README.md")  # what is fetched from the hub
SHIPPED = Path(__file__).parents[2] / "data" / "pretrained"
MAX_LISTED = 20  # tensors of each kind that an error lists
CHECKPOINTS = (".pt", ".pth")
MOST_CONFIG_BYTES = 16_000_000  # statistics of every element of 1024 x 256 latents have 10
# what weights are stored as; others could not be copied into a model
NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
GROUPS = ("ema", "model", "state_dict")  # of weights in such a file; the first there is taken
# What DataParallel puts before a name, and torch.compile before it or inside.
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")

Shapes = Mapping[str, tuple[int, ...]]

# Loading into a model -----------------------------------------------------------------------------


def load_strictly(module: nn.Module, tensors: Mapping[str, torch.Tensor], subject: str) -> None:
    """Load every tensor into its place; ValueError with a list of those that do not fit."""
    check_shapes(shapes_of(module.state_dict()), shapes_of(tensors), subject)
    module.load_state_dict(dict(tensors))


def check_shapes(expected: Shapes, actual: Shapes, subject: str) -> None:
    """ValueError with one line a tensor that is missing, unexpected, or of another shape."""
    # by kind: a whole missing layer, say, is not lost among tensors of another width
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": []}
    for name, shape in expected.items():
        if name not in actual:
            problems["missing"].append(f"{name} {shape}")
        elif actual[name] != shape:
            problems["misshapen"].append(f"{name} is {actual[name]}, needs {shape}")
    for name, shape in actual.items():
        if name not in expected:
            problems["unexpected"].append(f"{name} {shape}")

    lines = []
    # weights of another model misfit in hundreds of places: a screenful is enough to see it
    for kind, entries in problems.items():
        lines += [f"  {kind:<10}  {entry}" for entry in entries[:MAX_LISTED]]
        if len(entries) > MAX_LISTED:
            lines.append(f"  {kind:<10}  and {len(entries) - MAX_LISTED} more")
    if lines:
        raise ValueError(f"{subject}: the tensors do not fit the model\n" + "\n".join(lines))


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


# Folders of weights -------------------------------------------------------------------------------


def write_weights(
    folder: str | Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], card: str
) -> Path:
    """A folder as the hub has it: model.safetensors, config.json, README.md with the card."""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config)
    write_bytes(folder / "README.md", card.encode())
    return folder


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file, whole or not at all."""
    # safetensors stores no views and nothing that is on a GPU
    plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary)
        except SafetensorError as problem:  # it wraps the system's error: a full disk, a limit
            number = re.search(r"os error (\d+)", str(problem))
            raise OSError(int(number[1]) if number else None, str(problem)) from None


def stored_as(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Float tensors at `dtype`, other tensors as they are."""
    stored = dict(tensors)
    for name, value in tensors.items():
        if value.is_floating_point():
            stored[name] = value.to(dtype)
    return stored


def weights_folder(source: str | Path) -> Path:
    """A folder of weights: a local one, "shipped/NAME" of data/pretrained, or a hub's "OWNER/NAME".

    What the hub has is fetched, once. Raises FileNotFoundError that says what is there, or that the
    hub could not be reached.
    """
    # a folder of that name comes first: OWNER/NAME is a relative path too
    if Path(source).is_dir():
        return Path(source)
    owner, _, name = str(source).partition("/")
    if owner != "shipped":
        return _download(str(source))
    choices = sorted(path.name for path in SHIPPED.glob("*/"))
    if name in choices:
        return SHIPPED / name
    raise FileNotFoundError(
        f"{source} is not among what is shipped ({', '.join(choices) or 'nothing'}); "
        "`python data/build_pretrained.py` makes it"
    )


def read_weights(source: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of `weights_folder(source)` or of a .pt file; nothing is executed.

    Raises FileNotFoundError that says which file is missing, or as `weights_folder` does, and
    ValueError for a file that is damaged or holds more than tensors and settings.
    """
    # a checkpoint is one file, released weights are a folder
    if Path(source).suffix.lower() in CHECKPOINTS:
        return _read_checkpoint(Path(source))
    if Path(source).is_file():
        raise ValueError(
            f"weights are read from {' and '.join(CHECKPOINTS)} files, or from a folder with "
            f"model.safetensors and config.json, not from {source}"
        )
    folder = weights_folder(source)
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} holds no weights: {name} is missing")
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file)
    except (SafetensorError, ValueError, LookupError, RuntimeError) as problem:
        raise ValueError(f"{file} is damaged: {problem}") from None
    state = plain_state(tensors)
    _check_tensors(state, file)
    return state, _read_config(folder / "config.json")


def _read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError for anything else."""
    size = path.stat().st_size
    if size > MOST_CONFIG_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; a config has {MOST_CONFIG_BYTES:,} at most")
    try:
        config = read_json(path)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as problem:  # bytes that are no text, a number of a million digits
        text = str(problem)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not a config by name")
    return config


def _check_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """ValueError unless all are plain numbers, and no more of them than the file has."""
    size = 0
    for name, value in tensors.items():
        is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not is_plain or value.dtype not in NUMBERS or value.device.type != "cpu":
            kind = f"{value.dtype} on {value.device}" if is_plain else type(value).__name__
            raise ValueError(f"{path}: {name} is no tensor of plain numbers, but {kind}")
        size += value.nbytes
    # one number can stand for a million: a view that steps on the spot, or many of one storage
    if size > 2 * path.stat().st_size:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, but its tensors claim {size:,}"
        )


def plain_state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a training checkpoint, or of a state dict, under the names of the bare model.

    Of several groups the averaged one ("ema") is taken, with a warning.
    """
    # a training that keeps no average may store an empty one
    groups = [name for name in GROUPS if isinstance(checkpoint.get(name), Mapping)]
    groups = [name for name in groups if checkpoint[name]]
    if len(groups) > 1:
        warnings.warn(
            f"of {' and '.join(groups)} in this checkpoint, {groups[0]!r} is loaded; "
            "`from_released` takes the state dict of any",
            stacklevel=2,
        )
    state = checkpoint[groups[0]] if groups else checkpoint
    return {WRAPPERS.sub("", str(name)): value for name, value in state.items()}


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of a .pt file; its config is what was trained with, and a config.json beside it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # mapped, since optimizer states and discriminators in it, which nobody reads, can be large
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors and settings, and loading that could run any code; "
            'if you trust it, save its weights alone: python -c "import torch; '
            f"c = torch.load('{path}', weights_only=False); "
            f"torch.save({{k: c[k] for k in {GROUPS} if k in c}}, 'weights.pt')\""
        ) from None
    except Exception as problem:  # a damaged pickle can raise anything
        if isinstance(problem, OSError) and problem.filename:  # it could not be opened
            raise
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path} is damaged, or older than torch 1.6: {reason}") from None

    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not weights by name")
    settings = checkpoint.get("args")
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    config = dict(settings) if isinstance(settings, Mapping) else {}
    if (path.parent / "config.json").exists():
        config |= _read_config(path.parent / "config.json")
    state = plain_state(checkpoint)
    _check_tensors(state, path)
    # out of the file, which a training may write anew while they are used
    return copy.deepcopy(state), config


def _download(repository: str) -> Path:
    if repository.count("/") != 1:
        raise FileNotFoundError(
            f"{repository!r} is neither a run, nor a folder, nor a hub name OWNER/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # machines without a network raise one of many errors here; what helps is the same for all
    try:
        return Path(snapshot_download(repository, allow_patterns=[*FILES]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as problem:
        raise FileNotFoundError(
            f"{repository} is not in the hub's cache and could not be fetched "
            f"({type(problem).__name__}); download it elsewhere and give the folder"
        ) from None
