"""The benchmarks' commands run, at their smallest."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALLEST = {
    "diffusion_step.py": ["--preset", "test", "--batch", "4", "--steps", "2"],
    "gmm.py": [
        "--rows",
        "500",
        "--width",
        "8",
        "--components",
        "3",
        "--repeats",
        "1",
        "--threads",
        "1",
    ],
    "ladder.py": ["--preset", "test", "--rungs", "ae"],
    "metrics.py": [
        *("--images", "80", "--width", "16", "--subsets", "20", "--subset-size", "60"),
        *("--repeats", "1"),
    ],
    "processes.py": [*("--steps", "2", "--processes", "1", "--parts", "1", "2")],
    "sampling.py": ["--preset", "test", "--batch", "2", "--steps", "4", "--repeats", "1"],
    "study.py": [],
    "studio.py": ["--preset", "test", "--moves", "2"],
    "tokens.py": ["--preset", "test", "--tokens", "4", "16", "--batch", "1", "--repeats", "1"],
    "tokenizer_step.py": ["--presets", "test", "--repeats", "1"],
}


SLOW = ("ladder.py",)  # over ten seconds; its parts are tested in experiments/test_ladder.py


def columns(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SMALLEST]
)
def test_it_runs(name, tmp_path):
    needed = {"studio.py": "anywidget", "metrics.py": "torch_fidelity"}
    if name in needed and importlib.util.find_spec(needed[name]) is None:
        pytest.skip(f"{needed[name]} is not installed")
    words = [*SMALLEST[name], *(["--runs", str(tmp_path)] if name == "ladder.py" else [])]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if name == "tokenizer_step.py":
        names, _, values = map(columns, done.stdout.strip().splitlines()[-3:])
        row = dict(zip(names, values, strict=True))
        shares = [float(row[part].rstrip("%")) for part in names if row[part].endswith("%")]
        assert sum(shares) == pytest.approx(100, abs=len(shares))  # each is rounded
        assert float(row["images/s"]) > 0
    if name == "studio.py":
        assert "2 moves" in done.stdout
        assert len(re.findall(r"median \d+ ms, 95th percentile \d+ ms", done.stdout)) == 4
    if name == "tokens.py":
        *_, few, many = map(columns, done.stdout.strip().splitlines())
        assert (few[0], many[0]) == ("4", "16")
        assert 1 < float(many[2]) == pytest.approx(float(many[1]) / float(few[1]), rel=0.01)
    if name == "metrics.py":
        rows = [columns(line)[0] for line in done.stdout.strip().splitlines()[-3:]]
        assert rows == ["frechet", "kernel", "precision"]
    if name == "processes.py":
        _, _, adamw, muon = map(columns, done.stdout.strip().splitlines())
        assert (adamw[0], muon[0]) == ("adamw", "muon")
        assert max(float(adamw[4]), float(muon[4])) < 1e-5
    if name == "diffusion_step.py":
        names, _, values = map(columns, done.stdout.strip().splitlines()[-3:])
        row = dict(zip(names, values, strict=True))
        assert float(row["images/s"]) > 0
        assert 0 < float(row["share of it"].rstrip("%")) < 100


def test_mixtures_are_compared_with_scikit_learns_and_projected(capsys, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    main = runpy.run_path(str(BENCHMARKS / "gmm.py"))["main"]
    options = "--rows 300 --width 8 --components 4 --iterations 3 --repeats 1 --threads 1"
    main(options.split())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all((line["rows"], line["components"], line["threads"]) == (300, 4, 1) for line in lines)
    iterations, *fits = lines
    assert iterations["times_sklearn_float64"] > 0
    assert iterations["projected_hours_imagenet_float64"] > 0
    assert [line["components are"] for line in fits] == ["overlapping", "separated"]
    for line in fits:
        assert min(line["times_kmeans_float64"], line["times_k-means++_float32"]) > 0
        assert line["log_likelihood_float64"] > line["log_likelihood_k-means++"] - 0.01


def test_every_benchmark_is_named_in_its_readme():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    scripts = [
        path.name
        for path in BENCHMARKS.glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8")
    ]
    assert scripts
    assert not [name for name in scripts if f"benchmarks/{name}" not in text]


def test_all_that_a_gpu_can_say_runs_whole_on_a_cpu(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--preset", "test", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    outcomes = dict(line.split(": ", 1) for line in done.stdout.strip().splitlines())
    assert len(outcomes) == 9
    assert all(re.fullmatch(r"\d+ s", outcome) for outcome in outcomes.values()), outcomes
    table = (tmp_path / "table.md").read_text()
    for name in outcomes:
        assert f"### {name} (" in table
        assert json.loads((tmp_path / f"{name}.json").read_text())
    # a device against itself differs by nothing, its precisions by little
    apart = json.loads((tmp_path / "parity.json").read_text())
    differences = {row["what"]: float(row["largest difference / std"]) for row in apart}
    assert differences["sampling, fp32: graphs / eager"] == 0
    assert differences["sampling, fp32: this device / CPU"] == 0
    assert differences["sampling: bf16 / fp32"] < 0.05


def test_what_did_not_run_is_said_and_the_rest_stays(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--preset", "test", "--device", "cuda"]
    if torch.cuda.is_available():
        pytest.skip("here they would run")
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--minutes", "0.5"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0
    lines = done.stdout.strip().splitlines()
    assert "torch sees 0 CUDA devices" in lines[0]
    assert "failed: " in (tmp_path / "table.md").read_text()
