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

from maetok_lab.files import read_json, write_bytes, write_json
from maetok_lab.locks import RunLock
from maetok_lab.provenance import now
from maetok_lab.runs import fingerprint_of, runs_root
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


def run_notebook(path: str | Path, output: str | Path | None = None, /, **parameters: Any) -> NotebookResult:
    """Run a notebook with `parameters`, telling what it does, or say that it is finished already.

    `output` is the folder for the executed copy, or a file NAME.ipynb (then the folder is NAME beside it). The kernel's
    working directory is the repository's root. Raises ValueError or TypeError for a wrong parameter before any kernel
    starts, NotebookFailed when a cell raises, and RunLocked when another process is running the same.
    """
    path = Path(path).absolute()
    declared = read_parameters(path)
    given = check_parameters(declared, parameters)
    if given.get("runs"):
        given["runs"] = os.path.abspath(given["runs"])
    values = {name: parameter.default for name, parameter in declared.items()} | given
    folder = _folder(path, output, values, {name: parameter.default for name, parameter in declared.items()})
    identity = {"code": code_hash(path), "parameters": fingerprint_of({**values, "runs": None})}
    title = f"{path.name} ({', '.join(f'{name}={values[name]!r}' for name in _headline(values, given))})"
    result = _finished(folder, identity)
    if result is None:
        print(f"{title}: into {_shown(folder)}", flush=True)
        result = _run(path, folder, values, given, identity)
        print(f"{title}: finished in {clock(result.seconds)}")
    else:
        ended = read_json(folder / "summary.json")["ended"]
        print(f"{title}: already finished, {ended}, in {clock(result.seconds)}. To run it anew remove {_shown(folder)}")
    if output is not None and Path(output).suffix == ".ipynb":
        write_bytes(output, result.notebook.read_bytes())
    _tell(result)
    return result


def _headline(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return [name for name in values if name in ("preset", "seed") or name in given]


def _folder(path: Path, output: str | Path | None, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Path:
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
    other = {name: value for name, value in values.items() if name not in named and value != defaults[name]}
    parts += [fingerprint_of(other)[:8]] if other else []
    name = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))[:120]
    return runs_root(values.get("runs")).absolute() / "notebooks" / name


def _finished(folder: Path, identity: Mapping[str, str]) -> NotebookResult | None:
    """The stored result if it is whole, of the same code and parameters, and the runs it made are still there."""
    if not (folder / "summary.json").exists():
        return None
    summary = read_json(folder / "summary.json")
    changed = [what for what, value in identity.items() if summary.get(what) != value]
    runs = [Path(os.path.normpath(folder / run)) for run in summary["runs"]]
    result = NotebookResult(folder, summary["numbers"], runs, summary["seconds"], ran_now=False)
    missing = [result.notebook, result.html] + [run / "summary.json" for run in runs]
    missing = [_shown(file) for file in missing if not file.exists()]
    if not changed and not missing:
        return result
    reason = f"its {' and '.join(changed)} changed" if changed else f"{', '.join(missing)} is missing"
    print(f"{_shown(folder)} was finished, but {reason} since: running it again", flush=True)
    return None


def _run(
    path: Path, folder: Path, values: Mapping[str, Any], given: Mapping[str, Any], identity: Mapping[str, str]
) -> NotebookResult:
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder / "lock.json")
    partial, failed = folder / "notebook-partial.ipynb", folder / "notebook-failed.ipynb"
    progress = Progress(folder / "heartbeat.json", len(read_cells(path)))
    try:
        for old in (folder / "summary.json", partial, failed):
            old.unlink(missing_ok=True)
        write_json(folder / "parameters.json", values)
        with _signals_as_exceptions(progress):
            notebook = execute(path, partial, given, folder=runs_root().absolute().parent, progress=progress)
        write_html(notebook, folder / "notebook.html", folder=path.parent)
        os.replace(partial, folder / "notebook.ipynb")
        numbers, runs = collect(notebook.cells)
        inside = [os.path.relpath(run, folder) for run in runs]  # so that a runs folder can be moved as a whole
        stored = {"numbers": numbers, "runs": inside, "seconds": round(progress.seconds, 1), "ended": now()}
        write_json(folder / "summary.json", {**stored, **identity})
        return NotebookResult(folder, numbers, [Path(run) for run in runs], progress.seconds, ran_now=True)
    except NotebookFailed as problem:
        if partial.exists():
            os.replace(partial, failed)
        raise NotebookFailed(f"{problem}\nThe notebook up to there: {_shown(failed)}") from None
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped in section {progress.section!r}; run the same again to continue", flush=True)
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

    usual = (signal.SIG_DFL, signal.default_int_handler)  # a signal that somebody handles or ignores stays with them
    names = [signum for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(signum) in usual]
    before = {signum: signal.signal(signum, stop) for signum in names}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _tell(result: NotebookResult) -> None:
    """The numbers, and where to look."""
    print(table(result.numbers, []))
    places = {"page": result.html, "notebook": result.notebook} | {f"run {run.name}": run for run in result.runs}
    width = max(map(len, places))
    print("Where to look:")
    for name, place in places.items():
        print(f"  {name:<{width}}  {_shown(place)}", flush=True)


def _shown(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
