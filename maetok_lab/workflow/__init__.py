"""Run notebooks with checked parameters, and collect what they report."""

from maetok_lab.workflow.execute import NotebookFailed
from maetok_lab.workflow.run import NotebookResult, run_notebook
from maetok_lab.workflow.summary import report

__all__ = ["NotebookFailed", "NotebookResult", "report", "run_notebook"]
