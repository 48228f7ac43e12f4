"""Use a model without training it: in eval mode for as long as it takes, where its weights are."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


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


def device_of(module: Any) -> torch.device:
    """The device of a module's weights; the CPU for what has none, such as raw pixels as tokens."""
    # the first weight speaks for all: no model is split over devices here
    parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
