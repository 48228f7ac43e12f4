"""Run notebooks with checked parameters, one or a sweep of them, and collect what they report."""

from maetok_lab.workflow.execute import NotebookFailed
from maetok_lab.workflow.run import NotebookResult, run_notebook
from maetok_lab.workflow.spec import Halving, SlurmConfig, SweepSpec, draw, grid
from maetok_lab.workflow.summary import report
from maetok_lab.workflow.sweep import SweepResult, sweep

__all__ = [
    "Halving",
    "NotebookFailed",
    "NotebookResult",
    "SlurmConfig",
    "SweepResult",
    "SweepSpec",
    "draw",
    "grid",
    "report",
    "run_notebook",
    "sweep",
]
