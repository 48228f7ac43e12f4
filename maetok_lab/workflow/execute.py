"""Execute one notebook through papermill in a kernel of this interpreter, saying live what it does.

papermill, nbconvert and jupyter_client take seconds to import, so they are imported when used.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maetok_lab.files import write_json
from maetok_lab.hints import printable, printable_lines
from maetok_lab.runs.provenance import clock, now

SECONDS_BETWEEN_UPDATES = 5.0  # of a progress bar, and of heartbeat.json
KERNEL_START_SECONDS = 300  # a loaded machine may take minutes
STOP_SECONDS = 25.0  # for a training to end its step and save: Slurm kills after 30
# How often waiting OpenMP threads look before they give their core away. With the default one other
# busy process makes training ten times slower, with none at all it is 1.6 times slower on a quiet
# machine. Read when the kernel starts.
KERNEL_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # what a terminal makes of it is nobody's loss


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died; the message says where and with what."""


class Progress:
    """Prints the sections of a notebook and what its cells print, and keeps heartbeat.json fresh.

    It is the file that papermill writes the cells' output to. Of a progress bar, which rewrites its
    line, a state is shown every few seconds.
    """

    def __init__(self, heartbeat: Path, num_cells: int):
        self.heartbeat = heartbeat
        self.num_cells = num_cells
        self.started = time.monotonic()
        self.section = "start"
        self.stopped = False  # set by a signal, which the kernel then gets too
        self._index = 0
        self._line = ""  # what was printed since the last line break
        self._last_line = ""  # that was shown
        # when a progress bar was last shown, and the heartbeat last written
        self._last_bar = self._last_beat = float("-inf")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def cell_starts(self, cell: Mapping[str, Any], cell_index: int) -> None:
        """papermill's hook: before every cell, also of prose."""
        self._index = cell_index + 1
        if cell["cell_type"] == "markdown":
            for line in cell["source"].splitlines():
                if line.startswith("#"):
                    self.section = printable(line.lstrip("# ").strip())
                    print(f"[{clock(self.seconds)}] {self.section}", flush=True)
        self._beat()

    def write(self, text: str) -> None:
        """Text that a cell printed, in pieces of any length."""
        # Whole lines are shown at once; the last piece waits for its end.
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._print(_on_screen(line))
        # A bar has no line break ("\r 40% |##  |\r 41% |##  |"): only its last state is kept.
        if "\r" in self._line:
            if time.monotonic() - self._last_bar > SECONDS_BETWEEN_UPDATES:
                self._last_bar = time.monotonic()
                self._print(_on_screen(self._line))
            self._line = _on_screen(self._line) + "\r" * self._line.endswith("\r")
        if time.monotonic() - self._last_beat > SECONDS_BETWEEN_UPDATES:
            self._beat()

    def flush(self) -> None:
        """Lines are flushed as they are printed."""

    def _print(self, line: str) -> None:
        line = printable(COLOUR.sub("", line).expandtabs())
        if line.strip():
            self._last_line = line.strip()
            print("  " + line, flush=True)

    def _beat(self) -> None:
        self._last_beat = time.monotonic()
        beat = {
            "time": now(),
            "seconds": round(self.seconds, 1),
            "section": self.section,
            "cell": self._index,
            "cells": self.num_cells,
            "last_line": self._last_line,
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
        # a sign of life for others: where it cannot be written, the work goes on
        with contextlib.suppress(OSError):
            write_json(self.heartbeat, beat)


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Any], *, folder: Path, progress: Progress
) -> Any:
    """Execute `notebook` in working directory `folder`; `output` is saved after every cell.

    -> the executed notebook. Raises NotebookFailed with one line: the section, and what was raised.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    # It would warn of parameters, which were checked before.
    logging.getLogger("papermill").setLevel(logging.ERROR)
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
        line = f"{problem.ename}: {problem.evalue}".strip().removesuffix(":")
        message = f"{notebook.name} failed in section {progress.section!r} with {line}"
    except (DeadKernelError, RuntimeError) as problem:
        message = f"{notebook.name}: the kernel died in section {progress.section!r}"
        message += f" (out of memory?): {problem}"
    raise NotebookFailed(printable_lines(message))


def _on_screen(line: str) -> str:
    """What a terminal would show of a line rewritten by carriage returns."""
    for part in reversed(line.split("\r")):
        if part.strip():  # a bar may end with an empty rewrite
            return part
    return ""


def _kernel_manager(progress: Progress) -> type:
    """A kernel manager that starts this interpreter, whatever else is registered as python3.

    Its sockets are encrypted where jupyter_client can; a run that was `stopped` ends its kernel at
    once.
    """
    from ipykernel.kernelspec import get_kernel_dict  # its command is sys.executable
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    # Whatever name is asked for: the kernel must have this environment's packages.
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

        async def _async_interrupt_kernel(self) -> None:
            # it comes before a shutdown alone: an idle kernel would print an error of its own
            pass

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            """jupyter_client's; a run that was stopped lets its cell end first."""
            # nbclient would wait for the cell that was interrupted. A training in it hears the
            # signal and saves; any other cell ends at once.
            if progress.stopped:
                # the cell's task then ends with an error that nobody waits for any more
                asyncio.get_running_loop().set_exception_handler(lambda *_: None)
                await self.signal_kernel(signal.SIGTERM)
                end = time.monotonic() + STOP_SECONDS
                while await self.is_alive() and time.monotonic() < end:
                    await asyncio.sleep(0.1)
            await super().shutdown_kernel(now=now or progress.stopped, restart=restart)

    return KernelManager


def _unformatted(path: Path) -> str:
    """papermill fills in {braces} in paths; ours are meant as they stand."""
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")
