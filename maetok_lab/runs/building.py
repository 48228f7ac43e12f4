"""Models from files that anybody may have made: claims are checked before memory is spent."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from maetok_lab.runs.weights import check_shapes, shapes_of

Module = TypeVar("Module", bound=nn.Module)


def build_to_fit(
    make: Callable[[], Module], tensors: Mapping[str, torch.Tensor], subject: str
) -> Module:
    """`make()` with these weights; ValueError with a list of the tensors that do not fit.

    It is made twice: at first on "meta", where sizes that only a config claims take no memory.
    """
    with torch.device("meta"):
        needed = shapes_of(make().state_dict())
    check_shapes(needed, shapes_of(tensors), subject)
    module = make()
    module.load_state_dict(dict(tensors))
    return module


@contextlib.contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside with what `source` holds is one ValueError that names it.

    A file of somebody else's may lack anything and say anything: each way to go wrong would need a
    check of its own.
    """
    wrong = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
    try:
        yield
    except (*wrong, SafetensorError) as problem:
        reason = str(problem)
        if isinstance(problem, ValueError) and str(source) in reason:
            raise
        if not isinstance(problem, ValueError | TypeError):  # "'depth'" alone would say nothing
            reason = f"what it holds is damaged or of another kind ({problem!r})"
        raise ValueError(f"{source}: {reason}") from problem
