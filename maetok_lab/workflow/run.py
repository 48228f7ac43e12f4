"""Run a notebook with checked parameters into a folder of its own, once.

    runs/notebooks/NAME-PRESET-sSEED/  notebook.ipynb notebook.html parameters.json summary.json
                                       while running: lock.json heartbeat.json notebook-partial.ipynb
                                       when it failed: notebook-failed.ipynb

`summary.json` is written last, and its presence means finished: the same call then shows it and does nothing. Heavy
state lives in the runs that a notebook makes, so a notebook that was stopped continues when it is run again.
"""

import contextlib
import dataclasses
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maetok_lab.config import fingerprint_of
from maetok_lab.files import read_json, write_bytes, write_json
from maetok_lab.runs import Run, runs_root
from maetok_lab.runs.locks import RunLock
from maetok_lab.runs.provenance import now
from maetok_lab.workflow.execute import NotebookFailed, Progress, clock, execute, write_html
from maetok_lab.workflow.parameters import check_parameters, code_hash, read_cells, read_parameters
from maetok_lab.workflow.summary import collect, table


@dataclasses.dataclass(frozen=True)
class NotebookResult:
    """A finished notebook: its folder, the numbers it reported, the runs it made, and whether it ran just now."""

    folder: Path
    numbers: dict[str, Any]
    runs: list[Path]
    seconds: float
    ran_now: bool

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
    """A notebook with checked parameters: what was `given`, all its `values`, its folder, and what a result must match."""

    path: Path
    given: dict[str, Any]
    values: dict[str, Any]
    folder: Path
    identity: dict[str, str]

    @property
    def title(self) -> str:
        """The notebook and the parameters that tell this call from others."""
        named = [name for name in self.values if name in ("preset", "seed") or name in self.given]
        return f"{self.path.name} ({', '.join(f'{name}={self.values[name]!r}' for name in named)})"


def prepare_call(
    path: str | Path, output: str | Path | None, parameters: Mapping[str, Any]
) -> NotebookCall:
    """Check `parameters` and find the folder. Raises ValueError or TypeError for a wrong one; nothing is written."""
    path = Path(path).absolute()
    declared = read_parameters(path)
    given = check_parameters(declared, parameters)
    if given.get("runs"):
        given["runs"] = os.path.abspath(given["runs"])
    defaults = {name: parameter.default for name, parameter in declared.items()}
    values = defaults | given
    identity = {"code": code_hash(path), "parameters": fingerprint_of({**values, "runs": None})}
    return NotebookCall(path, given, values, _folder(path, output, values, defaults), identity)


def run_notebook(
    path: str | Path, output: str | Path | None = None, /, **parameters: Any
) -> NotebookResult:
    """Run a notebook with `parameters`, telling what it does, or say that it is finished already.

    `output` is the folder for the executed copy, or a file NAME.ipynb (then the folder is NAME beside it). The kernel's
    working directory is the repository's root. Raises ValueError or TypeError for a wrong parameter before any kernel
    starts, NotebookFailed when a cell raises, and RunLocked when another process is running the same.
    """
    call = prepare_call(path, output, parameters)
    result = stored_result(call)
    if result is None:
        print(f"{call.title}: into {_shown(call.folder)}", flush=True)
        result = _run(call)
        print(f"{call.title}: finished in {clock(result.seconds)}")
    else:
        took = f"{read_json(call.folder / 'summary.json')['ended']}, in {clock(result.seconds)}"
        print(
            f"{call.title}: already finished, {took}. To run it anew remove {_shown(call.folder)}"
        )
    if output is not None and Path(output).suffix == ".ipynb":
        write_bytes(output, result.notebook.read_bytes())
    _tell(result)
    return result


def _folder(
    path: Path, output: str | Path | None, values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Path:
    """One folder for each notebook and set of parameters (`runs` says where, not what, and does not count)."""
    if output is not None:
        output = Path(output).absolute()
        return output.with_suffix("") if output.suffix == ".ipynb" else output
    parts = [path.stem]
    if values.get("preset") is not None:
        parts.append(str(values["preset"]))
    if "seed" in values:
        parts.append(f"s{values['seed']}")
    named = ("preset", "seed", "runs")
    other = {
        name: value
        for name, value in values.items()
        if name not in named and value != defaults[name]
    }
    parts += [fingerprint_of(other)[:8]] if other else []
    name = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))[:120]
    return runs_root(values.get("runs")).absolute() / "notebooks" / name


