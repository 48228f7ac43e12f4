"""A run's metrics as TensorBoard files, where TensorBoard is installed (extra `cluster`)."""

import functools
import importlib.util
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any


class Events:
    """Writes every number of {"step": ..., "split": ..., NAME: number} as SPLIT/NAME.

    The files are made by the first event: a run without metrics has none.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._purge_step: int | None = None

    @functools.cached_property
    def _writer(self) -> Any:
        if importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        # a queue of 1000 events: logging must not wait for the disk
        return SummaryWriter(
            str(self.folder), purge_step=self._purge_step, max_queue=1000, flush_secs=30
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """One event of a run's metrics."""
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "step" and isinstance(value, Real):
                self._writer.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def rewind(self, step: int) -> None:
        """Let TensorBoard hide what comes after `step`: it is about to be written again."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Write what is queued."""
        # reading self._writer would make one
        writer = self.__dict__.pop("_writer", None)
        if writer is not None:
            writer.close()
