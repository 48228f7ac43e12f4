"""What a diffusion model is told: time and class."""

import math

import pytest
import torch

from maetok_lab.layers.conditioning import LabelEmbedding, TimeEmbedding


def test_time_enters_as_256_sinusoids_cosines_first():
    torch.manual_seed(0)
    embedding, t = TimeEmbedding(8), torch.tensor([0.0, 0.3, 1.0])
    inputs_seen = []
    embedding.mlp[0].register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0]))
    embedding(t)
    for row, time in zip(inputs_seen[0], t.tolist()):
        for i in (0, 1, 64, 127):
            angle = time * 10000 ** (-i / 128)
            assert row[i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert row[128 + i].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_the_last_label_is_the_null_class():
    embedding = LabelEmbedding(3, 8)
    assert torch.equal(embedding(torch.tensor([3, 0])), embedding.embedding_table.weight[[3, 0]])
    with pytest.raises(IndexError):
        embedding(torch.tensor([4]))


def test_frequencies_are_no_part_of_the_state_dict():
    assert set(TimeEmbedding(8).state_dict()) == {
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.2.weight",
        "mlp.2.bias",
    }
