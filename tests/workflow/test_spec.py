"""Sweeps are read from TOML or made in Python; what makes no sense is one clear line."""

import math

import pytest

from maetok_lab.workflow.spec import Halving, SlurmConfig, SweepSpec, draw, grid, read_spec


def written(tmp_path, text, name="a-sweep.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_grid_is_every_combination_the_last_parameter_fastest():
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    with pytest.raises(ValueError, match="list of values for 'b', not 'xy'"):
        grid({"a": [1], "b": "xy"})


def test_random_draws_stay_in_their_ranges_and_do_not_depend_on_their_number():
    ranges = {
        "rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "depth": {"low": 2, "high": 4},
        "kind": ["a", "b"],
    }
    entries = draw({**ranges, "scale": {"low": 1.0, "high": 4.0}}, count=200, seed=3)
    assert entries[:5] == draw({"scale": {"low": 1.0, "high": 4.0}, **ranges}, count=5, seed=3)
    assert entries[:5] != draw({**ranges, "scale": {"low": 1.0, "high": 4.0}}, count=5, seed=4)
    assert {entry["depth"] for entry in entries} == {2, 3, 4}
    assert {entry["kind"] for entry in entries} == {"a", "b"}
    assert all(1.0 <= entry["scale"] <= 4.0 and 1e-4 <= entry["rate"] <= 1e-1 for entry in entries)
    middle = sorted(math.log10(entry["rate"]) for entry in entries)[100]
    assert -2.8 < middle < -2.2


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"low": 1}, "low, high"),
        ({"low": 2, "high": 1}, "low, high"),
        ({"low": 0, "high": 1, "log": True}, "low > 0"),
        ("ab", "list"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        draw({"x": what}, count=1)


def test_a_file_is_read_with_everything_in_it(tmp_path):
    (tmp_path / "n.ipynb").touch()
    path = written(
        tmp_path,
        'notebook = "n.ipynb"\nquality = "kid"\nspeed = "rate"\nretries = 2\n[fixed]\npreset = "test"\nseed = 1\n'
        "[random]\ncount = 3\n[random.parameters]\nscale = {low = 1.0, high = 2.0}\n"
        '[halving]\nparameter = "steps"\nvalues = [10, 20]\nkeep = 0.4\n'
        '[slurm]\npartition = "gpu"\nminutes = 60\nsetup = ["module load x"]',
    )
    spec = read_spec(path, {"seed": 5})
    assert (spec.name, spec.notebook, spec.retries) == ("a-sweep", str(tmp_path / "n.ipynb"), 2)
    assert spec.fixed == {"preset": "test", "seed": 5}
    assert len(spec.entries) == 3
    assert spec.halving == Halving(parameter="steps", values=(10, 20), keep=0.4)
    assert spec.slurm == SlurmConfig(partition="gpu", minutes=60, setup=("module load x",))
    assert spec.swept == ["scale", "steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('notebook = "n.ipynb"', "needs one of"),
        ('notebook = "n.ipynb"\n[grid]\na = [1]\n[[list]]\na = 1', r"not \['grid', 'list'\]"),
        ("[grid]\na = [1]", "names no notebook"),
        (
            'notebook = "n.ipynb"\nretrys = 1\n[grid]\na = [1]',
            "no key 'retrys'; did you mean 'retries'",
        ),
        ('notebook = "n.ipynb"\n[grid]\na = [1]\n[slurm]\ngpu = 1', "did you mean 'gpus'"),
        ('notebook = "n.ipynb"\n[fixed]\na = 1\n[grid]\na = [1]', "fixed and swept"),
        (
            'notebook = "n.ipynb"\n[random]\ncount = 3',
            r"needs a table \[random\.parameters\], and has only \['count'\]",
        ),
        ("notebook = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_spec(written(tmp_path, text))
    with pytest.raises(FileNotFoundError, match=r"did you mean 'a-sweep\.toml'"):
        read_spec(tmp_path / "a_sweep.toml")


def test_a_wrong_sweep_is_refused():
    one = {"name": "a", "notebook": "n.ipynb", "entries": ({"x": 1},)}
    for wrong, message in [
        ({"entries": ()}, "no entries"),
        ({"name": "../a"}, "a run's name is"),
        ({"workers": 0}, "workers >= 1"),
        ({"halving": Halving(parameter="s", values=(1, 2))}, "needs quality"),
    ]:
        with pytest.raises(ValueError, match=message):
            SweepSpec(**{**one, **wrong})
    with pytest.raises(ValueError, match="two or more values"):
        Halving(parameter="s", values=(1,))
    with pytest.raises(ValueError, match="minutes must be 10 or more, not 5"):
        SlurmConfig(minutes=5)
