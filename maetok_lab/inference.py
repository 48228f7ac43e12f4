"""Use a model without training it: in eval mode for as long as it takes, where its weights are."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from maetok_lab.device import DTYPES, Precision


@contextlib.contextmanager
def eval_mode(*modules: Any) -> Iterator[None]:
    """Eval mode inside; afterwards each module, and each part of it, is in the mode it came in.

    What is no torch module has no mode and is left alone.
    """
    parts = []
    for module in modules:
        if isinstance(module, nn.Module):
            parts += list(module.modules())
    modes = [part.training for part in parts]
    try:
        for module in modules:
            if isinstance(module, nn.Module):
                module.eval()
        yield
    finally:
        # not module.train(mode): that would wake the frozen parts of a module in training
        for part, mode in zip(parts, modes):
            part.training = mode


def with_cast_weights(module: nn.Module, precision: Precision) -> nn.Module:
    """The same network for autocast to `precision`, its linear layers' weights cast once.

    In inference mode autocast would cast them at every call, of which sampling makes hundreds. The
    same bits; with fp32 the module itself.
    """
    if precision == "fp32":
        return module
    cast = copy.deepcopy(module)
    for part in cast.modules():
        if isinstance(part, nn.Linear):
            part.to(DTYPES[precision])
    return cast


def device_of(module: Any) -> torch.device:
    """The device of a module's weights; the CPU for what has none, such as raw pixels as tokens."""
    # the first weight speaks for all: no model is split over devices here
    parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
