"""The command line: `python -m maetok_lab run, sweep, list, show`. Model settings are notebook parameters, never flags."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from maetok_lab.locks import RunLocked
from maetok_lab.runs import Run, checked_name, list_runs, runs_root
from maetok_lab.workflow import NotebookFailed, run_notebook, sweep
from maetok_lab.workflow.parameters import parse_parameters, read_parameters
from maetok_lab.workflow.spec import read_spec


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(prog="python -m maetok_lab", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a notebook, or say that it is finished")
    run.add_argument("notebook", help="such as notebooks/00_start_here.ipynb; `show` it to see its parameters")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    run.add_argument("-o", metavar="OUTPUT", dest="output", help="folder for the executed copy, or a name.ipynb")
    swept = commands.add_parser("sweep", help="run a notebook over many sets of parameters; again: continue")
    swept.add_argument("spec", help="a TOML file: notebook, [fixed], and [grid], [[list]] or [random]")
    swept.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    swept.add_argument("--on", choices=["local", "slurm"], default="local", help="this machine, or a Slurm cluster")
    listing = commands.add_parser("list", help="all runs and their numbers")
    show = commands.add_parser("show", help="one run's config and numbers, a sweep's table and logs, or a notebook's parameters")
    show.add_argument("name", help="a run's name or folder, a sweep's name, or a notebook")
    for command in (swept, listing, show):
        command.add_argument("--runs", metavar="FOLDER", help="where runs live (default: runs/)")
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0; 1 if something failed or runs elsewhere; 2 for a wrong argument; 130 for ^C."""
    arguments = parser().parse_args(words)
    try:
        if arguments.command == "run":
            given = parse_parameters(read_parameters(arguments.notebook), arguments.parameters)
            run_notebook(arguments.notebook, arguments.output, **given)
        elif arguments.command == "sweep":
            return _sweep(arguments)
        elif arguments.command == "list":
            _list(arguments.runs)
        else:
            _show(arguments.name, arguments.runs)
    except (ValueError, TypeError, FileNotFoundError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except (NotebookFailed, RunLocked, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    declared = read_parameters(read_spec(arguments.spec).notebook)
    spec = read_spec(arguments.spec, parse_parameters(declared, arguments.parameters))
    try:
        result = sweep(spec, runs=arguments.runs, on=arguments.on)
    except KeyboardInterrupt:
        print("stopped; the same command continues")
        raise
    short = result.table.drop(columns=["folder", "log"]).dropna(axis=1, how="all")
    print(short.astype(object).fillna("").to_string())
    if result.best is not None:
        print(f"best {spec.quality}: entry {result.best.name}, {result.best[spec.quality]:.4g}, in {result.best['folder']}")
    for number, row in result.failed.iterrows():
        print(f"entry {number} failed: {row['error']}\n  log {row['log']}")
    print(f"Where to look: {result.folder}")
    return 1 if len(result.failed) else 0


def _list(runs: str | None) -> None:
    found = list_runs(runs)
    print(found.to_string(index=False) if len(found) else f"no runs in {runs_root(runs)}")


def _show(name: str, runs: str | None) -> None:
    if name.endswith(".ipynb"):
        for parameter in read_parameters(name).values():
            print(f"{parameter.name} = {parameter.default!r}  # {parameter.description}")
        return
    sweep_table = runs_root(runs) / "sweeps" / name / "table.csv"
    if Path(name).name == name and sweep_table.exists():
        print(f"sweep {name}, {sweep_table.parent}\n{sweep_table.read_text()}", end="")
        return
    run = Run(name if Path(name).is_dir() else runs_root(runs) / checked_name(name))
    state = "finished" if run.finished else "not finished"
    print(f"{run.folder}: {run.class_name}, {state}, fingerprint {run.fingerprint}")
    for title, content in (("config", run.config), ("provenance", run.provenance), ("summary", run.summary)):
        print(f"{title}: {json.dumps(content, indent=2)}")
    events = run.metrics()
    if len(events):
        print(f"last of {len(events)} logged events: {events.iloc[-1].dropna().to_dict()}")


if __name__ == "__main__":
    sys.exit(main())
