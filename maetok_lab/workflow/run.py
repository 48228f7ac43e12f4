"""Run a notebook with checked parameters into a folder of its own, once.

    runs/notebooks/NAME-PRESET-sSEED/
        notebook.ipynb notebook.html parameters.json summary.json
        while running: lock heartbeat.json notebook-partial.ipynb
        when it failed: notebook-failed.ipynb

`summary.json` is written last, and its presence means finished: the same call then shows it and
does nothing, unless code, parameters or inputs changed since (`stored_result`). Heavy state lives
in the runs that a notebook makes, so one that was stopped continues when it is run again.
"""

import contextlib
import dataclasses
import errno
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maetok_lab.files import read_json, read_record, write_bytes, write_json
from maetok_lab.hints import printable, some
from maetok_lab.identity import fingerprint_of
from maetok_lab.runs import Run, runs_root
from maetok_lab.runs.locks import Lease, lock_folder
from maetok_lab.runs.provenance import clock, now, provenance
from maetok_lab.workflow.code import code_hash
from maetok_lab.workflow.execute import NotebookFailed, Progress, execute
from maetok_lab.workflow.inputs import changed_inputs, content_of_inputs
from maetok_lab.workflow.page import write_html
from maetok_lab.workflow.parameters import (
    check_parameters,
    check_words,
    read_cells,
    read_parameters,
)
from maetok_lab.workflow.printing import shortened
from maetok_lab.workflow.summary import as_text, collect

# ^C, what `kill` and Slurm send, and the end of a terminal's session
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# of a place where nothing can be written, or where a file is in the way; a full disk is another
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}
LONGEST_NAME = 120  # of a folder


@dataclasses.dataclass(frozen=True)
class NotebookResult:
    """A finished notebook."""

    folder: Path
    numbers: dict[str, Any]  # that it reported
    runs: list[Path]  # that it made
    seconds: float
    ran_now: bool  # or was it finished before

    @property
    def notebook(self) -> Path:
        """The executed copy."""
        return self.folder / "notebook.ipynb"

    @property
    def html(self) -> Path:
        """The executed copy as one web page."""
        return self.folder / "notebook.html"


@dataclasses.dataclass(frozen=True)
class NotebookCall:
    """A notebook with checked parameters."""

    path: Path
    changes: dict[str, Any]  # the parameters that were passed
    values: dict[str, Any]  # of all its parameters
    folder: Path
    identity: dict[str, str]  # what a stored result must match
    is_elsewhere: bool = False  # in an `output` of the caller's

    @property
    def title(self) -> str:
        """The notebook and the parameters that tell this call from others."""
        words = []
        for name, value in self.values.items():
            if name in ("preset", "seed") or name in self.changes:
                words.append(f"{name}={shortened(repr(value))}")
        return printable(f"{self.path.name} ({', '.join(words)})")


def prepare_call(
    path: str | Path, output: str | Path | None, parameters: Mapping[str, Any]
) -> NotebookCall:
    """Check `parameters` and find the folder; nothing is written.

    Raises ValueError or TypeError for a wrong parameter.
    """
    path = Path(path).absolute()
    declared = read_parameters(path)
    defaults = {name: parameter.default for name, parameter in declared.items()}
    changes = check_parameters(defaults, parameters)
    check_words(declared, changes)
    # The kernel works in another folder than the caller.
    if changes.get("runs"):
        changes["runs"] = os.path.abspath(changes["runs"])
    values = defaults | changes

    # `runs` says where, not what, and does not count.
    identity = {"code": code_hash(path), "parameters": fingerprint_of({**values, "runs": None})}
    if output is None:
        folder = _default_folder(path, values, defaults)
    else:
        folder = Path(output).absolute()
        folder = folder.with_suffix("") if folder.suffix == ".ipynb" else folder
    return NotebookCall(path, changes, values, folder, identity, output is not None)


