"""A thing's name follows from its content: equal wherever it is, another as soon as it changes."""

import copy
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maetok_lab import identity
from maetok_lab.identity import (
    check_owner,
    file_hash,
    fingerprint,
    fingerprint_of,
    hash_of,
    remember_name,
    same_weights,
    tensor_bytes,
    tensors_fingerprint,
    text_hash,
    weights_fingerprint,
)
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.foreign import GridTokenizer, RawPixels
from maetok_lab.tokenizer.loading import export_tokenizer, load_tokenizer
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer

MAKE = """
import torch
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
torch.manual_seed(3)
print(Tokenizer(TOKENIZERS["test"]).fingerprint)
"""


def make(seed=3, name="test"):
    torch.manual_seed(seed)
    return Tokenizer(TOKENIZERS[name])


# Bytes, text and files ----------------------------------------------------------------------------


def test_hashes_are_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"ab")
    expected = hashlib.sha256(b"ab").hexdigest()
    assert hash_of([b"a", b"b"]) == hash_of([np.frombuffer(b"ab", np.uint8)]) == expected
    assert file_hash(tmp_path / "file") == expected
    assert text_hash(["a", 1]) == hashlib.sha256(b"a\0" + b"1\0").hexdigest()
    assert text_hash(["\udcff"]) == hashlib.sha256(b"\xff\0").hexdigest()  # of a file's name


def test_the_bytes_of_a_tensor_are_its_values_whatever_its_layout():
    values = torch.arange(6.0).view(2, 3)
    assert bytes(tensor_bytes(values)) == values.numpy().tobytes()
    assert bytes(tensor_bytes(values.T)) == values.numpy().T.tobytes()
    assert bytes(tensor_bytes(torch.tensor(True))) == b"\1"
    assert bytes(tensor_bytes(torch.zeros(0))) == b""


# These values are in run folders, in protocols and in data/pretrained -----------------------------


def test_what_runs_hold_stays_as_it_is():
    tensors = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor([[3]])}
    assert tensors_fingerprint(tensors) == "76d9104a5b147ae7"
    assert fingerprint_of({"b": [1.0, None], "a": "x"}) == "5b0c3e20e4e7920a"
    module = nn.Linear(2, 1)
    module.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])})
    assert weights_fingerprint(module) == "aebcccc3e14975d9"


# Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["in place", "data", "one value", "exchanged", "buffer"])
def test_a_changed_weight_changes_the_fingerprint(kind):
    tokenizer = make()
    tokenizer.register_buffer("extra", torch.arange(4))
    before = tokenizer.fingerprint
    weight = tokenizer.to_pixels.weight
    with torch.no_grad():
        if kind == "in place":
            weight.mul_(1.01)
        elif kind == "data":  # behind the back of autograd
            weight.data += 0.1
        elif kind == "one value":
            weight.data[0, 0] += 1e-6
        elif kind == "exchanged":  # the same values in another order, as a new parameter
            tokenizer.to_pixels.weight = nn.Parameter(weight.flip(0))
        else:
            tokenizer.extra[1] = 5
    assert tokenizer.fingerprint != before


def test_an_optimizer_step_changes_it_and_taking_it_back_gives_the_old_one():
    tokenizer = make()
    before, state = tokenizer.fingerprint, copy.deepcopy(tokenizer.state_dict())
    tokenizer.encode(torch.zeros(1, 3, 32, 32)).sum().backward()
    torch.optim.AdamW(tokenizer.parameters(), fused=True).step()
    assert tokenizer.fingerprint != before
    tokenizer.load_state_dict(state)
    assert tokenizer.fingerprint == before


