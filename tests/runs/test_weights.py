"""Training checkpoints of other people's code: weights by their plain names, nothing executed."""

import re
from argparse import Namespace

import pytest
import torch

from maetok_lab.files import write_json
from maetok_lab.runs.weights import plain_state, read_weights


class Unknown:
    """Something that is neither a tensor nor a setting."""


def test_what_compiling_and_data_parallel_put_into_names_is_left_out():
    value = torch.ones(1)
    wrapped = {
        "_orig_mod.a.weight": value,
        "module._orig_mod.b": value,
        "_orig_mod.module.c": value,
        "encoder._orig_mod.blocks.0.d": value,
        "encoder.module.e": value,  # a part of the model that has this name
    }
    expected = ["a.weight", "b", "c", "encoder.blocks.0.d", "encoder.module.e"]
    assert list(plain_state(wrapped)) == expected


@pytest.mark.parametrize("group", ["ema", "model", "state_dict"])
def test_the_group_of_weights_is_found_and_one_alone_needs_no_word(group, recwarn):
    assert plain_state({group: {"a": 1}, "optimizer": {}, "steps": 3}) == {"a": 1}
    assert not recwarn.list


def test_averaged_weights_come_first_and_that_is_said():
    with pytest.warns(UserWarning, match="of ema and model in this checkpoint, 'ema' is loaded"):
        assert plain_state({"model": {"a": 1}, "ema": {"a": 2}}) == {"a": 2}


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_settings_of_the_training_are_the_config_and_a_file_beside_it_goes_first(tmp_path, suffix):
    path = tmp_path / f"checkpoint.{suffix}"
    state = {"a": torch.arange(3.0)}
    torch.save({"model": state, "args": Namespace(image_size=64, num_heads=2)}, path)
    tensors, config = read_weights(path)
    assert torch.equal(tensors["a"], state["a"])
    assert config == {"image_size": 64, "num_heads": 2}
    write_json(tmp_path / "config.json", {"num_heads": 3})
    assert read_weights(path)[1] == {"image_size": 64, "num_heads": 3}


def test_the_weights_stay_when_the_file_is_written_anew(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"model": {"a": torch.ones(100_000)}}, path)
    tensors, _ = read_weights(path)
    torch.save({"model": {"a": torch.zeros(100_000)}}, path)
    assert tensors["a"].sum() == 100_000


def test_a_file_that_could_run_code_is_refused_with_a_command_that_saves_its_weights(
    tmp_path, monkeypatch
):
    path = tmp_path / "checkpoint.pt"
    state = {"a": torch.arange(3.0)}
    torch.save({"ema": state, "args": Unknown()}, path)
    with pytest.raises(ValueError, match="holds more than tensors and settings") as problem:
        read_weights(path)
    [command] = re.findall(r'python -c "(.*)"$', str(problem.value))
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    assert torch.equal(read_weights(tmp_path / "weights.pt")[0]["a"], state["a"])


def test_a_file_without_weights_is_one_clear_line(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*checkpoint.pt"):
        read_weights(path)
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged, or older than torch 1.6: "):
        read_weights(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match="holds a list, not weights by name"):
        read_weights(path)
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged, or older than torch 1.6: "):
        read_weights(path)


def test_odd_checkpoints_are_read_or_refused_in_one_line(tmp_path):
    weight = {"weight": torch.ones(2)}
    stored = {
        "settings.PT": {"model": weight, "args": None, "ema": {}},
        "lists.pt": {"model": weight, "args": ["--lr", "1"]},
    }
    for name, checkpoint in stored.items():
        torch.save(checkpoint, tmp_path / name)
        tensors, config = read_weights(tmp_path / name)
        assert list(tensors) == ["weight"]
        assert config == {}
    torch.save({0: torch.ones(2)}, tmp_path / "numbers.pt")
    assert list(read_weights(tmp_path / "numbers.pt")[0]) == ["0"]
    (tmp_path / "weights.ckpt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"from \.pt and \.pth files, or from a folder with .*ckpt"
    ):
        read_weights(tmp_path / "weights.ckpt")