def stored_result(call: NotebookCall, *, tell: bool = True) -> NotebookResult | None:
    """The stored result if it is whole, the runs it made are still there, and code, parameters and parents are the same."""
    folder = call.folder
    if not (folder / "summary.json").exists():
        return None
    summary = read_json(folder / "summary.json")
    changed = [what for what, value in call.identity.items() if summary.get(what) != value]
    runs = [Path(os.path.normpath(folder / run)) for run in summary["runs"]]
    changed += ["parents"] if _parents_changed(summary.get("parents", {}), folder) else []
    result = NotebookResult(folder, summary["numbers"], runs, summary["seconds"], ran_now=False)
    missing = [result.notebook, result.html] + [run / "summary.json" for run in runs]
    missing = [_shown(file) for file in missing if not file.exists()]
    if not changed and not missing:
        return result
    reason = (
        f"its {' and '.join(changed)} changed" if changed else f"{', '.join(missing)} is missing"
    )
    if tell:
        print(f"{_shown(folder)} was finished, but {reason} since: running it again", flush=True)
    return None


def _parents(call: NotebookCall, runs: list[str]) -> dict[str, str]:
    """Run folders that a notebook read, relative to its own, with a hash of their config and weights.

    They are the parents on record of the runs it made, and the runs that its parameters name; not what it made itself.
    """
    root = runs_root(call.values.get("runs")).absolute()
    named = {root / value for value in call.values.values() if isinstance(value, str) and value}
    for run in runs:
        record = Path(run) / "provenance.json"
        named |= (
            {Path(run).parent / parent["run"] for parent in read_json(record)["parents"]}
            if record.exists()
            else set()
        )
    found = [
        folder
        for folder in sorted(named)
        if str(folder) not in runs and (folder / "config.json").exists()
    ]
    return {os.path.relpath(folder, call.folder): _content(folder) for folder in found}


def _parents_changed(parents: Mapping[str, str], folder: Path) -> bool:
    """Whether some parent is another one now. One that is gone cannot have changed: what it gave is stored."""
    places = {Path(os.path.normpath(folder / name)): content for name, content in parents.items()}
    return any(
        (run / "config.json").exists() and _content(run) != content
        for run, content in places.items()
    )


def _content(folder: Path) -> str:
    run = Run(folder)
    return f"{run.fingerprint} {run.weights_hash()}"


def _run(call: NotebookCall) -> NotebookResult:
    path, folder = call.path, call.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder / "lock.json")
    partial, failed = folder / "notebook-partial.ipynb", folder / "notebook-failed.ipynb"
    progress = Progress(folder / "heartbeat.json", len(read_cells(path)))
    try:
        for old in (folder / "summary.json", partial, failed):
            old.unlink(missing_ok=True)
        write_json(folder / "parameters.json", call.values)
        with _signals_as_exceptions(progress):
            notebook = execute(
                path, partial, call.given, folder=runs_root().absolute().parent, progress=progress
            )
        write_html(notebook, folder / "notebook.html", folder=path.parent)
        os.replace(partial, folder / "notebook.ipynb")
        numbers, runs = collect(notebook.cells)
        inside = [
            os.path.relpath(run, folder) for run in runs
        ]  # so that a runs folder can be moved as a whole
        stored = {
            "numbers": numbers,
            "runs": inside,
            "seconds": round(progress.seconds, 1),
            "ended": now(),
        }
        write_json(
            folder / "summary.json", {**stored, **call.identity, "parents": _parents(call, runs)}
        )
        return NotebookResult(
            folder, numbers, [Path(run) for run in runs], progress.seconds, ran_now=True
        )
    except NotebookFailed as problem:
        if partial.exists():
            os.replace(partial, failed)
        raise NotebookFailed(f"{problem}\nThe notebook up to there: {_shown(failed)}") from None
    except (KeyboardInterrupt, SystemExit):
        print(
            f"stopped in section {progress.section!r}; run the same again to continue", flush=True
        )
        raise
    finally:
        progress.heartbeat.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _signals_as_exceptions(progress: Progress) -> Iterator[None]:
    """SIGTERM and SIGHUP become SystemExit, as SIGINT is KeyboardInterrupt: papermill then ends the kernel."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        progress.stopped = True
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    usual = (
        signal.SIG_DFL,
        signal.default_int_handler,
    )  # a signal that somebody handles or ignores stays with them
    names = [
        signum
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) in usual
    ]
    before = {signum: signal.signal(signum, stop) for signum in names}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _tell(result: NotebookResult) -> None:
    """The numbers, and where to look."""
    print(table(result.numbers, []))
    places = {"page": result.html, "notebook": result.notebook} | {
        f"run {run.name}": run for run in result.runs
    }
    width = max(map(len, places))
    print("Where to look:")
    for name, place in places.items():
        print(f"  {name:<{width}}  {_shown(place)}", flush=True)


def _shown(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
