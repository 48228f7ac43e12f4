"""A model is used in eval mode, where its weights are, and comes back as it was."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maetok_lab.inference import device_of, eval_mode


def modes(module):
    return [part.training for part in module.modules()]


def test_every_part_of_a_module_comes_back_in_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()  # frozen, inside of a module in training
    before = modes(model)
    with eval_mode(model):
        assert modes(model) == [False, False, False]
    assert modes(model) == before == [True, True, False]


def test_the_modes_come_back_after_an_error_and_for_several_modules():
    first, second = nn.Dropout().train(), nn.Dropout().eval()
    with pytest.raises(ZeroDivisionError), eval_mode(first, second):
        assert first.training / 0 == 0
    assert (first.training, second.training) == (True, False)


def test_what_is_no_module_is_left_alone():
    duck = SimpleNamespace(training="whenever")
    with eval_mode(duck):
        assert duck.training == "whenever"
    assert device_of(duck) == torch.device("cpu")


def test_the_device_is_that_of_the_weights_and_the_cpu_without_any():
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.Identity()) == torch.device("cpu")
