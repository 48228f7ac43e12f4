"""Execute one notebook through papermill in a kernel of this very interpreter, telling live what it does.

papermill, nbconvert and jupyter_client take seconds to import, so they are imported where they are used.
"""

import html
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maetok_lab.files import write_bytes, write_json
from maetok_lab.runs.provenance import now

SECONDS_BETWEEN_UPDATES = 5.0  # of a progress bar, and of heartbeat.json
KERNEL_START_SECONDS = 300  # a loaded machine may take minutes
# How often waiting OpenMP threads look before they give their core away: with the default one other busy process makes
# training ten times slower, with none at all it is 1.6 times slower on a quiet machine. Read when the kernel starts.
KERNEL_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
STYLE = """
body {max-width: 62em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 system-ui, sans-serif; color: #222}
img, svg {max-width: 100%} pre {overflow-x: auto; font-size: 13px; line-height: 1.35}
.input_area {background: #f6f6f4; padding: .1em .8em; border-radius: 4px}
.prompt {display: none}
table {border-collapse: collapse; font-size: 14px}
th, td {padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right}
"""


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died; the message says where and with what."""


class Progress:
    """Prints each section of a notebook as it starts and each line its cells print, and keeps heartbeat.json fresh.

    It is the file that papermill writes the cells' output to. A progress bar, which rewrites its line, is shown
    every few seconds.
    """

    def __init__(self, heartbeat: Path, cells: int):
        self.heartbeat, self.cells = heartbeat, cells
        self.started = time.monotonic()
        self.section = "start"
        self.stopped = False
        self._line = self._last_line = ""
        self._index = 0
        self._bar_shown = self._beaten = float("-inf")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def cell_starts(self, cell: Mapping[str, Any], cell_index: int) -> None:
        """papermill's hook: before every cell, also of prose."""
        self._index = cell_index + 1
        for line in cell["source"].splitlines() if cell["cell_type"] == "markdown" else []:
            if line.startswith("#"):
                self.section = line.lstrip("# ").strip()
                print(f"[{clock(self.seconds)}] {self.section}", flush=True)
        self._beat()

    def write(self, text: str) -> None:
        """Text that a cell printed, in pieces of any length."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._show(_latest(line))
        if "\r" in self._line:
            if time.monotonic() - self._bar_shown > SECONDS_BETWEEN_UPDATES:
                self._bar_shown = time.monotonic()
                self._show(_latest(self._line))
            self._line = _latest(self._line) + "\r" * self._line.endswith("\r")
        if time.monotonic() - self._beaten > SECONDS_BETWEEN_UPDATES:
            self._beat()

    def flush(self) -> None:
        """Lines are flushed as they are shown."""

    def _show(self, line: str) -> None:
        if line.strip():
            self._last_line = line.strip()
            print("  " + line, flush=True)

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        where = {
            "section": self.section,
            "cell": self._index,
            "cells": self.cells,
            "last_line": self._last_line,
        }
        who = {"host": socket.gethostname(), "process": os.getpid()}
        write_json(
            self.heartbeat, {"time": now(), "seconds": round(self.seconds, 1), **where, **who}
        )


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Any], *, folder: Path, progress: Progress
) -> Any:
    """Execute `notebook` in working directory `folder` and return it; `output` is saved after every cell.

    Raises NotebookFailed with one line: the section, and what was raised in it.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # parameters were checked by us
    try:
        return papermill.execute_notebook(
            _unformatted(notebook),
            _unformatted(output),
            dict(parameters),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=progress,
            stderr_file=progress,
            start_timeout=KERNEL_START_SECONDS,
            iopub_timeout=KERNEL_START_SECONDS,
            on_cell_start=progress.cell_starts,
            kernel_manager_class=_kernel_manager(progress),
            resources={"metadata": {"path": str(folder)}},
        )
    except papermill.PapermillExecutionError as problem:
        raised = f"{problem.ename}: {problem.evalue}".strip().removesuffix(":")
        raise NotebookFailed(
            f"{notebook.name} failed in section {progress.section!r} with {raised}"
        ) from None
    except (DeadKernelError, RuntimeError) as problem:
        raise NotebookFailed(
            f"{notebook.name}: the kernel died in section {progress.section!r} (out of memory?): {problem}"
        ) from None


def write_html(notebook: Any, path: Path, *, folder: Path) -> None:
    """An executed notebook as one self-contained page; pictures its prose links to are looked up in `folder`."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    exporter = HTMLExporter(template_name="basic", embed_images=True, exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(folder)}})
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    head = f"<meta charset='utf-8'><title>{html.escape(path.parent.name)}</title><style>{style}</style>"
    write_bytes(
        path,
        f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n".encode(),
    )


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _latest(line: str) -> str:
    """What a terminal would show of a line rewritten by carriage returns."""
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


def _kernel_manager(progress: Progress) -> type:
    """A kernel manager that starts this interpreter, whatever kernels somebody registered under the name python3.

    Its sockets are encrypted where jupyter_client can; a run that was `stopped` ends its kernel at once.
    """
    from ipykernel.kernelspec import get_kernel_dict  # its command is sys.executable
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**get_kernel_dict(), env=KERNEL_ENVIRONMENT)

    class KernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _of_this_interpreter(self) -> KernelSpecManager:
            return ThisInterpreter(parent=self)

        @default("transport_encryption")
        def _encrypt_if_possible(self) -> str:
            return "auto"

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            await super().shutdown_kernel(now=now or progress.stopped, restart=restart)

    return KernelManager


def _unformatted(path: Path) -> str:
    """papermill fills in {braces} in paths; ours are meant as they stand."""
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")
