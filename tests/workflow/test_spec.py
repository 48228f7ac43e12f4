"""Sweeps are read from TOML or made in Python; what makes no sense is one clear line."""

import pytest

from maetok_lab.workflow.spec import SlurmConfig, SweepSpec, grid, read_spec


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


def test_a_file_is_read_with_everything_in_it(tmp_path):
    (tmp_path / "n.ipynb").touch()
    path = written(
        tmp_path,
        'notebook = "n.ipynb"\nquality = "kid"\nspeed = "rate"\nretries = 2\n'
        '[fixed]\npreset = "test"\nseed = 1\n'
        "[grid]\nscale = [1.0, 1.5, 2.0]\nsteps = [[10]]\n"
        '[slurm]\npartition = "gpu"\nminutes = 60\nsetup = ["module load x"]',
    )
    spec = read_spec(path, {"seed": 5})
    assert (spec.name, spec.notebook, spec.retries) == ("a-sweep", str(tmp_path / "n.ipynb"), 2)
    assert spec.fixed == {"preset": "test", "seed": 5}
    assert len(spec.entries) == 3
    assert spec.entries[1] == {"scale": 1.5, "steps": [10]}
    assert spec.slurm == SlurmConfig(partition="gpu", minutes=60, setup=("module load x",))
    assert spec.swept == ["scale", "steps"]


def test_entries_may_be_listed_one_by_one(tmp_path):
    text = 'notebook = "n.ipynb"\n[[list]]\nscale = 1.0\n[[list]]\nsteps = 3'
    spec = read_spec(written(tmp_path, text))
    assert spec.entries == ({"scale": 1.0}, {"steps": 3})
    assert spec.swept == ["scale", "steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('notebook = "n.ipynb"', "needs one of"),
        ('notebook = "n.ipynb"\n[grid]\na = [1]\n[[list]]\na = 1', "needs one of"),
        ("[grid]\na = [1]", "needs a notebook"),
        (
            'notebook = "n.ipynb"\nretrys = 1\n[grid]\na = [1]',
            "no field 'retrys'; did you mean 'retries'",
        ),
        ('notebook = "n.ipynb"\n[grid]\na = [1]\n[slurm]\ngpu = 1', "did you mean 'gpus'"),
        ('notebook = "n.ipynb"\n[fixed]\na = 1\n[grid]\na = [1]', "fixed and swept"),
        ('notebook = "n.ipynb"\nretries = "2"\n[grid]\na = [1]', "retries must be int"),
        ('notebook = "n.ipynb"\n[random]\ncount = 3', "needs one of"),
        ("notebook = ", "a-sweep.toml: Invalid value"),
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
    ]:
        with pytest.raises(ValueError, match=message):
            SweepSpec(**{**one, **wrong})
    with pytest.raises(ValueError, match="minutes must be 10 or more, not 5"):
        SlurmConfig(minutes=5)


def test_a_sweep_of_a_billion_entries_is_refused_before_one_is_made(tmp_path):
    message = r"at most 10,000 entries, not 1,000,000,000"
    with pytest.raises(ValueError, match=message):
        grid({name: range(1000) for name in "abc"})
    lists = "".join(f"{name} = {list(range(1000))}\n" for name in "abc")
    with pytest.raises(ValueError, match=rf"a-sweep\.toml: .*{message}"):
        read_spec(written(tmp_path, f'notebook = "n.ipynb"\n[grid]\n{lists}'))
    with pytest.raises(ValueError, match="at most 10,000 entries, not 10,001"):
        read_spec(written(tmp_path, 'notebook = "n.ipynb"\n' + "[[list]]\nseed = 1\n" * 10_001))
    assert len(grid({name: range(100) for name in "ab"})) == 10_000


@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 60 + "]" * 60, "[{a = " * 20_000], ids=len)
def test_a_file_nested_too_deeply_or_too_large_is_one_line(tmp_path, value):
    with pytest.raises(ValueError, match=r"a-sweep\.toml.*nested") as refused:
        read_spec(written(tmp_path, f'notebook = "n.ipynb"\n[fixed]\na = {value}\n[[list]]\nb = 1'))
    assert len(str(refused.value)) < 500
    deep = "a." * 50_000 + "a = 1"
    with pytest.raises(ValueError, match=r"a-sweep\.toml.*nested"):
        read_spec(written(tmp_path, f'notebook = "n.ipynb"\n[fixed]\n{deep}\n[[list]]\nb = 1'))
    with pytest.raises(ValueError, match=r"a-sweep\.toml: .* at most 4,000,000 bytes, not 5,0"):
        read_spec(written(tmp_path, "#" * 5_000_000))
