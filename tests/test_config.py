"""A config is changed, stored and fingerprinted only in ways that cannot hide a mistake."""

import dataclasses
import json
import subprocess
import sys
from typing import Any, Literal

import pytest

from maetok_lab.config import (
    Relative,
    differing_fields,
    from_json,
    not_in_fingerprint,
    override,
    to_json,
)
from maetok_lab.data.latents import LatentCaching
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.identity import fingerprint
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.model import TOKENIZERS
from maetok_lab.training.diffusion import DiffusionTraining
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.recipe import TokenizerTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    width: int = 8
    kind: Literal["round", "square"] = "round"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    part: Part = Part()
    parts: tuple[Part, ...] = (Part(), Part(width=4))
    pair: tuple[float, float] = (0.5, 1.0)
    rate: float = 0.5
    fast: bool = False
    name: str = "whole"
    scale: float | None = None
    flag: Literal[True, "auto"] = "auto"
    workers: int = not_in_fingerprint(2)

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate must be 0 or more, not {self.rate}")


DIFFUSION_CONFIG = DiffusionTraining(
    model=DIFFUSION["lightningdit-l"],
    num_classes=9,
    ema_decays=(0.9, 0.9999),
    **{"num_steps": 3, "batch_size": 2},
)
CONFIGS = [
    Whole(),
    LatentCaching(tokenizer="a", images="b"),
    DIFFUSION_CONFIG,
    *TOKENIZER_TRAINING.values(),
]


def test_override_changes_nested_fields_and_leaves_the_rest_and_the_original():
    config = Whole()
    changed = override(config, {"part.width": 16, "rate": 1, "part.kind": "square"})
    assert changed == Whole(part=Part(width=16, kind="square"), rate=1.0)
    assert isinstance(changed.rate, float)
    assert config == Whole()


def test_override_can_replace_a_part_and_change_a_field_of_the_new_one():
    for changes in (
        {"part": Part(kind="square"), "part.width": 3},
        {"part.width": 3, "part": Part(kind="square")},
    ):
        assert override(Whole(), changes).part == Part(width=3, kind="square")


