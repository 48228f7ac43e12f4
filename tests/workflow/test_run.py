"""A notebook runs once, in a folder of its own; wrong calls and stops leave no doubt."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from maetok_lab.files import read_json, write_json
from maetok_lab.runs.locks import RunLocked
from maetok_lab.workflow import NotebookFailed, report, run_notebook
from maetok_lab.workflow.execute import Progress
from maetok_lab.workflow.inputs import content_of_inputs
from maetok_lab.workflow.run import prepare_call
from maetok_lab.workflow.summary import MIME, collect

PARAMETERS = """\
preset = "tiny"  # sizes
seed = 0  # of every draw
scale = 1.0  # of the answer
runs = None  # folder"""
ANSWER = """\
from pathlib import Path
from maetok_lab.workflow import report
made = Path(runs) / "made-by-notebook"
made.mkdir(exist_ok=True)
(made / "summary.json").write_text("{}")
report(made, answer=42 * scale, steps=3)"""
WAIT = """\
import os, time
print('kernel', os.getpid(), flush=True)
time.sleep(0 if os.path.exists(runs + '/go') else 100)"""


def notebook(path, *code):
    """A notebook with the four parameters and one section a piece of code."""
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
    ]
    for number, source in enumerate(code, start=1):
        cells += [new_markdown_cell(f"## Part {number}\nprose"), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(autouse=True)
def _code_hash_of_the_notebook_alone(monkeypatch):
    """The library may be edited while its tests run; that it counts is tested apart."""
    import maetok_lab.workflow.run as module

    monkeypatch.setattr(module, "code_hash", lambda path: f"{hash(Path(path).read_text())}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    look = "import os\nprint('here:', os.getcwd())\nprint('spins:', os.environ['GOMP_SPINCOUNT'])"
    path = notebook(folder / "answer.ipynb", look, ANSWER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "maetok_lab.workflow.run.code_hash", lambda path: f"{hash(Path(path).read_text())}"
        )
        result = run_notebook(path, runs=folder / "runs", scale=2)
    return path, folder / "runs", result


@pytest.fixture
def start():
    """A function that starts the command line and waits until the kernel has said who it is."""
    processes = []

    def start(path, runs):
        command = [sys.executable, "-m", "maetok_lab", "run", str(path), "-p", "runs", str(runs)]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        text = ""
        for line in processes[-1].stdout:
            text += line
            if kernel := re.search(r"kernel (\d+)", line):
                return processes[-1], int(kernel[1])
        raise AssertionError(text)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def gone(process_id, seconds=30):
    """Whether a process ends within `seconds`; a zombie has ended."""
    for _ in range(seconds * 20):
        try:
            if Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_run_leaves_its_numbers_its_notebook_and_its_page(finished):
    _, runs, result = finished
    assert result.ran_now
    assert result.numbers == {"answer": 84.0, "steps": 3}
    assert result.runs == [runs / "made-by-notebook"]
    assert result.folder.parent == runs / "notebooks"
    assert re.fullmatch(r"answer-tiny-s0-[0-9a-f]{8}", result.folder.name)
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"notebook.ipynb", "notebook.html", "parameters.json", "summary.json"}
    assert read_json(result.folder / "parameters.json")["scale"] == 2.0
    assert {"commit", "dirty"} < set(read_json(result.folder / "summary.json")["provenance"])
    page = result.html.read_text()
    assert "Part 2" in page
    assert "84" in page
    assert "<script" not in page


def test_the_kernel_works_in_the_root_of_the_repository(finished, repository):
    assert f"here: {repository}" in finished[2].notebook.read_text()


def test_the_kernels_threads_give_their_core_away_soon(finished):
    assert "spins: 1000" in finished[2].notebook.read_text()


def test_a_second_call_shows_the_stored_numbers_at_once(finished, capsys, monkeypatch):
    path, runs, first = finished
    monkeypatch.setattr("maetok_lab.workflow.run.execute", None)  # no kernel
    started = time.perf_counter()
    result = run_notebook(path, runs=str(runs), scale=2.0)
    assert time.perf_counter() - started < 1
    assert not result.ran_now
    assert (result.numbers, result.runs, result.folder) == (first.numbers, first.runs, first.folder)
    output = capsys.readouterr().out
    assert "already finished" in output
    assert re.search(r"answer +84", output)
    assert "notebook.html" in output


@pytest.mark.parametrize("loss", ["code", "run", "page"])
def test_changed_code_or_a_missing_result_runs_again(finished, tmp_path, capsys, monkeypatch, loss):
    path, runs, first = finished
    calls = []
    monkeypatch.setattr(
        "maetok_lab.workflow.run.execute", lambda *args, **kw: calls.append(args) or 1 / 0
    )
    hidden = {"run": first.runs[0] / "summary.json", "page": first.html}.get(loss)
    summary = (first.folder / "summary.json").read_bytes()
    if hidden:
        hidden.rename(tmp_path / "hidden")
    else:
        monkeypatch.setattr("maetok_lab.workflow.run.code_hash", lambda path: "other")
    with pytest.raises(ZeroDivisionError):
        run_notebook(path, runs=runs, scale=2)
    if hidden:
        (tmp_path / "hidden").rename(hidden)
    (first.folder / "summary.json").write_bytes(summary)
    assert len(calls) == 1
    assert "running it again" in capsys.readouterr().out


def test_wrong_parameters_are_refused_before_any_kernel(finished, monkeypatch):
    path, runs, _ = finished
    monkeypatch.setattr("maetok_lab.workflow.run.execute", None)
    before = sorted(runs.rglob("*"))
    with pytest.raises(ValueError, match="did you mean 'preset'"):
        run_notebook(path, presett="tiny", runs=runs)
    with pytest.raises(TypeError, match="seed must be int"):
        run_notebook(path, seed="0", runs=runs)
    assert sorted(runs.rglob("*")) == before


def test_a_failing_cell_is_one_line_and_keeps_the_notebook(tmp_path, capsys):
    path = notebook(
        tmp_path / "bad.ipynb",
        "print('so far')",
        "raise ValueError(f'unknown preset {preset!r}')",
        "1",
    )
    with pytest.raises(NotebookFailed) as caught:
        run_notebook(path, tmp_path / "out.ipynb", preset="tinny", runs=tmp_path)
    line, place = str(caught.value).splitlines()
    assert line == "bad.ipynb failed in section 'Part 2' with ValueError: unknown preset 'tinny'"
    assert "so far" in (tmp_path / "out" / "notebook-failed.ipynb").read_text()
    assert place.endswith("notebook-failed.ipynb")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "notebook-failed.ipynb",
        "parameters.json",
    }
    output = capsys.readouterr().out
    assert "] Part 2" in output
    assert "Part 3" not in output


