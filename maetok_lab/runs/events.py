"""A run's metrics as TensorBoard files, beside metrics.jsonl and only where TensorBoard is installed (extra `cluster`)."""

import functools
import importlib.util
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any


class Events:
    """`add(record)` writes every number of {"step": ..., "split": ..., NAME: number} as SPLIT/NAME, made when first asked.

    After `rewind(step)` TensorBoard hides what was written after `step`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._purge_step: int | None = None

    @functools.cached_property
    def _writer(self) -> Any:
        if importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

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
        """What comes after `step` is about to be written again."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Write what is queued."""
        writer = self.__dict__.pop("_writer", None)
        if writer is not None:
            writer.close()
