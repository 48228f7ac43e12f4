"""The command line stays small, and says what is wrong in one line and an exit code."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from maetok_lab.__main__ import main
from maetok_lab.runs import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 64


@pytest.fixture
def runs(tmp_path):
    with Run.open("toy-s0", ToyConfig(width=96), root=tmp_path) as run:
        run.log({"step": 1, "split": "train", "loss": 0.25})
        run.finish({"psnr": 19.5})
    return tmp_path


def test_help_fits_a_screen_and_has_no_model_settings():
    process = subprocess.run(
        [sys.executable, "-m", "maetok_lab", "--help"], capture_output=True, text=True, check=True
    )
    assert len(process.stdout.splitlines()) < 25
    process = subprocess.run(
        [sys.executable, "-m", "maetok_lab", "run", "-h"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        process.stdout.count("  -") <= 3
    )  # -h, -p, -o: whatever else is a parameter of the notebook


HEAVY = {"torchvision", "timm", "pandas", "sklearn", "matplotlib", "papermill", "submitit"}
HELP = """
import sys
from maetok_lab.__main__ import main
try:
    main(["--help"])
except SystemExit:
    print("modules:", *sys.modules)
"""


def test_help_imports_nothing_but_torch_and_the_command_line():
    command = [sys.executable, "-c", HELP]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(process.stdout.rpartition("modules: ")[2].split())
    assert "torch" in modules
    assert not HEAVY & modules
    ours = {name.partition(".")[2] for name in modules if name.startswith("maetok_lab")}
    assert ours == {"", "__main__", "_torchvision", "lazy", "hints"}


def seconds_of(*words):
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - started


@pytest.mark.slow
def test_help_takes_as_long_as_torch_and_a_quarter_at_most():
    torch_seconds = []
    help_seconds = []
    for _ in range(15):  # in turns; the fastest of each, as other work only adds
        torch_seconds.append(seconds_of("-c", "import torch"))
        help_seconds.append(seconds_of("-m", "maetok_lab", "--help"))
        ratio = min(help_seconds) / min(torch_seconds)
        if len(torch_seconds) >= 5 and ratio <= 1.25:
            break
    print(f"--help takes {ratio:.2f} times as long as import torch")
    assert ratio <= 1.25


def test_list_shows_every_run_with_its_numbers(runs, tmp_path, capsys):
    assert main(["list", "--runs", str(runs)]) == 0
    assert "toy-s0" in (output := capsys.readouterr().out)
    assert "19.5" in output
    assert main(["list", "--runs", str(tmp_path / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_show_tells_config_numbers_and_last_event(runs, capsys):
    assert main(["show", "toy-s0", "--runs", str(runs)]) == 0
    output = capsys.readouterr().out
    for part in ('"width": 96', '"psnr": 19.5', "'loss': 0.25", "ToyConfig, finished"):
        assert part in output
    assert main(["show", str(runs / "toy-s0")]) == 0


def test_show_lists_the_parameters_of_a_notebook(tmp_path, capsys):
    nbformat = pytest.importorskip("nbformat")
    cell = nbformat.v4.new_code_cell("seed = 3  # of every draw", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    assert main(["show", str(tmp_path / "a.ipynb")]) == 0
    assert capsys.readouterr().out == "seed = 3  # of every draw\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "toy-s1"], "did you mean 'toy-s0'"),
        (["show", "../toy-s0"], "a run's name is"),
        (["run", "no.ipynb"], "no notebook no.ipynb"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(runs, capsys, words, message):
    assert main(words + (["--runs", str(runs)] if words[0] == "show" else [])) == 2
    output = capsys.readouterr().err
    assert message in output
    assert len(output.splitlines()) == 1


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--depth", "6"])
    assert stop.value.code == 2
    capsys.readouterr()


def test_list_fits_its_width_and_shows_first_what_says_most(tmp_path, capsys, monkeypatch):
    for seed in range(3):
        with Run.open(f"toy-s{seed}", ToyConfig(), root=tmp_path) as run:
            run.finish({"psnr": 19.5, **{f"of_{seed}_{i}": i for i in range(50)}})
    # a folder that somebody unpacked: its name and what it reports are theirs
    hostile = tmp_path / "evil\x1b[31m\x1b]0;owned\x07"
    shutil.copytree(tmp_path / "toy-s0", hostile)
    (hostile / "summary.json").write_text(json.dumps({"x\x1b[2J": 1, "psnr": 2}))

    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["list", "--runs", str(tmp_path)]) == 0
        output = capsys.readouterr().out
        assert "\x1b" not in output
        *lines, left_out = output.splitlines()
        assert max(map(len, lines)) <= int(columns)
        assert lines[0].split()[:3] == ["run", "kind", "state"]
        assert "more columns: `python -m maetok_lab show RUN`" in left_out
    # the number that all have is there before those of one
    assert "psnr" in lines[0]
    assert r"evil\x1b[31m" in output
    monkeypatch.delenv("COLUMNS")
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 160
    # and so does everything else that prints what runs hold
    for words in (["show", str(hostile)], ["prune", "--runs", str(tmp_path)]):
        main(words)
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err
    assert main(["show", "no\x1b[31m", "--runs", str(tmp_path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_what_is_missing_or_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    cell = nbformat.v4.new_code_cell("runs = None  # f", metadata={"tags": ["parameters"]})
    notebook = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    (tmp_path / "spec.toml").write_text('notebook = "a.ipynb"\n[[list]]\n')
    (tmp_path / "file").touch()
    inside = str(tmp_path / "file" / "runs")
    for words, cure in [
        (["run", str(notebook), "-p", "runs", inside], "-p runs FOLDER"),
        (["run", str(notebook), "-o", inside], "-o FOLDER"),
        (["sweep", str(tmp_path / "spec.toml"), "--runs", inside], "--runs FOLDER"),
    ]:
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: cannot write ")
        assert "(Not a directory); " in error
        assert cure in error
        assert len(error.splitlines()) == 1

    monkeypatch.setitem(sys.modules, "papermill", None)
    assert main(["run", str(notebook), "-p", "runs", str(tmp_path)]) == 1
    assert "papermill" in capsys.readouterr().err


def test_investigate_runs_notebook_05_on_a_tokenizer_beside_raw_pixels(monkeypatch, tmp_path):
    calls = []

    def run_notebook(path, output, **parameters):
        calls.append((path.name, output, parameters))
        return SimpleNamespace(html=tmp_path / "page.html")

    monkeypatch.setattr("maetok_lab.workflow.run.run_notebook", run_notebook)
    source = ["-p", "source", "/data/mine"]
    # a tokenizer of ours says its image size; a grid takes any, raw pixels are the null case alone
    assert main(["investigate", "shipped/plain", *source]) == 0
    assert main(["investigate", "sd-vae", "-p", "image_size", "128", "-o", "here"]) == 0
    assert main(["investigate", "pixels"]) == 0
    assert main(["investigate", "sd-vae", "--alone"]) == 0
    name = "05_latent_space.ipynb"
    compared = {"tokenizers": ["shipped/plain", "pixels"], "image_size": 64}
    assert calls == [
        (name, None, compared | {"source": "/data/mine"}),
        (name, "here", {"tokenizers": ["sd-vae", "pixels"], "image_size": 128}),
        (name, None, {"tokenizers": ["pixels"]}),
        (name, None, {"tokenizers": ["sd-vae"]}),
    ]