class Half(Relative):
    def of(self, config: Whole, path: str) -> Any:
        return {"rate": config.rate / 2, "part.width": config.part.width // 2}[path]


def test_a_relative_change_is_of_the_config_before_any_change_and_is_checked_like_others():
    config = override(Whole(), {"rate": Half(), "part": Part(width=100), "part__width": Half()})
    assert (config.rate, config.part.width) == (0.25, 4)
    with pytest.raises(ValueError, match=r"rate must be 0 or more, not -1\.0"):
        override(dataclasses.replace(Whole(rate=0.0)), {"rate": Below()})


class Below(Relative):
    def of(self, config: Whole, path: str) -> float:
        return config.rate - 1


def test_override_reaches_three_levels_down():
    changed = override(
        TOKENIZER_TRAINING["tiny"], {"model.encoder.depth": 6, "losses.perceptual": "none"}
    )
    assert (changed.model.encoder.depth, changed.losses.perceptual) == (6, "none")
    assert changed.model.decoder == TOKENIZERS["tiny"].decoder


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"Part has no field 'widht'; did you mean 'width'\?"):
        override(Whole(), {"part.widht": 3})
    with pytest.raises(
        ValueError, match=r"Whole has no field 'zzzz'; choose one of \['fast', 'flag', 'name'"
    ):
        override(Whole(), {"zzzz": 3})
    with pytest.raises(
        ValueError, match=r"Whole.rate has no fields of its own, but 'rate.size' asks for one"
    ):
        override(Whole(), {"rate.size": 3})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"part.width": "8"}, TypeError, "Part.width must be int, not str '8'"),
        ({"part.width": 8.0}, TypeError, "Part.width must be int, not float 8.0"),
        ({"part.width": True}, TypeError, "Part.width must be int, not bool True"),
        ({"part": 3}, TypeError, "Whole.part must be Part, not int 3"),
        ({"rate": True}, TypeError, "Whole.rate must be float, not bool True"),
        ({"rate": None}, TypeError, "Whole.rate must be float, not NoneType None"),
        ({"fast": 1}, TypeError, "Whole.fast must be bool, not int 1"),
        ({"name": 3}, TypeError, "Whole.name must be str, not int 3"),
        ({"scale": "big"}, TypeError, "Whole.scale must be float, not str 'big'"),
        ({"pair": (1.0,)}, TypeError, r"Whole.pair needs 2 values, not \(1.0,\)"),
        ({"pair": 1.0}, TypeError, r"Whole.pair must be .*tuple.*, not float 1.0"),
        ({"pair": (1.0, "x")}, TypeError, r"Whole.pair\[1\] must be float, not str 'x'"),
        ({"parts": (Part(), 3)}, TypeError, r"Whole.parts\[1\] must be Part, not int 3"),
        (
            {"part.kind": "rond"},
            ValueError,
            r"Part.kind must be one of \['round', 'square'\], not 'rond'",
        ),
        ({"flag": 1}, ValueError, r"Whole.flag must be one of \[True, 'auto'\], not 1"),
        ({"rate": -1.0}, ValueError, "rate must be 0 or more, not -1.0"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_what_came(changes, error, message):
    with pytest.raises(error, match=message):
        override(Whole(), changes)


def test_what_is_nearly_right_becomes_right():
    changed = override(
        Whole(),
        {"pair": [1, 2], "parts": [Part(width=3), {"width": 5, "kind": "square"}], "scale": 2},
    )
    assert changed.pair == (1.0, 2.0)
    assert changed.parts == (Part(width=3), Part(width=5, kind="square"))
    assert isinstance(changed.scale, float)
    assert override(changed, {"scale": None, "flag": True}).scale is None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_config_survives_json_with_its_fingerprint(config):
    again = from_json(type(config), json.loads(json.dumps(to_json(config))))
    assert again == config
    assert fingerprint(again) == fingerprint(config)


def test_a_config_written_with_whole_numbers_keeps_its_fingerprint_through_json():
    config = dataclasses.replace(Whole(), rate=0, pair=(0, 1), scale=2)
    again = from_json(Whole, json.loads(json.dumps(to_json(config))))
    overridden = override(Whole(), {"rate": 0.0, "pair": (0.0, 1.0), "scale": 2.0})
    assert fingerprint(again) == fingerprint(config) == fingerprint(overridden)
    training = TOKENIZER_TRAINING["test"]
    direct = dataclasses.replace(
        training, losses=dataclasses.replace(training.losses, perceptual_weight=0)
    )
    assert fingerprint(direct) == fingerprint(override(training, {"losses.perceptual_weight": 0}))


def test_json_with_unknown_or_missing_fields_is_refused():
    data = to_json(Whole())
    with pytest.raises(ValueError, match=r"Whole has no field 'nam'; did you mean 'name'\?"):
        from_json(Whole, data | {"nam": 3})
    with pytest.raises(
        ValueError, match=r"Whole needs the fields \['name', 'rate'\], which are not there"
    ):
        from_json(Whole, {key: value for key, value in data.items() if key not in ("name", "rate")})
    with pytest.raises(TypeError, match=r"Part.width must be int"):
        from_json(Whole, data | {"part": {"width": "8", "kind": "round"}})


def other_value(value: Any, hint: Any) -> Any:
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    if dataclasses.is_dataclass(value):
        return None
    if value is None:
        return 1.5 if "float" in str(hint) else "other"
    if isinstance(value, str):
        return value + "x"
    return (*value, *value) or (0.5,)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_fingerprint_changes_with_every_field_that_matters_and_no_other(config):
    def changed(inner, name, value):
        copy = object.__new__(type(inner))  # past the checks of __post_init__
        copy.__dict__.update(vars(inner) | {name: value})
        return copy

    def walk(inner, rebuild):
        for field in dataclasses.fields(inner):
            value = getattr(inner, field.name)
            if dataclasses.is_dataclass(value):
                walk(value, lambda new, name=field.name: rebuild(changed(inner, name, new)))
                continue
            other = rebuild(changed(inner, field.name, other_value(value, field.type)))
            assert (fingerprint(other) != fingerprint(config)) == field.metadata.get(
                "fingerprint", True
            ), field.name

    walk(config, lambda new: new)


def test_only_what_changes_no_result_stays_out_of_the_fingerprint():
    out = {
        cls.__name__: {
            f.name for f in dataclasses.fields(cls) if not f.metadata.get("fingerprint", True)
        }
        for cls in (TokenizerTraining, DiffusionTraining, LatentCaching)
    }
    intervals = {"log_every", "save_every", "save_minutes", "picture_every"}
    assert out == {
        "TokenizerTraining": intervals | {"workers", "accumulate", "recompute", "compile"},
        "DiffusionTraining": intervals | {"accumulate", "recompute", "compile"},
        "LatentCaching": {"batch_size"},
    }


def test_the_fingerprint_covers_the_class_and_the_items_of_tuples():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Twin:
        width: int = 8
        kind: Literal["round", "square"] = "round"

    assert fingerprint(Twin()) != fingerprint(Part())
    assert fingerprint(Whole(parts=(Part(), Part(width=5)))) != fingerprint(Whole())
    training = TOKENIZER_TRAINING["tiny"]
    assert fingerprint(
        dataclasses.replace(training, targets=(AuxiliaryConfig(weight=0.7),))
    ) != fingerprint(training)
    assert len(fingerprint(Part())) == 16


def test_the_fingerprint_is_the_same_in_another_process():
    code = (
        "from maetok_lab.identity import fingerprint\n"
        "from maetok_lab.tokenizer.masking import MaskingConfig\n"
        "print(fingerprint(MaskingConfig(low=0.25, high=0.5)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    from maetok_lab.tokenizer.masking import MaskingConfig

    assert process.stdout.strip() == fingerprint(MaskingConfig(low=0.25, high=0.5))


def test_differing_fields_are_listed_with_their_paths():
    config = to_json(Whole(rate=0.25))
    other = to_json(Whole(part=Part(width=9)))
    del other["name"]
    assert differing_fields(config, other) == [
        "name: 'whole', not '(absent)'",
        "part.width: 8, not 9",
        "rate: 0.25, not 0.5",
    ]
    assert differing_fields(config, config) == []


def test_a_notebook_shows_a_screen_of_an_error_at_most(capsys):
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
    shell = interactiveshell.InteractiveShell()
    shell.colors = "nocolor"
    shell.run_cell("import maetok_lab as lab")
    inner = {"encoder": {"width": 64, "num_heads": 2, "depth": "6"}}
    shell.run_cell(f"lab.tokenizer_training('tiny', model={inner})")
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1] == "TypeError: TowerConfig.depth must be int, not str '6'"
    assert len(lines) <= 20


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_nested_too_deeply_is_one_line():
    for depth in (60, 100_000):
        with pytest.raises(ValueError, match=r"Whole\.parts is nested more than 50 deep"):
            override(Whole(), {"parts": nested(depth)})
        with pytest.raises(ValueError, match="Whole is nested more than 50 deep"):
            from_json(Whole, {"parts": nested(depth)})
