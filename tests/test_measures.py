"""The commands of docs/measures.md run: on small random weights and a few images."""

import re

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from maetok_lab.evaluation.protocol import EvalResult

# what a reader has who has everything -> a stand-in of the same kind
STAND_INS = {
    '"MAETok/maetok-b-128"': '"released"',
    '"/data/imagenet"': '"imagenet"',
    "image_size = 256": "image_size = 64",
    "preview = False": "preview = True",
    "lab.pick_device()": 'lab.pick_device("cpu")',
    'load_metric_net("inception")': 'load_metric_net("squeezenet1_1")',
}


def snippet(repository):
    text = (repository / "docs" / "measures.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert max(map(len, code.splitlines())) <= 95
    for real, stand_in in STAND_INS.items():
        assert real in code
        code = code.replace(real, stand_in)
    return code


def released_weights(repository, folder):
    """The fixture's weights as the authors' folders are: their names, and a config."""
    weights = {}
    with safe_open(repository / "tests" / "fixtures" / "tokenizer-small.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            if name.startswith("weights."):
                weights[name.removeprefix("weights.")] = file.get_tensor(name)
        config = file.metadata()["config"]
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(config)


def pictures(folder, count):
    random = np.random.default_rng(count)
    for number in range(count):
        place = folder / f"n{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(70, 80, 3), dtype=np.uint8)).save(
            place / f"{number}.png"
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command_for_the_published_ifid_runs(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    released_weights(repository, tmp_path / "released")
    pictures(tmp_path / "imagenet" / "train", 24)
    pictures(tmp_path / "imagenet" / "val", 12)
    names = {}
    exec(snippet(repository), names)
    result = names["result"]
    assert isinstance(result, EvalResult)
    assert result.preview
    assert set(result.metrics) == {"ifd_squeeze", "rfd_squeeze", "ifd_gap_squeeze"}
    assert result.protocol.reference_images == 12
    printed = capsys.readouterr().out
    assert "slerp halfway to 1 of the 10 nearest of 24 latents" in printed
    assert "ifd_squeeze" in printed