def test_it_is_the_same_in_copies_files_and_another_process(tmp_path):
    tokenizer = make()
    name = tokenizer.fingerprint
    assert copy.deepcopy(tokenizer).fingerprint == make().fingerprint == name
    assert tokenizer.to("cpu").double().fingerprint == name  # the same numbers, held wider
    tokenizer.float()
    assert load_tokenizer(export_tokenizer(tokenizer, tmp_path / "a")).fingerprint == name
    save_file(tokenizer.state_dict(), tmp_path / "weights.safetensors")
    read = make(seed=0)
    assert read.fingerprint != name
    read.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert read.fingerprint == name
    other = subprocess.run(
        [sys.executable, "-c", MAKE], capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_is_the_same_on_a_gpu():
    tokenizer = make()
    name = tokenizer.fingerprint
    assert tokenizer.cuda().fingerprint == name
    del tokenizer._weights_fingerprint
    assert tokenizer.fingerprint == name


def test_it_covers_the_config_and_follows_a_rounding_of_the_weights():
    weights = make().state_dict()
    other = make()
    other.config = TOKENIZERS["tiny"]
    assert other.fingerprint != make().fingerprint
    assert other.state_dict().keys() == weights.keys()
    assert make().half().fingerprint != make().fingerprint
    assert make().half().fingerprint == make().half().float().fingerprint


def test_asking_again_hashes_nothing(monkeypatch):
    tokenizer = make()
    name = tokenizer.fingerprint
    monkeypatch.setattr(identity, "tensor_bytes", None)
    assert tokenizer.fingerprint == name
    with torch.inference_mode():
        tokenizer.encode(torch.zeros(1, 3, 32, 32))
    assert tokenizer.fingerprint == name


def test_tokenizers_made_in_inference_mode_have_one_too():
    with torch.inference_mode():
        tokenizer = make()
        name = tokenizer.fingerprint
        assert name == make().fingerprint
        tokenizer.to_pixels.bias += 1
        assert tokenizer.fingerprint != name


@pytest.mark.parametrize("kind", ["ours", "pixels", "grid"])
def test_tokenizers_made_by_hand_are_tokenizers_like_others(kind):
    if kind == "ours":
        tokenizer = make()
    elif kind == "pixels":
        tokenizer = RawPixels(16)
    else:
        tokenizer = GridTokenizer(Pooled(), 16)
    assert isinstance(tokenizer, AnyTokenizer)
    assert same_weights(tokenizer, tokenizer.fingerprint)


class Pooled(nn.Module):
    """A model with the interface of diffusers' autoencoders."""

    def __init__(self, **config):
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(1))

    def encode(self, images):
        self.latent = nn.functional.avg_pool2d(images, 2) * self.scale
        return self

    def decode(self, latents):
        self.sample = nn.functional.interpolate(latents / self.scale, scale_factor=2)
        return self


def test_a_diffusers_model_is_named_by_its_weights_and_settings_not_by_its_folder():
    tokenizer = GridTokenizer(Pooled(groups=4, _name_or_path="/home/a"), 16)
    moved = GridTokenizer(Pooled(groups=4, _name_or_path="/home/b"), 16)
    assert moved.fingerprint == tokenizer.fingerprint
    assert GridTokenizer(Pooled(groups=8), 16).fingerprint != tokenizer.fingerprint
    assert GridTokenizer(Pooled(groups=4), 8).fingerprint != tokenizer.fingerprint
    # caches of before name its tensors alone
    assert same_weights(tokenizer, tensors_fingerprint(tokenizer.model.state_dict()))
    tokenizer.model.scale.data.mul_(2)
    assert tokenizer.fingerprint != moved.fingerprint
    assert not same_weights(tokenizer, tensors_fingerprint(moved.model.state_dict()))


# Names of before ----------------------------------------------------------------------------------


def test_an_earlier_name_counts_for_as_long_as_the_weights_are_the_same():
    tokenizer = make()
    assert not same_weights(tokenizer, "run a, step 10")
    remember_name(tokenizer, "run a, step 10")
    for same in (tokenizer, copy.deepcopy(tokenizer)):
        check_owner(same, "run a, step 10", "latent space")
        check_owner(same, tokenizer.fingerprint, "latent space")
    before = tokenizer.fingerprint
    torch.nn.init.ones_(tokenizer.to_pixels.bias)
    for name in ("run a, step 10", before):
        with pytest.raises(
            ValueError,
            match=f"the latent space belongs to tokenizer {name}, not to {tokenizer.fingerprint}",
        ):
            check_owner(tokenizer, name, "latent space")
    torch.nn.init.zeros_(tokenizer.to_pixels.bias)  # as it was
    assert same_weights(tokenizer, "run a, step 10")


def test_a_file_that_a_config_names_counts_by_its_content_not_by_its_place(tmp_path):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    for place in (here, there):
        place.write_bytes(b"weights")
    configs = [
        *(LossConfig(perceptual_weights=str(place)) for place in (here, there)),
        *(AuxiliaryConfig(target="semantic", weights=str(place)) for place in (here, there)),
    ]
    before = [fingerprint(config) for config in configs]
    assert before[0] == before[1] != fingerprint(LossConfig())
    assert before[2] == before[3]
    here.write_bytes(b"others!")
    assert fingerprint(configs[0]) != before[0]
    assert fingerprint(configs[2]) != before[2]
    # a run that was made with the file as it was then is told from one with it as it is now
    run = Run.open("run", configs[1], root=tmp_path)
    run.close()
    there.write_bytes(b"others!")
    with pytest.raises(ValueError, match="a file that one of them names has another content"):
        Run.open("run", configs[1], root=tmp_path)
