"""One's own tokenizer by its import path: five lines are enough, and what lacks is said."""

import sys

import pytest
import torch

from maetok_lab.protocols import AnyTokenizer
from maetok_lab.tokenizer import imported
from maetok_lab.tokenizer.foreign import open_tokenizer

FIVE_LINES = """
class Halves:
    fingerprint, latent_shape = "halves-1", (256, 3)
    def encode(self, images): return avg_pool2d(images, 2).flatten(2).transpose(1, 2)
    def decode(self, latents): return interpolate(latents.mT.unflatten(2, (16, 16)), (32, 32))
"""
IMPORTS = "from torch.nn.functional import avg_pool2d, interpolate\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes mine.py into a folder that Python imports from."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(text):
        (tmp_path / "mine.py").write_text(IMPORTS + text)

    yield write
    sys.modules.pop("mine", None)


def test_five_lines_are_a_tokenizer(own):
    own(FIVE_LINES)
    tokenizer = open_tokenizer("mine:Halves", image_size=32)
    assert isinstance(tokenizer, AnyTokenizer)
    images = torch.rand(2, 3, 32, 32)
    assert tokenizer.encode(images).shape == (2, 256, 3)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
    lines = [line.strip() for line in FIVE_LINES.strip().splitlines()]
    assert all(line.partition("  #")[0] in imported.__doc__ for line in lines)


def test_the_image_size_is_passed_where_it_is_taken_and_modules_are_put_into_eval_mode(own):
    own(
        "from torch import nn\n"
        "class Sized(nn.Module):\n"
        "    fingerprint = 'sized'\n"
        "    def __init__(self, image_size):\n"
        "        super().__init__()\n"
        "        self.latent_shape = (image_size**2, 3)\n"
        "    def encode(self, images):\n"
        "        assert not self.training\n"
        "        return images.flatten(2).mT\n"
        "    def decode(self, latents):\n"
        "        return latents.mT.unflatten(2, (int(latents.shape[1] ** 0.5), -1))\n"
    )
    assert open_tokenizer("mine:Sized", image_size=8).latent_shape == (64, 3)


def test_each_thing_that_lacks_is_one_line(own):
    own("class Bare:\n    def encode(self, images): return images\n")
    with pytest.raises(ValueError, match="mine:Bare is no tokenizer yet") as problem:
        open_tokenizer("mine:Bare", image_size=8)
    lines = [line.partition(":")[0].strip() for line in str(problem.value).splitlines()[1:]]
    assert lines == ["fingerprint", "latent_shape", "decode"]


def test_shapes_that_are_not_what_it_says_are_named(own):
    own(FIVE_LINES.replace("(256, 3)", "(64, 3)"))
    with pytest.raises(ValueError, match=r"encode must give \(1, 64, 3\), .* not \(1, 256, 3\)"):
        open_tokenizer("mine:Halves", image_size=32)
    sys.modules.pop("mine")
    own(FIVE_LINES.replace("(32, 32)", "(16, 16)"))
    with pytest.raises(ValueError, match=r"decode must give \(1, 3, 32, 32\) back"):
        open_tokenizer("mine:Halves", image_size=32)


def test_a_module_or_a_name_that_is_not_there_says_where_it_is_looked_for(own):
    own(FIVE_LINES + "import nothing_of_that_name\n")
    with pytest.raises(ImportError, match=r"put minne\.py beside the notebook"):
        open_tokenizer("minne:Halves", image_size=32)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nothing_of_that_name'"):
        open_tokenizer("mine:Halves", image_size=32)
    sys.modules.pop("mine", None)
    own(FIVE_LINES)
    with pytest.raises(ImportError, match=r"mine has no Halfs; did you mean 'Halves'\?"):
        open_tokenizer("mine:Halfs", image_size=32)
