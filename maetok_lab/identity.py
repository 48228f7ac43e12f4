"""Fingerprints: short hashes of what configs, weights, files and JSON hold. All are made here.

They depend on the content alone: equal in every process and on every device, different once the
content changes. Runs on disk are known by them, so how they are computed must not change.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from maetok_lab.protocols import AnyTokenizer

DIGITS = 16  # hex digits of a fingerprint: 64 bits
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a value


# Bytes, text, files and JSON ----------------------------------------------------------------------


def hash_of(parts: Iterable[bytes | np.ndarray]) -> str:
    """SHA-256 of bytes, one part after the other, as 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def text_hash(parts: Iterable[Any]) -> str:
    """SHA-256 of the text forms of parts, in order; file names may hold bytes that are no text."""
    return hash_of(str(part).encode("utf-8", "surrogateescape") + b"\0" for part in parts)


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file, as `sha256sum` writes it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(data: Any) -> str:
    """Short hash of plain JSON; the order of a dict's keys does not matter."""
    # with json's own separators, unlike a config below: both forms are in run folders
    return hash_of([json.dumps(data, sort_keys=True).encode()])[:DIGITS]


# Configs ------------------------------------------------------------------------------------------


def fingerprint(config: Any) -> str:
    """Short hash of every field of a config dataclass that changes the result.

    `config.not_in_fingerprint` marks those that do not.
    """
    canonical = json.dumps(_identity(config), sort_keys=True, separators=(",", ":"))
    return hash_of([canonical.encode()])[:DIGITS]


def _identity(value: Any, hint: Any = Any) -> Any:
    """What counts of a config's value, as plain JSON; `hint` is the annotation of its field."""
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        identity = {"class": type(value).__name__}
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if field.metadata.get("file") and content and Path(content).is_file():
                content = file_hash(content)
            as_before = "younger" in field.metadata and content == field.default
            if field.metadata.get("fingerprint", True) and not as_before:
                identity[field.name] = _identity(content, hints[field.name])
        return identity
    if isinstance(value, tuple | list):
        return [_identity(item, hint) for item in value]
    # Weight 1 is weight 1.0: else a config written by hand would not be the one read from its JSON
    types = _types_in(hint)
    if type(value) is int and float in types and int not in types:
        return float(value)
    return value


def _types_in(hint: Any) -> set[Any]:
    """An annotation and all that it is made of: of tuple[float, ...] also float."""
    return {hint}.union(*map(_types_in, get_args(hint)))


# Tensors and weights ------------------------------------------------------------------------------


def tensor_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor's values in row-major order: uint8 (bytes,)."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Short hash of names, dtypes, shapes and values, such as those of a file of weights."""
    # dtype and shape too, unlike below: this says what a file holds, not what it computes
    parts = []
    for name, value in sorted(tensors.items()):
        parts += [f"{name} {value.dtype} {tuple(value.shape)}".encode(), tensor_bytes(value)]
    return hash_of(parts)[:DIGITS]


def weights_fingerprint(module: nn.Module) -> str:
    """Short hash of a module's weights: their names, and their values as float32.

    It is kept for as long as no weight changes, since a gigabyte takes a second or two.
    """
    # No dtypes: weights that were cast to a wider one are the same. No shapes: they follow from
    # the config, which a tokenizer's fingerprint covers as well.
    state = sorted(module.state_dict(keep_vars=True).items())
    versions = [_version(value) for _, value in state]
    memory = getattr(module, "_weights_fingerprint", None)
    if memory is None or memory[0] != versions:
        memory = versions, hash_of(_named_bytes(state))[:DIGITS]
        module._weights_fingerprint = memory
    return memory[1]


def _named_bytes(state: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | np.ndarray]:
    for name, value in state:
        yield name.encode()
        yield tensor_bytes(value.float() if value.is_floating_point() else value)


def _version(tensor: Tensor) -> tuple[int, int, int]:
    """Three numbers, one of which differs after a change: id, torch's count of writes, sum of bits.

    The sum is for writes through `.data`, which torch does not count. It misses only values that
    changed places (or changes that cancel), and costs one reading of the weights.
    """
    # tensors made in inference mode have no count
    count = 0 if tensor.is_inference() else tensor._version
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    return id(tensor), count, int(bits.sum(dtype=bits.dtype))  # it may wrap around


# Which tokenizer something belongs to -------------------------------------------------------------


def remember_name(tokenizer: AnyTokenizer, name: str) -> None:
    """Let `name` stand for the weights that `tokenizer` has now.

    Older caches and diffusion models know a tokenizer by its run and step, or by its file.
    """
    # with the fingerprint: once a weight changes, the name stands for nothing (`same_weights`)
    tokenizer.earlier_name = name, tokenizer.fingerprint


def same_weights(tokenizer: AnyTokenizer, name: str) -> bool:
    """Whether `name` stands for the tokenizer's weights: their fingerprint, or their earlier name.

    The earlier name counts only while the weights are those that were loaded under it.
    """
    fingerprint = tokenizer.fingerprint
    return name == fingerprint or (name, fingerprint) == getattr(tokenizer, "earlier_name", None)


def check_owner(tokenizer: AnyTokenizer, name: str, subject: str) -> None:
    """Raise a ValueError unless `subject`, such as a latent space, belongs to this tokenizer."""
    if not same_weights(tokenizer, name):
        raise ValueError(
            f"the {subject} belongs to tokenizer {name}, not to {tokenizer.fingerprint}"
        )