def run_notebook(
    path: str | Path, output: str | Path | None = None, /, **parameters: Any
) -> NotebookResult:
    """Run a notebook with `parameters`, or say that it is finished already.

    `output` is the folder for the executed copy, or a file NAME.ipynb (then the folder is NAME
    beside it). Raises ValueError or TypeError for a wrong parameter before any kernel starts,
    NotebookFailed when a cell raises, RunLocked when another process is running the same.
    """
    call = prepare_call(path, output, parameters)
    result = stored_result(call)
    if result is None:
        print(f"{call.title}: into {_short(call.folder)}", flush=True)
        result = _run(call)
        print(f"{call.title}: finished in {clock(result.seconds)}")
    else:
        ended = f"{read_json(call.folder / 'summary.json')['ended']}, in {clock(result.seconds)}"
        print(f"{call.title}: already finished, {ended}. {_how_to_repeat(result)}")
    if output is not None and Path(output).suffix == ".ipynb":
        write_bytes(output, result.notebook.read_bytes())
    _print_result(result)
    return result


def _how_to_repeat(result: NotebookResult) -> str:
    """What to remove, so that numbers come anew."""
    words = f"To run it anew remove {_short(result.folder)}"
    if not result.runs:
        return words
    # a finished run is never made again: the notebook would only look at it
    runs = some([_short(run) for run in result.runs], most=6)
    return f"{words}; its runs then give the same numbers again, unless they go too: {runs}"


def stored_result(call: NotebookCall, *, tell: bool = True) -> NotebookResult | None:
    """The stored result, if it is whole and what it was made from is still the same.

    That is code, parameters, runs and images it read; the runs it made must still be there. With
    `tell`, a result that does not count any more is explained.
    """
    folder = call.folder
    if not (folder / "summary.json").exists():
        return None
    try:
        summary = read_record(folder / "summary.json", needs=["runs", "numbers", "seconds"])
    except ValueError as problem:
        if tell:
            print(f"{problem}: running it again", flush=True)
        return None
    # normpath, not resolve: a runs folder may be reached through a link
    runs = [Path(os.path.normpath(folder / run)) for run in summary["runs"]]
    result = NotebookResult(folder, summary["numbers"], runs, summary["seconds"], ran_now=False)

    # Results of earlier versions lack some of these facts: they are made anew.
    changed = [f"its {key}" for key in call.identity if summary.get(key) != call.identity[key]]
    changed += [_short(place) for place in changed_inputs(summary.get("inputs", {}), folder)]
    files = [result.notebook, result.html, *(run / "summary.json" for run in runs)]
    missing = [_short(file) for file in files if not file.exists()]
    unfinished = [run.name for run in runs if not _is_whole(run)]
    if not changed and not missing and not unfinished:
        return result
    if tell:
        reason = f"{', '.join(missing)} is missing"
        if unfinished:
            reason = f"run {' and '.join(unfinished)} is not whole"
        if changed:
            reason = f"{' and '.join(changed)} changed"
        print(f"{_short(folder)} was finished, but {reason} since: running it again", flush=True)
    return None


def _is_whole(folder: Path) -> bool:
    """Whether what a run rests on was not damaged since; folders that are no runs do not count."""
    try:
        return Run(folder).finished
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _default_folder(path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Path:
    """One folder for each notebook and set of parameters: NAME-PRESET-sSEED, and a hash of more."""
    parts = [path.stem]
    if values.get("preset") is not None:
        parts.append(str(values["preset"]))
    if "seed" in values:
        parts.append(f"s{values['seed']}")
    # Only what differs, so that a new parameter does not move the results of before.
    more = {}
    for name, value in values.items():
        if name not in ("preset", "seed", "runs") and value != defaults[name]:
            more[name] = value
    if more:
        parts.append(fingerprint_of(more)[:8])
    name = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))
    if len(name) > LONGEST_NAME:  # what is cut off still counts
        name = f"{name[: LONGEST_NAME - 9]}-{fingerprint_of(name)[:8]}"
    return runs_root(values.get("runs")).absolute() / "notebooks" / name


