"""The command line: `python -m maetok_lab COMMAND`.

Settings of models are parameters of a notebook, never flags. Each command imports what it needs:
`--help` takes no longer than to import torch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maetok_lab.hints import printable, printable_lines

FIRST = ("run", "kind", "state", "step", "started")  # columns of `list` that say most


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(prog="python -m maetok_lab", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # One parser a command; what two or more of them understand comes last.
    run = commands.add_parser("run", help="run a notebook, or say that it is finished")
    run.add_argument(
        "notebook", help="such as notebooks/00_start_here.ipynb; `show` it to see its parameters"
    )
    sweep = commands.add_parser(
        "sweep", help="run a notebook over many sets of parameters; again: continue"
    )
    sweep.add_argument("spec", help="a TOML file: notebook, [fixed], and [grid] or [[list]]")
    sweep.add_argument(
        "--on", choices=["local", "slurm"], default="local", help="this machine, or a Slurm cluster"
    )
    investigate = _add_investigate(commands)
    _add_output(run, investigate)
    studio = commands.add_parser("studio", help="serve a notebook as a web page; ^C ends it")
    studio.add_argument("notebook", help="such as notebooks/mask_demo.ipynb")
    studio.add_argument("--port", type=int, default=8866, help="(default: 8866)")
    studio.add_argument(
        "--host", default="127.0.0.1", help="this machine's name for visitors (default: 127.0.0.1)"
    )
    studio.add_argument("--kernels", type=int, help="at most so many visitors (default: what fits)")
    studio.add_argument(
        "--idle", type=int, default=20, help="seconds until what nobody is connected to ends"
    )

    # Looking at what there is, and cleaning up.
    listing = commands.add_parser("list", help="all runs and their numbers")
    show = commands.add_parser(
        "show",
        help="one run's config and numbers, a sweep's table and logs, or a notebook's parameters",
    )
    show.add_argument("name", help="a run's name or folder, a sweep's name, or a notebook")
    prune = commands.add_parser(
        "prune", help="free superseded checkpoints of finished runs, and leftovers of kills"
    )
    prune.add_argument(
        "--yes", action="store_true", help="remove them; without it they are only listed"
    )
    doctor = commands.add_parser(
        "doctor", help="whether this machine can do the work, and what to do if not"
    )

    for command in (sweep, listing, show, prune, doctor):
        command.add_argument("--runs", metavar="FOLDER", help="where runs live (default: runs/)")
    # -p sets what the notebook declares; for the last of them, doctor, these three
    for command in (run, investigate, sweep, doctor):
        pairs = command.add_argument(
            "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
        )
    pairs.help = "one of source, image_size, device"
    return top


def _add_output(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument(
            "-o",
            metavar="OUTPUT",
            dest="output",
            help="folder for the executed copy, or a name.ipynb",
        )


def _add_investigate(commands: Any) -> argparse.ArgumentParser:
    investigate = commands.add_parser(
        "investigate", help="reconstructions, card and page of any tokenizer, on any images"
    )
    investigate.add_argument(
        "tokenizer",
        help="a name of lab.tokenizers(), a run, a folder, diffusers:OWNER/NAME or module:Class; "
        "notebooks/05_latent_space.ipynb does it, whose parameters -p takes (source, image_size)",
    )
    investigate.add_argument(
        "--alone",
        action="store_true",
        help="without raw pixels beside it, which take most of the time",
    )
    return investigate


def main(words: Sequence[str] | None = None) -> int:
    """Run one command -> exit code.

    0; 1 if something failed or runs elsewhere; 2 for a wrong argument; 130 for ^C.
    """
    arguments = parser().parse_args(words)
    # imported here, as it takes a second: --help and wrong words have ended by now
    from maetok_lab.runs.locks import RunLocked
    from maetok_lab.workflow.execute import NotebookFailed

    try:
        return COMMANDS[arguments.command](arguments)
    except (ValueError, TypeError, FileNotFoundError) as problem:
        return _say(problem, 2)
    except (NotebookFailed, RunLocked, OSError, ImportError) as problem:
        return _say(problem, 1)
    except KeyboardInterrupt:
        return 130


def _say(problem: Exception, exit_code: int) -> int:
    # what the system says of a file names it; what we say needs no number of an error before it
    text = str(problem)
    if isinstance(problem, OSError) and problem.strerror and not problem.filename:
        text = problem.strerror
    print(f"error: {printable_lines(text)}", file=sys.stderr)
    return exit_code


def _run(arguments: argparse.Namespace) -> int:
    from maetok_lab.workflow.parameters import parse_parameters, read_defaults
    from maetok_lab.workflow.run import run_notebook

    parameters = parse_parameters(read_defaults(arguments.notebook), arguments.parameters)
    run_notebook(arguments.notebook, arguments.output, **parameters)
    return 0


def _investigate(arguments: argparse.Namespace) -> int:
    from maetok_lab.tokenizer.foreign import PIXELS, own_image_size
    from maetok_lab.workflow.parameters import parse_parameters, read_defaults
    from maetok_lab.workflow.run import run_notebook

    notebook = Path(__file__).parent.parent / "notebooks" / "05_latent_space.ipynb"
    changes = parse_parameters(read_defaults(notebook), arguments.parameters)
    # beside the null case if that is wanted, at the size that it was made for
    beside = [] if arguments.alone else [PIXELS]
    compared = list(dict.fromkeys([arguments.tokenizer, *beside]))
    parameters: dict[str, Any] = {"tokenizers": compared}
    size = own_image_size(arguments.tokenizer, root=changes.get("runs"))
    if size is not None:
        parameters["image_size"] = size
    result = run_notebook(notebook, arguments.output, **parameters | changes)
    print(f"page {printable(str(result.html))}")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from maetok_lab.workflow import sweep
    from maetok_lab.workflow.parameters import parse_parameters, read_defaults
    from maetok_lab.workflow.printing import table_text, terminal_width
    from maetok_lab.workflow.spec import read_spec

    # Words are read as what the notebook's defaults are, then put over the file's [fixed].
    defaults = read_defaults(read_spec(arguments.spec).notebook)
    spec = read_spec(arguments.spec, parse_parameters(defaults, arguments.parameters))
    try:
        result = sweep(spec, runs=arguments.runs, on=arguments.on)
    except KeyboardInterrupt:
        print("stopped; the same command continues")
        raise

    # The table without what is empty everywhere, then the two things one looks for.
    table = result.table.drop(columns=["folder", "log"]).dropna(axis=1, how="all")
    text, left_out = table_text(table.reset_index(), terminal_width())
    print(text)
    if left_out:
        print(f"({left_out} more columns in table.csv)")
    best = result.best
    if best is not None:
        score = f"{best[spec.quality]:.4g}"
        print(f"best {spec.quality}: entry {best.name}, {score}, in {best['folder']}")
    for number, row in result.failed.iterrows():
        print(printable_lines(f"entry {number} failed: {row['error']}\n  log {row['log']}"))
    print(f"Where to look: {result.folder}")
    return int(len(result.failed) > 0)


def _studio(arguments: argparse.Namespace) -> int:
    try:
        from maetok_lab.workflow.serve import serve
    except ImportError as problem:
        raise ImportError(
            "a studio's server needs voila: pip install 'maetok-lab[notebooks]'"
        ) from problem
    serve(
        arguments.notebook,
        port=arguments.port,
        host=arguments.host,
        kernels=arguments.kernels,
        idle=arguments.idle,
    )
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from maetok_lab.runs import list_runs, runs_root
    from maetok_lab.workflow.printing import table_text, terminal_width

    table = list_runs(arguments.runs)
    if table.empty:
        print(f"no runs in {printable(str(runs_root(arguments.runs)))}")
        return 0
    table["state"] = table.pop("finished").map({True: "finished", False: "unfinished"})
    # numbers that most runs have come first; of a terminal's width as many as fit
    numbers = table.select_dtypes("number").columns.difference(FIRST, sort=False)
    counts = table[numbers].count().sort_values(ascending=False, kind="stable")
    first = [name for name in FIRST if name in table]
    columns = [*first, *counts.index]
    columns += table.columns.difference(columns, sort=False).tolist()
    text, left_out = table_text(table[columns], terminal_width())
    print(text)
    if left_out:
        print(f"({left_out} more columns: `python -m maetok_lab show RUN` has all of a run)")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from maetok_lab.runs import Run, checked_name, runs_root
    from maetok_lab.workflow.parameters import read_parameters

    # A notebook, else a sweep that has a table, else a run.
    name = arguments.name
    if name.endswith(".ipynb"):
        for parameter in read_parameters(name).values():
            description = printable(parameter.description)
            print(f"{parameter.name} = {parameter.default!r}  # {description}")
        return 0
    sweep_table = runs_root(arguments.runs) / "sweeps" / name / "table.csv"
    if Path(name).name == name and sweep_table.exists():
        text = f"sweep {name}, {sweep_table.parent}\n{sweep_table.read_text()}"
        print(printable_lines(text), end="")
        return 0

    folder = Path(name)
    if not folder.is_dir():
        folder = runs_root(arguments.runs) / checked_name(name)
    run = Run(folder)
    state = "finished" if run.finished else "not finished"
    title = f"{run.folder}: {run.class_name}, {state}, fingerprint {run.fingerprint}"
    print(printable(title))
    for title in ("config", "provenance", "summary"):
        print(f"{title}: {json.dumps(getattr(run, title), indent=2)}")
    events = run.metrics()
    if len(events):
        print(f"last of {len(events)} logged events: {events.iloc[-1].dropna().to_dict()}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from maetok_lab.runs import runs_root
    from maetok_lab.runs.prune import prunable, prune

    # what can be freed, one line each
    table = prunable(arguments.runs)
    left_alone = table.attrs["left_alone"]
    for _, row in table.iterrows():
        print(printable(f"{row['bytes'] / 1e6:10.1f} MB  {row['run']}: {row['what']}"))
    if table.empty:
        print(f"nothing to free in {runs_root(arguments.runs)}")
    elif arguments.yes:
        freed, left_alone = prune(table)
        print(f"freed {freed / 1e6:.1f} MB")
    else:
        size = table["bytes"].sum() / 1e6
        print(f"{size:.1f} MB can be freed: the same command with --yes does it")
    # whatever stands in the way of one folder, the others were freed
    for line in left_alone:
        print(f"left alone: {line}", file=sys.stderr)
    return int(bool(left_alone))


def _doctor(arguments: argparse.Namespace) -> int:
    from maetok_lab.config import override, to_json
    from maetok_lab.data.images import open_images
    from maetok_lab.workflow.doctor import Examination, examine
    from maetok_lab.workflow.parameters import parse_parameters

    # Its settings are a config, and checked as one.
    defaults = Examination(runs=arguments.runs)
    options = override(defaults, parse_parameters(to_json(defaults), arguments.parameters))
    exit_code = 0
    for verdict in examine(options, open_images):
        print(printable_lines(str(verdict)), flush=True)
        if verdict.level == "bad":
            exit_code = 1
    return exit_code


COMMANDS = {
    "run": _run,
    "investigate": _investigate,
    "sweep": _sweep,
    "studio": _studio,
    "list": _list,
    "show": _show,
    "prune": _prune,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
