"""Run notebooks with checked parameters, one or a sweep of them, and collect what they report.

Nothing here knows of images or models: a notebook is a function of its parameters.
"""

from maetok_lab.workflow.execute import NotebookFailed
from maetok_lab.workflow.run import NotebookResult, run_notebook
from maetok_lab.workflow.spec import SlurmConfig, SweepSpec, grid
from maetok_lab.workflow.summary import report
from maetok_lab.workflow.sweep import SweepResult, sweep

__all__ = [
    "NotebookFailed",
    "NotebookResult",
    "SlurmConfig",
    "SweepResult",
    "SweepSpec",
    "grid",
    "report",
    "run_notebook",
    "sweep",
]
