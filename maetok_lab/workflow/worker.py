"""One entry of a sweep at a time, in a process: `python -m maetok_lab.workflow.worker`.

It reads jobs as lines of JSON, runs each notebook and answers with a line of JSON. What the
notebook prints goes to the job's log. The process stays for the next job, so that Python, torch and
papermill are imported once; kernels are new.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maetok_lab.ranks import end_with_parent
from maetok_lab.runs.locks import RunLocked
from maetok_lab.workflow.execute import NotebookFailed
from maetok_lab.workflow.run import run_notebook

LOCKED = "RunLocked: "  # how a kernel says that a run is being written by somebody else


def run_entry(job: dict[str, Any]) -> dict[str, Any]:
    """Run {"notebook", "parameters"} -> {"outcome", "error"}, as `Outcome` has them."""
    # A notebook meets a lock itself, or a cell of it does; then only the message says so.
    try:
        run_notebook(job["notebook"], **job["parameters"])
    except RunLocked as problem:
        return {"outcome": "locked", "error": str(problem)}
    except NotebookFailed as problem:
        line = str(problem).splitlines()[0]
        return {"outcome": "locked" if LOCKED in line else "failed", "error": line}
    except Exception as problem:
        traceback.print_exc()
        return {"outcome": "failed", "error": f"{type(problem).__name__}: {problem}"}
    return {"outcome": "done", "error": None}


def main() -> None:
    """Answer jobs until standard input ends."""
    # a sweep that was killed takes its workers, and they their kernels, with it
    threading.Thread(target=end_with_parent, args=[os.getppid()], daemon=True).start()
    with os.fdopen(os.dup(1), "w") as answers:  # kernels inherit 1 and 2, which are to be the log
        for line in sys.stdin:
            job = json.loads(line)
            with _printing_to(Path(job["log"])):
                answer = run_entry(job)
            print(json.dumps(answer), file=answers, flush=True)


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    # On the level of the operating system, for what kernels and C libraries print.
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
