"""A run folder is written whole, by one writer, and read without trust."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from maetok_lab.config import not_in_fingerprint
from maetok_lab.identity import fingerprint_of
from maetok_lab.runs import Run, changes_suffix, checked_name, list_runs, run_suffix, runs_root
from maetok_lab.runs.locks import RunLocked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    width: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    model: Model = Model()
    rate: float = 0.5
    log_every: int = not_in_fingerprint(10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherJob:
    model: Model = Model()
    rate: float = 0.5
    log_every: int = not_in_fingerprint(10)


@pytest.fixture
def run(tmp_path):
    with Run.open("a", Job(), root=tmp_path) as opened:
        yield opened


def weights(value: float) -> dict[str, dict[str, torch.Tensor]]:
    model = {"w": torch.full((2, 3), value), "step": torch.tensor(value)}
    return {"model": model, "ema": {"w": torch.full((3,), -value)}}


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Opening ------------------------------------------------------------------------------------------


def test_a_new_run_has_its_config_and_provenance_before_anything_else(run):
    assert files(run.folder) == {"config.json", "provenance.json", "lock"}
    assert run.load_config(Job) == Job()
    assert run.provenance["parents"] == []
    assert not run.finished
    assert run.summary == {}


def test_a_run_is_continued_under_the_same_name_and_fingerprint_and_its_config_never_changes(
    tmp_path,
):
    Run.open("a", Job(), root=tmp_path).close()
    before = (
        (tmp_path / "a" / "config.json").read_bytes(),
        (tmp_path / "a" / "provenance.json").read_bytes(),
    )
    with Run.open("a", Job(log_every=99), root=tmp_path) as run:
        assert run.config["log_every"] == 10
    assert before == (
        (tmp_path / "a" / "config.json").read_bytes(),
        (tmp_path / "a" / "provenance.json").read_bytes(),
    )


def test_another_config_is_refused_with_every_field_that_differs(tmp_path):
    Run.open("a", Job(), root=tmp_path).close()
    with pytest.raises(ValueError, match="made with another config") as caught:
        Run.open("a", Job(model=Model(width=9), rate=0.25), root=tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  model.width: 9, not 8",
        "  rate: 0.25, not 0.5",
    ]
    with pytest.raises(ValueError, match="class: OtherJob, not Job"):
        Run.open("a", OtherJob(), root=tmp_path)
    assert "lock" not in files(tmp_path / "a")
    Run.open("a", Job(), root=tmp_path).close()


def test_a_run_stopped_before_it_had_a_config_is_made_anew(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "provenance.json").write_text("{")
    with Run.open("a", Job(), root=tmp_path) as run:
        assert run.provenance["parents"] == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../a",
        "a/b",
        "/tmp/a",
        "a\\b",
        ".hidden",
        "-p",
        "a b",
        "a\n",
        "ä",
        "x" * 121,
        "a\0",
    ],
)
def test_a_name_that_is_no_plain_folder_name_is_refused_and_writes_nothing(tmp_path, name):
    with pytest.raises(ValueError, match="a run's name is letters, digits"):
        Run.open(name, Job(), root=tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_plain_names_pass():
    for name in ("a", "tokenizer-tiny-s0", "0.4_x", "x" * 120):
        assert checked_name(name) == name


def test_reading_what_is_no_run_names_the_nearest(tmp_path):
    Run.open("tokenizer-tiny", Job(), root=tmp_path).close()
    with pytest.raises(
        FileNotFoundError, match=r"it has no config.json; did you mean 'tokenizer-tiny'\?"
    ):
        Run(tmp_path / "tokenizer-tinny")
    with pytest.raises(FileNotFoundError, match=r"is not a run: it has no config.json$"):
        Run(tmp_path / "nowhere" / "x")


def test_a_config_is_loaded_as_its_own_class_only(run):
    with pytest.raises(ValueError, match="run a holds a Job, not a OtherJob"):
        run.load_config(OtherJob)


def test_run_live_in_the_checkout(repository, tmp_path):
    assert runs_root() == repository / "runs"
    assert runs_root(tmp_path) == tmp_path


# One writer ---------------------------------------------------------------------------------------

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_run import Job, weights
from maetok_lab.runs import Run
run = Run.open("a", Job(), root=sys.argv[1])
run.save_checkpoint(10, weights(1.0), {"note": "killed"})
run.log({"step": 10, "split": "train", "loss": 1.0})
print("open", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_at_once_and_a_killed_ones_run_is_taken_over(tmp_path):
    here = os.path.dirname(__file__)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), here], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(RunLocked, match=f"is being written by process {writer.pid}"):
            Run.open("a", Job(), root=tmp_path)
        assert Run(tmp_path / "a").checkpoint_steps() == [10]  # reading is always allowed
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    with Run.open("a", Job(), root=tmp_path) as run:
        assert run.load_checkpoint().state == {"note": "killed"}
        assert f"pid={os.getpid()}\n" in (run.folder / "lock").read_text()


def test_finishing_writes_the_summary_and_gives_up_the_lock(run):
    run.finish({"loss": 0.5, "bad": float("nan")})
    assert run.finished
    assert run.summary["loss"] == 0.5
    assert run.summary["bad"] is None
    assert "ended" in run.summary
    assert "lock" not in files(run.folder)


# Reading ------------------------------------------------------------------------------------------


def test_plain_json_has_one_hash_whatever_the_order_of_its_keys():
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert fingerprint_of({"a": 1, "b": [2]}) != fingerprint_of({"a": 1, "b": [3]})


def test_run_are_listed_with_their_numbers(run, tmp_path):
    assert list_runs(tmp_path / "nowhere").empty
    run.save_checkpoint(10, weights(1.0), {})
    with Run.open("b", OtherJob(), root=tmp_path) as other:
        other.finish({"psnr": 21.5, "note": "text"})
    table = list_runs(tmp_path).set_index("run")
    assert table.loc["a", ["kind", "finished", "step"]].tolist() == ["Job", False, 10]
    assert table.loc["b", ["kind", "finished", "psnr"]].tolist() == ["OtherJob", True, 21.5]
    assert "note" not in table


def test_pictures_have_their_place(run):
    assert run.sample_path(100) == run.folder / "samples" / "step-0000100.png"
    assert run.sample_path(100).parent.is_dir()


def test_changes_of_a_config_have_a_name_of_their_own():
    assert changes_suffix({}) == ""
    suffix = changes_suffix({"batch_size": 4, "optimizer.learning_rate": 1e-4})
    assert re.fullmatch(r"-[0-9a-f]{8}", suffix)
    assert suffix == changes_suffix({"optimizer.learning_rate": 1e-4, "batch_size": 4})
    assert suffix != changes_suffix({"batch_size": 4})


def test_a_run_of_another_kind_is_one_line(tmp_path):
    Run.open("a", Job(), root=tmp_path).close()
    with pytest.raises(ValueError, match=r"another config[^\n]*\n  class: Model, not Job$"):
        Run.open("a", Model(), root=tmp_path)


# Names --------------------------------------------------------------------------------------------


def test_names_of_runs_tell_sources_and_labels_apart():
    sources = [
        *("/a/train", "/b/train", "/a/photos.v1", "/a/photos.v2", "/a/写真", "/a/фото"),
        *("/a/x.parquet", "/a/x", "emoji"),
    ]
    names = [run_suffix("tiny", 0, source) for source in sources]
    assert len(set(names)) == len(names)
    assert names[-1] == "tiny-s0"
    assert re.fullmatch(r"tiny-photos\.v1-[0-9a-f]{6}-s0", names[2])
    for name in names:
        checked_name(f"tokenizer-{name}-tuned")
    assert run_suffix("tiny", 0, "emoji", "category-style") == "tiny-s0"
    assert run_suffix("tiny", 0, "emoji", "category") == "tiny-category-s0"
    assert run_suffix("tiny", 0, "/a/x", "category") == run_suffix("tiny", 0, "/a/x")
    assert run_suffix("tiny", 0, "/a/x", "grade/b") == run_suffix("tiny", 0, "/a/x", "grade-b")