def _run(call: NotebookCall) -> NotebookResult:
    """Execute it under the folder's lock, and write the files that the module's docstring lists."""
    path = call.path
    folder = call.folder
    lock = hold_folder(folder, _where_to_write(call))
    partial = folder / "notebook-partial.ipynb"
    failed = folder / "notebook-failed.ipynb"
    progress = Progress(folder / "heartbeat.json", len(read_cells(path)))
    try:
        # Not finished from here on, whatever happens.
        for old in (folder / "summary.json", partial, failed):
            old.unlink(missing_ok=True)
        write_json(folder / "parameters.json", call.values)

        home = runs_root().absolute().parent  # where the kernel works
        # `partial` is saved after every cell, so a failure leaves all that there was.
        with _signals_as_exceptions(progress):
            notebook = execute(path, partial, call.changes, folder=home, progress=progress)
        write_html(notebook, folder / "notebook.html", folder=path.parent, home=home)
        os.replace(partial, folder / "notebook.ipynb")

        # Paths inside are relative, so that a runs folder can be moved as a whole.
        numbers, paths = collect(notebook.cells)
        runs = [Path(path) for path in paths]
        summary = {
            "numbers": numbers,
            "runs": [os.path.relpath(run, folder) for run in runs],
            "seconds": round(progress.seconds, 1),
            "ended": now(),
            "provenance": provenance(),
            **call.identity,
            "inputs": content_of_inputs(call.values, runs, folder),
        }
        write_json(folder / "summary.json", summary)
        return NotebookResult(folder, numbers, runs, progress.seconds, ran_now=True)
    except NotebookFailed as problem:
        if partial.exists():
            os.replace(partial, failed)
        raise NotebookFailed(f"{problem}\nThe notebook up to there: {_short(failed)}") from None
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped in section {progress.section!r}; run the same again to continue")
        raise
    finally:
        progress.heartbeat.unlink(missing_ok=True)
        lock.release()


def hold_folder(folder: Path, advice: str) -> Lease:
    """Make a folder and hold its lock.

    Raises RunLocked as `lock_folder` does, OSError with `advice` where nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock_folder(folder)
    except OSError as problem:
        if problem.errno not in NOT_WRITABLE:
            raise
        reason = f"cannot write {_short(folder)} ({problem.strerror}); {advice}"
        raise type(problem)(problem.errno, reason) from None


def _where_to_write(call: NotebookCall) -> str:
    """How to choose another place: by the notebook's own parameter, else by the command's -o."""
    if "runs" in call.values and not call.is_elsewhere:
        return (
            "choose a folder for runs that can be written: -p runs FOLDER on a command line, "
            "the parameter `runs` in a notebook"
        )
    return "choose one that can be written: -o FOLDER on a command line, `output` in Python"


@contextlib.contextmanager
def _signals_as_exceptions(progress: Progress) -> Iterator[None]:
    """SIGTERM and SIGHUP become SystemExit, as SIGINT is KeyboardInterrupt.

    papermill then ends the kernel, which would otherwise live on; a training in it saves first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone set handlers
        return

    def stop(number: int, frame: object) -> None:
        progress.stopped = True
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    handlers = {}
    for number in STOP_SIGNALS:
        # one that somebody handles or ignores stays with them
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            handlers[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _print_result(result: NotebookResult) -> None:
    """The numbers, and where to look."""
    print(as_text(result.numbers, []))
    # The runs come last: they are what the next notebook reads.
    places = {"page": result.html, "notebook": result.notebook}
    places |= {f"run {printable(run.name)}": run for run in result.runs}
    width = max(map(len, places))
    print("Where to look:")
    for name, place in places.items():
        print(f"  {name:<{width}}  {_short(place)}", flush=True)


def _short(path: Path) -> str:
    """Relative to the working directory, where it is below it."""
    home = Path.cwd()
    return printable(str(path.relative_to(home) if path.is_relative_to(home) else path))
