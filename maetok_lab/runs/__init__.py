"""One run, one folder: what everything that takes time writes into, and is found in again."""

from maetok_lab.runs.checkpoints import Checkpoint
from maetok_lab.runs.names import changes_suffix, checked_name, run_suffix, runs_root, usual_labels
from maetok_lab.runs.run import Run, find_run
from maetok_lab.runs.tables import list_runs

__all__ = [
    "Checkpoint",
    "Run",
    "changes_suffix",
    "checked_name",
    "find_run",
    "list_runs",
    "run_suffix",
    "runs_root",
    "usual_labels",
]