def test_an_output_file_gets_the_executed_copy_and_another_kernel_named_python3_does_not_matter(
    tmp_path, monkeypatch
):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    write_json(
        kernel / "kernel.json",
        {"argv": ["/bin/false"], "display_name": "not ours", "language": "python"},
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    path = notebook(tmp_path / "who.ipynb", "import sys\nprint(sys.executable)")
    run_notebook(path, tmp_path / "copy {seed}.ipynb", runs=tmp_path)
    assert sys.executable in (tmp_path / "copy {seed}.ipynb").read_text()


@pytest.mark.slow
def test_two_processes_on_one_folder_refuse_and_signals_end_the_kernel(tmp_path, start):
    path = notebook(tmp_path / "wait.ipynb", WAIT)
    process, kernel = start(path, tmp_path)
    folder = tmp_path / "notebooks" / "wait-tiny-s0"
    assert read_json(folder / "heartbeat.json")["section"] == "Part 1"
    with pytest.raises(RunLocked):
        run_notebook(path, runs=tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert gone(kernel)
    assert {file.name for file in folder.iterdir()} == {"notebook-partial.ipynb", "parameters.json"}
    process, kernel = start(path, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 128 + signal.SIGINT
    assert "run the same again to continue" in process.stdout.read()
    assert gone(kernel)


def test_after_a_kill_the_kernel_ends_and_the_same_call_finishes(tmp_path, start):
    path = notebook(tmp_path / "killed.ipynb", WAIT)
    process, kernel = start(path, tmp_path)
    process.kill()
    process.wait()
    assert gone(kernel)
    assert (tmp_path / "notebooks" / "killed-tiny-s0" / "lock").exists()
    (tmp_path / "go").touch()
    assert run_notebook(path, runs=tmp_path).ran_now
    assert not (tmp_path / "notebooks" / "killed-tiny-s0" / "lock").exists()


def test_a_progress_bar_becomes_a_few_lines(tmp_path, capsys):
    progress = Progress(tmp_path / "heartbeat.json", num_cells=1)
    for step in range(1000):
        progress.write(f"\r{step // 10}% |####|")
    progress.write("\rdone\nnext ")
    progress.write("line\n")
    assert capsys.readouterr().out.splitlines() == ["  0% |####|", "  done", "  next line"]
    assert json.loads((tmp_path / "heartbeat.json").read_text())["process"] == os.getpid()


def test_report_shows_its_numbers_in_plain_python_too_and_refuses_what_is_no_number(
    tmp_path, capsys
):
    import torch

    report(tmp_path, psnr=torch.tensor(19.5), kind="fd_efflite2", bad=float("nan"))
    output = capsys.readouterr().out
    assert re.search(r"psnr +19.5\n", output)
    assert re.search(r"bad +no finite number\n", output)
    assert str(tmp_path) in output
    with pytest.raises(TypeError, match="one number or string for 'x', not Tensor"):
        report(x=torch.zeros(2))


def test_several_reports_of_a_notebook_are_put_together():
    said = [{"numbers": {"a": 1}, "runs": ["/r"]}, {"numbers": {"b": 2}, "runs": ["/r", "/s"]}]
    cells = [{"outputs": [{"data": {MIME: data}}]} for data in said] + [{"source": "prose"}]
    assert collect(cells) == ({"a": 1, "b": 2}, ["/r", "/s"])


# Words ------------------------------------------------------------------------------------------


def test_a_finished_notebook_says_which_runs_keep_its_numbers(finished, capsys):
    path, runs, result = finished
    run_notebook(path, runs=runs, scale=2)
    line = capsys.readouterr().out.splitlines()[0]
    assert f"To run it anew remove {result.folder}; its runs then give the same numbers" in line
    assert line.endswith(f"unless they go too: {runs / 'made-by-notebook'}")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_checkout_that_cannot_be_written_says_how_to_choose_another_place(
    tmp_path, monkeypatch, number
):
    def refuse(self, *args, **options):
        raise OSError(number, os.strerror(number), str(self))

    path = notebook(tmp_path / "a.ipynb", "1")
    monkeypatch.setattr(Path, "mkdir", refuse)
    for output, cure in [
        (None, "-p runs FOLDER on a command line, the parameter `runs`"),
        (tmp_path / "out", "-o FOLDER on a command line"),
    ]:
        with pytest.raises(OSError, match=cure) as refused:
            run_notebook(path, output)
        assert refused.value.errno == number
    # a disk that is full is another matter
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space") as full:
        run_notebook(path)
    assert "choose" not in str(full.value)


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    progress = Progress(tmp_path / "file" / "heartbeat.json", num_cells=1)
    progress.cell_starts({"cell_type": "markdown", "source": "# Title"}, 0)
    assert progress.section == "Title"


def test_a_long_word_is_survived_and_counts_to_its_end(tmp_path, capsys):
    path = notebook(tmp_path / "long.ipynb", "1")
    calls = []
    for last in "ab":
        for scale in (1.0, 2.0):
            words = {"preset": "x" * 5000 + last, "scale": scale, "runs": str(tmp_path)}
            calls.append(prepare_call(path, None, words))
    assert len({call.folder for call in calls}) == 4
    assert max(len(call.folder.name) for call in calls) <= 120
    assert len(calls[0].title) < 250
    # what a parameter may name is looked for, whatever it is
    for word in ("x" * 300, "x/" * 3000, "~" + "x" * 300):
        assert content_of_inputs({"word": word, "runs": str(tmp_path)}, [], tmp_path) == {}


def test_what_a_cell_prints_and_raises_does_nothing_to_a_terminal(tmp_path, capfd):
    odd = r"\x1b[31mred\x1b[0m \x1b]0;owned\x07"
    path = notebook(tmp_path / "odd.ipynb", f'print("{odd}")\nraise ValueError("{odd}")')
    with pytest.raises(NotebookFailed) as caught:
        run_notebook(path, tmp_path / "out", runs=tmp_path)
    captured = capfd.readouterr()
    text = captured.out + captured.err + str(caught.value)
    assert "\x1b" not in text
    assert r"  red \x1b]0;owned\x07" in captured.out
    # and nothing else is printed, neither by the kernel that ends nor by papermill
    assert captured.err == ""


def test_a_comment_that_papermill_cannot_read_runs(tmp_path):
    parameters = "scale = 0.5  # noise is at t = 1\n" + PARAMETERS.replace("scale", "other")
    path = notebook(tmp_path / "t.ipynb", "assert scale == 2.0\n" + ANSWER)
    text = json.loads(path.read_text())
    text["cells"][1]["source"] = parameters
    path.write_text(json.dumps(text))
    assert run_notebook(path, scale=2.0, runs=tmp_path).numbers["answer"] == 84.0
