"""What a file claims is compared with what it holds before memory is spent on it."""

import pytest
import torch
from torch import nn

from maetok_lab.config import override
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.runs.building import build_to_fit, reading
from maetok_lab.runs.weights import read_weights
from maetok_lab.training.presets import tokenizer_training


def test_sizes_that_only_a_config_claims_take_no_memory():
    tensors = nn.Linear(2, 3).state_dict()
    # 4 TB, if it were made
    with pytest.raises(ValueError, match=r"weight is .3, 2., needs .1000000, 1000000."):
        build_to_fit(lambda: nn.Linear(10**6, 10**6), tensors, "a file")
    linear = build_to_fit(lambda: nn.Linear(2, 3), tensors, "a file")
    assert torch.equal(linear.weight, tensors["weight"])


@pytest.mark.parametrize("problem", [KeyError("depth"), RuntimeError("x"), TypeError("no int")])
def test_what_goes_wrong_with_a_file_names_it_in_one_line(problem):
    with pytest.raises(ValueError, match=r"^weights/a: .*(depth|x|no int)"), reading("weights/a"):
        raise problem


def test_tensors_that_are_more_than_their_file_are_refused(tmp_path):
    view = torch.zeros(1).expand(10**9, 1000)
    torch.save({"model": {"a": view}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt has 1,\d+ bytes, but its tensors claim 4,000,0"):
        read_weights(tmp_path / "a.pt")


def test_a_config_of_a_million_blocks_is_refused_with_its_size():
    size = r"depth 1,000,000 has 110,592,000,000 parameters or more \(442.4 GB\)"
    with pytest.raises(ValueError, match=size):
        tokenizer_training("tiny", **{"model.encoder.depth": 10**6})
    with pytest.raises(ValueError, match=r"width 1,152 and depth 1,000,000 has .* GB\)"):
        override(DIFFUSION["sit-xl"], {"depth": 10**6})
    for field in ("image_size", "num_latent_tokens", "latent_dim", "refine"):
        with pytest.raises(ValueError, match=r"must be [01] \.\. 65,536, not 1,000,000,000"):
            tokenizer_training("tiny", **{f"model.{field}": 10**9})
