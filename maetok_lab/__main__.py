"""The command line: `python -m maetok_lab COMMAND`. Model settings are notebook parameters, never flags."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from maetok_lab.config import override
from maetok_lab.runs import Run, checked_name, list_runs, runs_root
from maetok_lab.runs.locks import RunLocked
from maetok_lab.runs.prune import prunable, prune
from maetok_lab.workflow import NotebookFailed, run_notebook, sweep
from maetok_lab.workflow.doctor import Examination, examine
from maetok_lab.workflow.parameters import Parameter, parse_parameters, read_parameters
from maetok_lab.workflow.spec import read_spec


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(prog="python -m maetok_lab", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a notebook, or say that it is finished")
    run.add_argument(
        "notebook", help="such as notebooks/00_start_here.ipynb; `show` it to see its parameters"
    )
    run.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    run.add_argument(
        "-o", metavar="OUTPUT", dest="output", help="folder for the executed copy, or a name.ipynb"
    )
    swept = commands.add_parser(
        "sweep", help="run a notebook over many sets of parameters; again: continue"
    )
    swept.add_argument(
        "spec", help="a TOML file: notebook, [fixed], and [grid], [[list]] or [random]"
    )
    swept.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    swept.add_argument(
        "--on", choices=["local", "slurm"], default="local", help="this machine, or a Slurm cluster"
    )
    listing = commands.add_parser("list", help="all runs and their numbers")
    show = commands.add_parser(
        "show",
        help="one run's config and numbers, a sweep's table and logs, or a notebook's parameters",
    )
    show.add_argument("name", help="a run's name or folder, a sweep's name, or a notebook")
    pruned = commands.add_parser(
        "prune", help="free superseded checkpoints of finished runs, and leftovers of kills"
    )
    pruned.add_argument(
        "--yes", action="store_true", help="remove them; without it they are only listed"
    )
    doctor = commands.add_parser(
        "doctor", help="whether this machine can do the work, and what to do if not"
    )
    names = [field.name for field in dataclasses.fields(Examination) if field.name != "runs"]
    told = f"one of {', '.join(names)}"
    doctor.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="parameters",
        help=told,
    )
    for command in (swept, listing, show, pruned, doctor):
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
        elif arguments.command == "prune":
            _prune(arguments.runs, arguments.yes)
        elif arguments.command == "doctor":
            return _doctor(arguments)
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
        print(
            f"best {spec.quality}: entry {result.best.name}, {result.best[spec.quality]:.4g}, in {result.best['folder']}"
        )
    for number, row in result.failed.iterrows():
        print(f"entry {number} failed: {row['error']}\n  log {row['log']}")
    print(f"Where to look: {result.folder}")
    return 1 if len(result.failed) else 0


def _prune(runs: str | None, yes: bool) -> None:
    found = prunable(runs)
    for _, row in found.iterrows():
        print(f"{row['bytes'] / 1e6:10.1f} MB  {row['run']}: {row['what']}")
    if found.empty:
        print(f"nothing to free in {runs_root(runs)}")
    elif yes:
        print(f"freed {prune(found) / 1e6:.1f} MB")
    else:
        print(
            f"{found['bytes'].sum() / 1e6:.1f} MB can be freed: the same command with --yes does it"
        )


def _doctor(arguments: argparse.Namespace) -> int:
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(Examination)
        if field.name != "runs"
    }
    declared = {name: Parameter(name, default, "") for name, default in defaults.items()}
    asked = override(
        Examination(runs=arguments.runs), parse_parameters(declared, arguments.parameters)
    )
    verdicts = []
    for verdict in examine(asked):
        print(verdict, flush=True)
        verdicts.append(verdict.verdict)
    return 1 if "bad" in verdicts else 0


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
    for title, content in (
        ("config", run.config),
        ("provenance", run.provenance),
        ("summary", run.summary),
    ):
        print(f"{title}: {json.dumps(content, indent=2)}")
    events = run.metrics()
    if len(events):
        print(f"last of {len(events)} logged events: {events.iloc[-1].dropna().to_dict()}")


if __name__ == "__main__":
    sys.exit(main())
